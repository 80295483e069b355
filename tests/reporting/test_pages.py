"""The tables of a run, in Markdown and on a terminal, and the figures of a single seed."""

import json
import re
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gradprism.experiments.results import Results, check_results, read_results
from gradprism.reporting import figures, numbers
from gradprism.reporting.document import Figure, Heading, Table, markdown, show
from gradprism.reporting.pages import document, fill_page, print_tables, run_lines, tables_are_current, write_tables
from gradprism.runtime.errors import DataError, MissingFileError
from helpers.experiments import cells, comparison

TYPES = ["pick_two_obj_and_place", "open", "pick_two_obj_and_place", "pick_and_place_simple"]


def stage(kind: str, wall: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "wall_seconds": wall, "cpu_seconds": 2 * wall, "peak_memory_mib": 900.0, **more}


@pytest.fixture
def results() -> dict[str, Any]:
    """A run, as its `results.json` would have it."""

    def run(success: str, stages: list[str], **more: Any) -> list[dict[str, Any]]:
        return [
            {"seed": 0, "success": {"unseen": success}, "score": {"unseen": [float(s) for s in success]}, "stages": stages, **more}
        ]

    routed = {"n_sft": 2, "n_rl": 2, "route": "route-1"}
    return {
        "name": "quickstart",
        "environment": "alfworld",
        "created": "2026-01-01T00:00:00+00:00",
        "machines": [{"cpu": "Xeon", "cores": 2, "versions": {"gradprism": "0.1.0", "torch": "2.13.0"}}],
        "model": {"id": "models/tiny", "parameters": 2500000},
        "trajectories": 4,
        "seeds": [0],
        "base_arm": "base",
        "sft_arm": "sft",
        "reference_arms": ["base"],
        "arms": [
            {"name": "base", "title": "Base", "group": "table1", "runs": run("0100", [])},
            {"name": "sft", "title": "SFT", "group": "table1", "runs": run("0110", ["probe-1", "route-1", "sft-1"], **routed)},
            {
                "name": "rl",
                "title": "SFT, then RL",
                "group": "table1",
                "runs": run("1110", ["probe-1", "route-1", "sft-1", "rl-1"], **routed),
            },
        ],
        "audits": {"gini": {"warnings": ["score follows length"], "spearman": {"loss": -0.1234, "n_response_tokens": None}}},
        "heat_map": {"layers": [0, 1], "kinds": ["q", "k", "v"], "mean_norms": [[0.01, 0.1, 1.0], [0.0, 10.0, None]]},
        "routes": {
            "route-1": {
                "metric": "gini",
                "policy": "concentration",
                "threshold": 0.3,
                "start": 0.2,
                "width": 0.1,
                "sft": [2, 0, 0],
                "rl": [0, 1, 1],
                "task_types": {"pick_two_obj_and_place": [1, 1], "open": [1, 0], "pick_and_place_simple": [0, 1]},
            }
        },
        "stages": {
            "probe-1": stage("probe", 2.0, tokens_forward=80000, tokens_backward=80000),
            "route-1": stage("route", 0.0),
            "sft-1": stage("sft", 18.0, history=[{"step": 1, "loss": 2.1}, {"step": 2, "loss": 1.9}]),
            "rl-1": stage("rl", 180.0, tokens_generated=950, history=[{"step": 1, "success": 0.1}, {"step": 3, "success": 0.3}]),
        },
        "tasks": {"unseen": [{"id": str(i), "task_type": name} for i, name in enumerate(TYPES)]},
    }


