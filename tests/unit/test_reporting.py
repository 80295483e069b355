"""The report: figures in tables worked by hand, and a page that fetches nothing and runs nothing from the data."""

import copy
import json
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from gradprism.cli.report import command
from gradprism.reporting import figures, tables
from gradprism.reporting.html import render, route_rows, script_json, summary, write_report
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError, WriteError

ATTACK = "</script><script>alert(1)</script>'\"><img src=x onerror=alert(2)>[red]"
# All parts but the name and the stages.
PARTS = (
    "seed",
    "created",
    "versions",
    "machine",
    "config",
    "model",
    "corpus",
    "routing",
    "heat_map",
    "audit",
    "evaluation",
    "curves",
)


def entry(stage: str, split: str, task_type: str, successes: int, episodes: int, low: float, high: float) -> dict[str, Any]:
    success = successes / episodes if episodes else 0.0
    return {
        "stage": stage,
        "split": split,
        "task_type": task_type,
        "episodes": episodes,
        "successes": successes,
        "success": success,
        "low": low,
        "high": high,
        "score": success,
        "mean_steps": 17.2,
        "invalid_share": 0.1,
    }


def stage(name: str, wall: float, peak: float = 900, reused: bool = False, **counts: int) -> dict[str, Any]:
    return {"name": name, "wall_seconds": wall, "cpu_seconds": 2 * wall, "peak_memory_mib": peak, "reused": reused, **counts}


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "name": "quickstart",
        "seed": 0,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"gradprism": "0.1.0", "torch": "2.13.0"},
        "machine": {"cpu": "Xeon", "cores": 2, "memory_gib": 24, "device": "cpu"},
        "config": {"name": "quickstart", "route": {"metric": "gini"}},
        "model": {"id": "models/tiny", "parameters": 2500000},
        "corpus": {"trajectories": 4, "tokens": 80000, "response_tokens": 15000},
        "routing": {
            "metric": "gini",
            "policy": "concentration",
            "threshold": 0.3,
            "n_sft": 2,
            "n_rl": 2,
            "scores": [0.2, 0.3, 0.4, 0.5],
            "routes": ["sft", "sft", "rl", "rl"],
            "task_types": ["pick_two_obj_and_place", "open", "pick_two_obj_and_place", "pick_and_place_simple"],
        },
        "heat_map": {"layers": [0, 1], "kinds": ["q", "k", "v"], "mean_norms": [[0.01, 0.1, 1.0], [0.0, 10.0, 0.5]]},
        "audit": {"warnings": ["score follows length"], "spearman": {"loss": -0.1234, "n_response_tokens": None}},
        "evaluation": [
            entry("base", "unseen", "all", 8, 64, 0.0647, 0.2276),
            entry("base", "unseen", "pick_two_obj_and_place", 1, 16, 0.0111, 0.2833),
            entry("base", "unseen", "pick_and_place_simple", 7, 48, 0.0725, 0.2717),
            entry("rl", "unseen", "all", 32, 64, 0.3806, 0.6194),
            entry("rl", "unseen", "pick_and_place_simple", 0, 0, 0.0, 1.0),
            entry("base", "seen", "all", 10, 64, 0.0871, 0.2643),
            entry("rl", "seen", "all", 12, 64, 0.1106, 0.2998),
        ],
        "stages": [
            stage("probe", 2.0, 900, True, tokens_forward=80000, tokens_backward=80000),
            stage("rl", 198.0, 1500, tokens_forward=1500000, tokens_generated=950, environment_steps=999999),
        ],
        "curves": {
            "sft": [{"step": 1, "loss": 2.1}, {"step": 2, "loss": 1.9}],
            "rl": [
                {"step": 1, "success": 0.1, "zero_variance_groups": 0.5},
                {"step": 2, "success": None},
                {"step": 3, "success": 0.3},
            ],
        },
        "warnings": ["memory was short"],
    }