@pytest.fixture
def folder(results: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def render(results: dict[str, Any]) -> str:
    found = comparison(results)
    return markdown(document(found, figures.draw_figures(found)))


def printed(folder: Path, width: int = 80) -> str:
    out = StringIO()
    print_tables(folder, Console(file=out, width=width))
    return out.getvalue()


def test_a_run_tells_its_route_also_where_rl_has_not_played_yet(results: dict[str, Any]) -> None:
    line = "2 trajectories went to SFT, 2 to RL."
    assert line in run_lines(comparison(results))
    results["arms"][2]["runs"] = []
    for n_rl in (0, 2):
        results["arms"][1]["runs"][0]["n_rl"] = n_rl
        assert line in run_lines(comparison(results)) and "| SFT | 2 / 0 |" in render(results)
    results["routes"]["route-1"] |= {"none": [3, 0, 0], "both": [0, 0, 1]}
    assert "3 trajectories went to SFT, 3 to RL, 1 to both, 3 to neither." in run_lines(comparison(results))


def test_one_route_of_several_arms_is_told_with_its_arm(results: dict[str, Any]) -> None:
    results["arms"][1]["runs"][0] |= {"n_sft": None, "n_rl": None, "route": None, "stages": ["sft-1"]}
    assert "SFT, then RL: 2 trajectories went to SFT, 2 to RL." in run_lines(comparison(results))
    results["arms"][2]["runs"] = []
    assert not [line for line in run_lines(comparison(results)) if "trajectories went" in line]


@pytest.mark.parametrize("name", ["README.md", "notes.md"])
def test_a_page_that_is_no_text_is_named(folder: Path, name: str) -> None:
    write_tables(folder)
    (folder / name).write_bytes(b"caf\xe9")
    told = rf"{name}: not UTF-8 text \(.*0xe9.*\); save it as that$"
    with pytest.raises(DataError, match=told):
        tables_are_current(folder)
    with pytest.raises(DataError, match=told):
        fill_page(folder, folder / name)
    if name == "README.md":
        with pytest.raises(DataError, match=told):
            write_tables(folder)


# --- numbers


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "-"),
        (7, "7"),
        (999, "999"),
        (1000, "1k"),
        (15234, "15.2k"),
        (999499, "999k"),
        (999500, "1M"),
        (12.0e9, "12G"),
        (5e15, "5000T"),
    ],
)
def test_counts_have_three_digits(number: float, text: str) -> None:
    assert numbers.count(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.24, "4.2 s"), (90, "1.5 min"), (3600, "1.0 h"), (130380, "36.2 h")])
def test_durations(seconds: float, text: str) -> None:
    assert numbers.duration(seconds) == text


def test_shares_do_not_round_something_to_nothing() -> None:
    assert [numbers.share(f) for f in (0.0, 0.0004, 0.0136, 1.0)] == ["0.0 %", "<0.1 %", "1.4 %", "100.0 %"]


# --- the terminal


def test_printed_tables_fit_eighty_columns(results: dict[str, Any], tmp_path: Path) -> None:
    from gradprism.reporting.tables import SHORT_NAMES

    types = [*SHORT_NAMES] * 20
    results["tasks"]["unseen"] = [{"id": str(i), "task_type": name} for i, name in enumerate(types)]
    for arm in results["arms"]:
        arm["runs"][0] |= {"success": {"unseen": "1" * 120}, "score": {"unseen": [1.0] * 120}}
    for each in results["stages"].values():
        counts = ("tokens_forward", "tokens_backward", "tokens_generated", "environment_steps")
        each |= {"wall_seconds": 3599.0, "peak_memory_mib": 12345.0} | dict.fromkeys(counts, 123456)
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = printed(tmp_path)
    assert max(map(len, text.splitlines())) <= 80
    for whole in ("100.0 [96.9, 100.0]", "60.0 min", "123k", "12345", "unseen tasks"):
        assert whole in text
    assert "\x1b" not in text