@pytest.fixture
def folder(results: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def without_plotly(page: str) -> str:
    from plotly.offline import get_plotlyjs

    return page.replace(get_plotlyjs(), "/* plotly */")


def traces(figure: Any) -> list[Any]:
    return list(figure.data)


def figures_of(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)
    assert len(found) == 1
    return json.loads(found[0])


def printed(results: dict[str, Any], width: int = 80) -> str:
    out = StringIO()
    tables.print_tables(results, Console(file=out, width=width))
    return out.getvalue()


# --- tables


def test_evaluation_rows_follow_splits_stages_and_types(results: dict[str, Any]) -> None:
    rows = tables.evaluation_rows(results)
    assert [(row["split"], row["stage"]) for row in rows] == [
        ("unseen", "base"),
        ("unseen", "rl"),
        ("seen", "base"),
        ("seen", "rl"),
    ]
    assert list(rows[0]["cells"].items()) == [
        ("pick_and_place_simple", "14.6 [7.2, 27.2]"),
        ("pick_two_obj_and_place", "6.2 [1.1, 28.3]"),
        ("all", "12.5 [6.5, 22.8]"),
    ]
    assert rows[1]["cells"] == {"pick_and_place_simple": "–", "all": "50.0 [38.1, 61.9]"}
    assert rows[0]["episodes"] == 64
    assert rows[0]["score"] is None


def test_unknown_types_keep_their_names_between_the_known_and_all(results: dict[str, Any]) -> None:
    results["evaluation"].append(entry("base", "unseen", "open_box", 1, 2, 0.1, 0.9))
    headings, rows = tables.evaluation_table(results)
    assert headings == ["split", "stage", "Pick", "Pick2", "open_box", "All"]
    assert rows[0] == ["unseen", "base", "14.6 [7.2, 27.2]", "6.2 [1.1, 28.3]", "50.0 [10.0, 90.0]", "12.5 [6.5, 22.8]"]
    assert rows[1] == ["unseen", "rl", "–", "–", "–", "50.0 [38.1, 61.9]"]


def test_a_score_that_is_not_the_success_gets_a_column(results: dict[str, Any]) -> None:
    results["evaluation"][0]["score"] = 0.2878
    headings, rows = tables.evaluation_table(results)
    assert headings[-1] == "Score"
    assert [row[-1] for row in rows] == ["28.8", "50.0", "15.6", "18.8"]


def test_cost_rows_share_the_wall_time_and_end_in_a_total(results: dict[str, Any]) -> None:
    probe, rl, total = tables.cost_rows(results)
    assert (probe["share"], rl["share"], total["share"]) == (0.01, 0.99, 1.0)
    assert total == {
        "stage": "total",
        "wall_seconds": 200.0,
        "share": 1.0,
        "tokens_forward": 1580000,
        "tokens_backward": 80000,
        "tokens_generated": 950,
        "environment_steps": 999999,
        "peak_memory_mib": 1500,
        "reused": False,
    }
    assert tables.cost_cells(probe) == ["probe", "2.0 s", "1.0 %", "80k", "80k", "-", "-", "900", "yes"]
    assert tables.cost_cells(rl) == ["rl", "3.3 min", "99.0 %", "1.5M", "-", "950", "1M", "1500", ""]


def test_costs_without_time_have_no_share() -> None:
    assert [row["share"] for row in tables.cost_rows({"name": "x", "stages": [stage("probe", 0.0)]})] == [None, None]


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
    assert tables.count(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.24, "4.2 s"), (90, "1.5 min"), (3600, "1.0 h"), (130380, "36.2 h")])
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


def test_shares_do_not_round_something_to_nothing() -> None:
    assert [tables.share(f) for f in (None, 0.0, 0.0004, 0.0136, 1.0)] == ["–", "0.0 %", "<0.1 %", "1.4 %", "100.0 %"]


def test_printed_tables_fit_eighty_columns(results: dict[str, Any]) -> None:
    for task_type in tables.SHORT_NAMES:
        for name in ("base", "sft", "rl"):
            results["evaluation"].append(entry(name, "unseen", task_type, 64, 64, 0.9434, 1.0))
    results["stages"] = [
        stage(f"evaluate-{n}", 3599.0, 12345, True, **dict.fromkeys(tables.COUNTS, 123456)) for n in ("base", "sft")
    ]
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    for whole in ("100.0 [94.3, 100.0]", "evaluate-base", "60.0 min", "50.0 %", "123k", "12345", "unseen tasks, 64 episodes"):
        assert whole in text
    assert "\x1b" not in text


def test_printed_names_are_neither_markup_nor_control_codes(results: dict[str, Any]) -> None:
    results["stages"][0]["name"] = "[red]a[/red]"
    results["evaluation"][1]["task_type"] = "[bold]b\x1b[31m"
    text = printed(results, 100)
    assert "[red]a[/red]" in text
    assert "[bold]b\ufffd[31m" in text
    assert "\x1b" not in text