def test_a_terminal_without_room_leaves_out_what_can_be_spared_and_arms_without_a_run(
    results: dict[str, Any], tmp_path: Path
) -> None:
    results["tasks"]["unseen"] = [{"id": str(i), "task_type": f"type{i}"} for i in range(4)]
    results["arms"][0]["title"] = "an arm whose name is of words that are many"
    results["arms"][1]["runs"] = []
    (tmp_path / "results.json").write_text(json.dumps(results))
    wide, narrow = printed(tmp_path, 200), printed(tmp_path, 70)
    assert f"1 of {len(results['arms'])} arms have not been run." in narrow and "type3" in wide
    assert "No room here for type0 (1), type1 (1), type2 (1), type3 (1)." in narrow and "No room" not in wide
    assert "25.0 [4.6, 69.9]" in narrow and max(map(len, narrow.splitlines())) <= 70


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100])
def test_nothing_is_cut_off_however_narrow_the_terminal(width: int) -> None:
    headings = ["arm", "SFT / RL", "seeds", "All (300)", "wall time", "CPU time", "peak MiB", "peak GPU MiB"]
    row = ["an arm of many words", "162–163 / 16–17, neither 35", "3", "18.7 [14.3, 23.0]", "26.1 min", "2.9 h", "12345", "65432"]
    out = StringIO()
    show("Cost", Table(headings, [row] * 3), Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    letters = Counter("".join(["Cost", *headings, *row * 3]).replace(" ", ""))
    assert Counter("".join(text.replace("─", "").split())) == letters
    assert ("18.7 [14.3, 23.0]" in text) == (width == 100)


def test_printed_names_are_neither_markup_nor_control_codes(results: dict[str, Any], tmp_path: Path) -> None:
    results["arms"][0]["title"] = "[red]a[/red]"
    results["tasks"]["unseen"][1]["task_type"] = "[bold]b\x1b[31m"
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = printed(tmp_path, 100)
    assert "[red]a[/red]" in text
    assert "[bold]b\ufffd[31m" in text
    assert "\x1b" not in text


def test_a_run_is_told_in_sentences(folder: Path) -> None:
    text = " ".join(printed(folder).split())
    assert "Success on unseen tasks (4 episodes each; 95 % intervals): 25.0 % [4.6, 69.9] Base, 50.0 % [15.0, 85.0] SFT" in text
    assert "2 trajectories went to SFT, 2 to RL." in text
    assert "The probe took 2.0 s of 3.3 min, 1.0 % of the wall time." in text


# --- the document


def test_the_document_has_every_part(results: dict[str, Any]) -> None:
    text = render(results)
    assert text == render(json.loads(json.dumps(results)))
    assert text.count("![") == 4, "success, scores, norms, logs of the trainings"
    for part in ("25.0 [4.6, 69.9]", "score follows length", "−0.12", "2.5M", "torch 2.13.0", "| 50.0 % |"):
        assert part in text


def test_routes_by_task_type_are_shares(results: dict[str, Any]) -> None:
    from gradprism.reporting.tables import routes_table

    rows = [row[2:] for row in cells(routes_table(comparison(results)))[2:]]
    assert rows == [["Pick", "0", "1", "100.0 %"], ["Pick2", "1", "1", "50.0 %"], ["open", "1", "0", "0.0 %"]]
    [routing] = results["routes"].values()
    routing["none"], routing["task_types"]["pick_and_place_simple"] = [0, 2], [0, 1, 3]
    headings, _, first, *_ = cells(routes_table(comparison(results)))
    assert headings[-2:] == ["neither", "share to RL"] and first[2:] == ["Pick", "0", "1", "3", "25.0 %"]


def test_any_optional_part_may_be_missing(results: dict[str, Any]) -> None:
    for part in set(Results.model_fields) & results.keys() - {"name", "environment", "arms", "stages", "tasks"}:
        assert render({key: value for key, value in results.items() if key != part})
    assert render({"name": "stopped", "environment": "alfworld", "arms": [], "stages": {}, "tasks": {"unseen": []}})


def test_text_is_marked_up() -> None:
    blocks = [Heading("A", 1), "x **b** *e* `c`", "- one\n- two", Table(["a", "n"], [["<i>", "**1**"]]), Figure("f", "F")]
    assert markdown(blocks) == (
        "# A\n\nx **b** *e* `c`\n\n- one\n- two\n\n| a | n |\n| :-- | --: |\n| \\<i\\> | **1** |\n\n![F](f.svg)\n"
    )


# --- figures of a run


def test_figures_of_a_run_carry_its_scores_norms_and_logs(results: dict[str, Any]) -> None:
    found = comparison(results)
    assert set(figures.draw_figures(found)) == {"success", "scores", "norms", "training"}
    results["seeds"] = [0, 1]
    assert set(figures.draw_figures(comparison(results))) == {"success"}, "of one seed alone"


def test_dollars_and_other_signs_in_names_are_drawn_as_they_are(results: dict[str, Any]) -> None:
    results["arms"][0]["title"] = r"$\frac{$"
    assert "success" in figures.draw_figures(comparison(results))


# --- reading


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": []}, r"results\.json: stages: Input should be a valid dictionary"),
        ({"name": None}, "name: Input should be a valid string"),
        (
            {"stages": {"probe": {"kind": "probe", "wall_seconds": "4"}}},
            r"stages\.probe\.wall_seconds: Input should be a valid number",
        ),
        ({"heat_map": {"layers": [0], "kinds": ["q", "k"], "mean_norms": [[1.0]]}}, "heat_map: .*one row per layer"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_wrong_sections_are_named(results: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results | change))
    with pytest.raises(DataError, match=message) as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "the whole file"), ("{", "not valid JSON"), ('{"name": "x"}', "environment: Field required")]
)
def test_unusable_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_results(tmp_path)