def test_markdown_tables(results: dict[str, Any]) -> None:
    results["stages"][0]["name"] = "a|b_<i>"
    lines = tables.markdown_tables(results).splitlines()
    assert lines[:3] == [
        "| split | stage | Pick | Pick2 | All |",
        "| :-- | :-- | --: | --: | --: |",
        "| unseen | base | 14.6 [7.2, 27.2] | 6.2 [1.1, 28.3] | 12.5 [6.5, 22.8] |",
    ]
    assert r"| a\|b\_\<i\> | 2.0 s | 1.0 % | 80k | 80k | - | - | 900 | yes |" in lines
    assert lines[-1] == "| total | 3.3 min | 100.0 % | 1.58M | 80k | 950 | 1M | 1500 |  |"


# --- figures


def test_no_bin_mixes_the_sides_of_the_threshold() -> None:
    scores = np.random.default_rng(0).normal(0.35, 0.06, 241)
    threshold = float(np.median(scores))  # is one of the scores, and goes left
    index, width = figures.score_bins(scores.tolist(), threshold)
    assert ((index < 0) == (scores <= threshold)).all()
    low = threshold + index * width
    assert ((low - 1e-12 < scores) & (scores <= low + width + 1e-12)).all()
    assert 10 <= np.ptp(scores) / width <= 60


@pytest.mark.parametrize("scores", [[0.3], [0.3, 0.3], [0.0, 1.0], [0.3] * 50 + [9.0]])
def test_degenerate_scores_can_be_drawn(scores: list[float]) -> None:
    routing = {
        "metric": "gini",
        "threshold": scores[0],
        "scores": scores,
        "routes": ["sft" if s <= scores[0] else "rl" for s in scores],
    }
    figure = figures.score_figure(routing)
    assert sum(sum(trace["y"]) for trace in traces(figure)) == len(scores)


def test_score_figure_counts_and_marks(results: dict[str, Any]) -> None:
    figure: Any = figures.score_figure(results["routing"])
    assert [(trace["name"], sum(trace["y"])) for trace in traces(figure)] == [("SFT (2)", 2), ("RL (2)", 2)]
    assert figure.layout.shapes[0].x0 == 0.3
    assert figure.layout.annotations[0].text == "threshold 0.3"


def test_a_threshold_beyond_all_scores_is_within_the_axis(results: dict[str, Any]) -> None:
    results["routing"] |= {"threshold": 2.0, "routes": ["sft"] * 4}
    figure: Any = figures.score_figure(results["routing"])
    low, high = figure.layout.xaxis.range
    assert low < 0.2 and high > 2.0


def test_heat_map_is_logarithmic_and_leaves_zeros_blank(results: dict[str, Any]) -> None:
    trace = traces(figures.heat_map_figure(results["heat_map"]))[0]
    assert [list(row) for row in trace.z] == [
        [pytest.approx(-2), pytest.approx(-1), pytest.approx(0)],
        [None, pytest.approx(1), pytest.approx(np.log10(0.5))],
    ]
    assert (list(trace.x), list(trace.y)) == (["q", "k", "v"], ["0", "1"])
    assert list(trace.colorbar.ticktext)[:3] == ["0.01", "0.02", "0.05"]
    plain = traces(figures.heat_map_figure(results["heat_map"], log=False))[0]
    assert [list(row) for row in plain.z] == results["heat_map"]["mean_norms"]


def test_evaluation_bars_have_their_intervals(results: dict[str, Any]) -> None:
    base, rl = traces(figures.evaluation_figure(results["evaluation"]))
    assert (base["name"], list(base["x"]), list(base["y"])) == ("base", ["unseen", "seen"], [12.5, 15.625])
    assert base["error_y"]["array"] == pytest.approx([10.26, 10.805])
    assert base["error_y"]["arrayminus"] == pytest.approx([6.03, 6.915])
    assert rl["marker"]["color"] == figures.COLOURS["rl"]


def test_rl_curve_has_a_running_mean_over_what_is_known(results: dict[str, Any]) -> None:
    points, mean, groups = traces(figures.rl_figure(results["curves"]["rl"], window=2))
    assert list(points["y"]) == [0.1, None, 0.3]
    assert list(mean["y"]) == pytest.approx([0.1, 0.1, 0.3])
    assert groups["visible"] == "legendonly"