def test_numbers_that_are_none_are_refused(results: dict[str, Any]) -> None:
    results["routes"]["route-1"]["threshold"] = float("nan")
    with pytest.raises(DataError, match=r"routes\.route-1\.threshold: Input should be a finite number"):
        check_results(results)


# --- the command


def test_command_writes_the_page_and_prints_the_tables(cli: Any, folder: Path, results: dict[str, Any]) -> None:
    code, out, _ = cli("report", folder)
    assert code == 0 and "25.0 [4.6, 69.9]" in out
    (folder / "report.html").unlink()
    code, out, _ = cli("report", folder, "--json", "--out", folder / "sub" / "page.html")
    assert code == 0 and check_results(json.loads(out)) == check_results(results)
    assert (folder / "sub" / "page.html").is_file() and not (folder / "report.html").exists()


def test_missing_results_say_what_to_do(cli: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"holds no results\.json; .*gradprism run"):
        read_results(tmp_path)
    code, out, err = cli("report", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1) and re.match("error: .*results.json", err)
    assert list(tmp_path.iterdir()) == []


def test_an_environments_remarks_are_shown_at_the_end_of_a_run_and_on_the_page(results: dict[str, Any], tmp_path: Path) -> None:
    remark = "split test: 3 of 5 games are generated"
    results["remarks"] = [remark]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert remark in printed(tmp_path, 120) and remark in render(results)


def test_no_name_opens_a_tag_or_a_comment_on_the_page(results: dict[str, Any]) -> None:
    results["remarks"] = ["<!-- hide"]
    results["name"] = "<img src=x>"
    for arm in results["arms"]:
        arm["title"] = "<script>"
    page = render(results)
    assert r"\<!-- hide" in page and r"# \<img src=x\>" not in page and r"# \<img src=x>" in page
    assert r"\<script" in page and re.findall(r"(?<!\\)<[!/a-z]", page) == []


def test_warnings_of_trainings_are_said_once_with_the_trainings_that_they_are_of(results: dict[str, Any]) -> None:
    results["stages"]["sft-1"]["warnings"] = ["9 tokens are cut", "no bfloat16"]
    results["stages"]["rl-1"]["warnings"] = ["no bfloat16"]
    page = render(results)
    assert "- sft sft/0: 9 tokens are cut\n- sft sft/0, rl rl/0: no bfloat16\n" in page, (
        "a stage that arms share is named by the first"
    )
    results["stages"]["rl-2"] = results["stages"]["rl-1"]
    results["arms"][2]["runs"][0]["stages"].append("rl-2")
    assert "- sft sft/0, rl rl/0: no bfloat16\n" in render(results), "two trainings of a run have one name"
    results["arms"][2]["runs"][0]["stages"].pop()
    results["arms"] += [
        {**results["arms"][2], "name": f"rl-{n}", "runs": [{**results["arms"][2]["runs"][0], "stages": [f"rl-{n}"]}]}
        for n in range(2, 9)
    ]
    results["stages"] |= {f"rl-{n}": results["stages"]["rl-1"] for n in range(2, 9)}
    assert "- 9 trainings: no bfloat16\n" in render(results), "too many to be read"