# --- the page


def test_summary_says_whether_intervals_overlap(results: dict[str, Any]) -> None:
    text = summary(results)
    assert (
        "Success on unseen tasks (64 episodes each; 95 % intervals): "
        "12.5 % [6.5, 22.8] before training, 50.0 % [38.1, 61.9] after RL. "
        "The intervals before training and after RL do not overlap."
    ) in text
    assert (
        "15.6 % [8.7, 26.4] before training, 18.8 % [11.1, 30.0] after RL. The intervals before training and after RL overlap"
        in text
    )
    assert "2 of 4 trajectories went to SFT, 2 to RL." in text
    assert "The probe took 2.0 s of 3.3 min, 1.0 % of the wall time." in text


def test_routes_by_task_type(results: dict[str, Any]) -> None:
    expected = [["Pick", "0", "1", "100.0 %"], ["Pick2", "1", "1", "50.0 %"], ["open", "1", "0", "0.0 %"]]
    assert route_rows(results["routing"]) == expected


def test_page_has_every_part_and_plotly_once(results: dict[str, Any]) -> None:
    page = render(results)
    assert page.count("plotly.js v") == 1
    assert page == render(copy.deepcopy(results))
    page = without_plotly(page)
    assert "in these results" not in page
    figure_ids = set(figures_of(page))
    assert figure_ids == {"plot-evaluation", "plot-scores", "plot-heat-map", "plot-sft", "plot-rl"}
    assert all(f'id="{name}"' in page for name in figure_ids)
    for text in (
        "12.5<small>[6.5, 22.8]</small>",
        "score follows length",
        "memory was short",
        "-0.12",
        "2,500,000",
        "2.13.0",
        "threshold 0.3 ",
    ):
        assert text in page


class Tags(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_asks_the_network_for_nothing(results: dict[str, Any]) -> None:
    tags = Tags(render(results)).found
    assert not [tag for tag, attributes in tags if {"src", "href", "action", "srcset", "data"} & attributes.keys()]
    assert not {"link", "iframe", "object", "base", "img"} & {tag for tag, _ in tags}
    page = without_plotly(render(results))
    assert not re.search(r"https?:|//cdn|@import|url\(", page)
    assert "default-src 'none'" in page


def poison(value: Any) -> Any:
    """The same value with the attack in every string and key that is free text."""
    if isinstance(value, dict):
        return {key + ATTACK: poison(v) for key, v in value.items()}
    if isinstance(value, list):
        return [poison(v) for v in value]
    return value + ATTACK if isinstance(value, str) else value


def test_nothing_from_the_data_becomes_markup(results: dict[str, Any]) -> None:
    clean = Tags(render(results)).found
    for part in ("name", "created", "versions", "machine", "config", "model", "corpus", "warnings"):
        results[part] = poison(results[part])
    results["audit"] = {"warnings": [ATTACK], "spearman": {ATTACK: 0.1, ATTACK * 2: None}}
    results["routing"] |= {"metric": ATTACK, "policy": ATTACK, "task_types": poison(results["routing"]["task_types"])}
    results["heat_map"]["kinds"] = poison(results["heat_map"]["kinds"])
    results["stages"] = [{**s, "name": s["name"] + ATTACK} for s in results["stages"]]
    results["evaluation"] = [{**e, "stage": e["stage"] + ATTACK, "split": e["split"] + ATTACK} for e in results["evaluation"]]
    results["evaluation"][1]["task_type"] += ATTACK
    page = render(results)
    # The same scripts, and no kind of element or attribute that the clean page has not.
    assert [tag for tag, _ in Tags(page).found if tag in ("script", "img")] == [tag for tag, _ in clean if tag in ("script", "img")]
    assert {(tag, *sorted(a)) for tag, a in Tags(page).found} == {(tag, *sorted(a)) for tag, a in clean}
    assert ATTACK not in page
    assert "&lt;script&gt;alert(1)" in page
    drawn = figures_of(page)
    assert drawn["plot-evaluation"]["data"][0]["name"].startswith("base&lt;/script&gt;")


def test_json_in_a_script_cannot_end_it() -> None:
    value = {"</script>": ["<!--<script>", float("nan")]}
    text = script_json(value)
    assert "<" not in text
    assert json.loads(text) == {"</script>": ["<!--<script>", None]}


@pytest.mark.parametrize("part", PARTS)
def test_any_part_may_be_missing(results: dict[str, Any], part: str, tmp_path: Path) -> None:
    del results[part]
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = without_plotly(render(tables.read_results(tmp_path)))
    said = {"heat_map": "heat map", "config": "configuration", "curves": "RL curve"}.get(part, part)
    if part not in ("seed", "created"):
        assert f"No {said} in these results." in page
    assert printed(results)


def test_a_run_that_stopped_at_once_still_reports() -> None:
    results = {"name": "stopped", "stages": []}
    page = without_plotly(render(results))
    assert page.count("in these results.") >= 10
    assert printed(results) == "No evaluation in these results.\nNo stages in these results.\n"
    assert tables.markdown_tables(results) == "No evaluation in these results.\n\nNo stages in these results.\n"


def test_a_failed_write_keeps_the_old_report(results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ConfigError, match="is a folder"):
        write_report(results, tmp_path)
    with pytest.raises(WriteError, match="cannot be written"):
        write_report(results, path / "below-a-file.html")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradprism.runtime.files.os.replace", full)
    with pytest.raises(WriteError, match="No space left"):
        write_report(results, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_lone_surrogates_do_not_stop_the_report(results: dict[str, Any], tmp_path: Path) -> None:
    results["name"], results["config"] = "a\ud800", {"b": "\udfff"}
    write_report(results, tmp_path / "report.html")
    assert "<h1>a\ufffd</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- reading and the command


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": {}}, r"results\.json: stages: Input should be a valid list"),
        ({"name": None}, "name: Input should be a valid string"),
        ({"evaluation": [{"stage": "base"}]}, r"evaluation\.0\.split: Field required"),
        ({"stages": [{"name": "probe", "wall_seconds": "4"}]}, r"stages\.0\.wall_seconds: Input should be a valid number"),
        ({"routing": {"metric": "gini", "policy": "p", "scores": [1.0], "routes": []}}, "routing: .*differ in length"),
        (
            {"routing": {"metric": "gini", "policy": "p", "scores": [1.0], "routes": ["dpo"]}},
            r"routing\.routes\.0: Input should be 'sft' or",
        ),
        ({"heat_map": {"layers": [0], "kinds": ["q", "k"], "mean_norms": [[1.0]]}}, "heat_map: .*one row a layer"),
        ({"curves": {"sft": [{"loss": 1.0}]}}, r"curves\.sft\.0\.step: Field required"),
    ],
)
def test_wrong_sections_are_named(results: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results | change))
    with pytest.raises(DataError, match=message) as caught:
        tables.read_results(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "the whole file"), ("{", "not valid JSON"), ('{"name": "x"}', "stages: Field required")]
)
def test_unusable_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=message):
        tables.read_results(tmp_path)


def test_numbers_that_are_none_are_refused(results: dict[str, Any], tmp_path: Path) -> None:
    results["routing"]["scores"][2] = float("nan")
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(DataError, match=r"routing\.scores\.2: Input should be a finite number"):
        tables.read_results(tmp_path)


def test_missing_runs_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"holds no results\.json; .*gradprism run"):
        tables.read_results(tmp_path)
    with pytest.raises(MissingFileError, match="no such folder"):
        tables.read_results(tmp_path / "absent")


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def test_command_writes_the_page_and_prints_the_tables(app: typer.Typer, folder: Path) -> None:
    result = CliRunner().invoke(app, [str(folder)])
    assert result.exit_code == 0
    assert "12.5 [6.5, 22.8]" in result.stdout
    assert "<h1>quickstart</h1>" in (folder / "report.html").read_text(encoding="utf-8")


def test_command_prints_rows_as_json(app: typer.Typer, folder: Path, results: dict[str, Any]) -> None:
    result = CliRunner().invoke(app, [str(folder), "--json", "--out", str(folder / "sub" / "page.html")])
    shown = json.loads(result.stdout)
    assert shown["evaluation"] == tables.evaluation_rows(results)
    assert shown["costs"] == tables.cost_rows(results)
    assert (folder / "sub" / "page.html").is_file()
    assert not (folder / "report.html").exists()


def test_command_raises_what_main_turns_into_one_line(app: typer.Typer, tmp_path: Path) -> None:
    assert isinstance(CliRunner().invoke(app, [str(tmp_path)]).exception, MissingFileError)
    assert list(tmp_path.iterdir()) == []
