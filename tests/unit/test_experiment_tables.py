"""An experiment's tables and figures, rebuilt from a synthetic `results.json`, also while arms and seeds are missing."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradprism.errors import DataError, MissingFileError
from gradprism.experiments.statistics import Interval, holm
from gradprism.reporting import experiment_figures as figures
from gradprism.reporting import experiment_pages as pages
from gradprism.reporting import experiment_tables as tables
from gradprism.reporting.experiment_results import Experiment, read_experiment
from gradprism.reporting.tables import SHORT_NAMES

TYPES = [name for name in SHORT_NAMES if name != "all"]
# Arm: title, group, true success, the trained stages and the minutes that each takes.
ARMS: dict[str, tuple[str, str, float, dict[str, float]]] = {
    "base": ("Base", "table1", 0.10, {}),
    "sft": ("SFT, all", "table1", 0.25, {"sft": 14}),
    "grpo": ("GRPO, all", "table1", 0.40, {"rl": 120}),
    "random": ("Random 50:50", "table1", 0.38, {"route": 0.1, "sft": 7, "rl": 60}),
    "sft-then-rl": ("SFT then RL, 100:100", "table1", 0.42, {"sft": 14, "rl": 120}),
    "gini": ("PRISM, Gini 50:50", "table1", 0.56, {"probe": 0.5, "route": 0.1, "sft": 7, "rl": 58}),
    "inverse": ("Inverse routing", "ablation", 0.30, {"probe": 0.5, "route": 0.1, "sft": 7, "rl": 62}),
    "gini-30": ("PRISM, Gini 70:30", "sweep", 0.36, {"probe": 0.5, "route": 0.1, "sft": 10, "rl": 40}),
}


def synthetic(seeds: int = 3) -> dict[str, Any]:
    """Successes drawn around each arm's, on tasks that are easy or hard for all; costs that grow with the seed."""
    rng = np.random.default_rng(0)
    tasks = {
        split: [{"id": f"{split}-{i}", "task_type": TYPES[i % 6]} for i in range(n)] for split, n in (("unseen", 60), ("seen", 30))
    }
    ease = {split: rng.normal(0, 0.15, len(rows)) for split, rows in tasks.items()}
    stages: dict[str, Any] = {}
    arms = []
    for name, (title, group, success, minutes) in ARMS.items():
        runs = []
        for seed in range(seeds if minutes else 1):
            won = {split: (rng.random(len(e)) < success + e).astype(int) for split, e in ease.items()}
            of_run = []
            for kind, length in minutes.items():
                key = f"{kind}-{name}-{seed}"
                tokens = int(length * 1e6)
                stages[key] = {
                    "kind": kind,
                    "wall_seconds": 60 * length * (1 + 0.05 * seed) + 30,
                    "cpu_seconds": 110 * length,
                    "peak_memory_mib": 900 + 100 * length,
                    "tokens_forward": tokens,
                    "tokens_backward": tokens // 2 if kind != "route" else 0,
                    "tokens_generated": tokens // 10 if kind == "rl" else 0,
                    "environment_steps": tokens // 100 if kind == "rl" else 0,
                    "flops": 4.0e6 * tokens,
                    "evaluation_seconds": 30,
                }
                of_run.append(key)
            levels = [("base", 0.0, 0.1)]
            for kind in [k for k in ("sft", "rl") if k in minutes]:
                start = levels[-1][2]
                end = success if kind == "rl" or "rl" not in minutes else 0.22
                levels += [(kind, f, start + (end - start) * f + rng.normal(0, 0.01)) for f in (0.25, 0.5, 0.75, 1.0)]
            runs.append(
                {
                    "seed": seed,
                    "success": {split: "".join(map(str, w)) for split, w in won.items()},
                    "score": {split: w.astype(float).tolist() for split, w in won.items()},
                    "n_sft": 300 if "sft" in minutes else 0,
                    "n_rl": 300 if "rl" in minutes else 0,
                    "stages": of_run,
                    "curve": [{"stage": s, "fraction": f, "success": float(y), "tasks": 48} for s, f, y in levels],
                }
            )
        arms.append({"name": name, "title": title, "group": group, "runs": runs})
    return {
        "name": "alfworld-mini",
        "environment": "alfworld",
        "created": "2026-01-01T00:00:00+00:00",
        "machines": [{"cpu": "Xeon", "cores": 2, "memory_gib": 24, "versions": {"gradprism": "0.1.0"}}],
        "model": {"id": "models/alfworld-tiny", "parameters": 2500000},
        "corpus": {"trajectories": 600},
        "tasks": tasks,
        "seeds": list(range(seeds)),
        "reference_arms": ["random", "sft-then-rl"],
        "full_rl_arm": "grpo",
        "base_arm": "base",
        "sft_arm": "sft",
        "regime": {"base_low": 0.05, "base_high": 0.20, "ceiling": 0.95},
        "claims": [
            {"text": "Gini beats a random split", "better": "gini", "worse": "random"},
            {"text": "Inverse routing is worse than random", "better": "random", "worse": "inverse"},
            {"text": "SFT alone beats RL alone", "better": "sft", "worse": "grpo"},
            {"text": "Gini beats CV", "better": "gini", "worse": "cv"},
        ],
        "sweeps": [{"title": "RL share, Gini", "arms": {"0.3": "gini-30", "0.5": "gini", "0.7": "gini-70"}}],
        "arms": arms,
        "stages": stages,
        "audits": {
            "gini": {
                "spearman": {"loss": -0.16, "n_response_tokens": None},
                "eta_squared": 0.31,
                "agreement": {"loss": {"same_side": 0.55, "jaccard": 0.38}},
                "threshold_standard_error": 0.0041,
                "share_within_one_standard_error": 0.035,
                "stability": {"another context length": {"jaccard": 0.9, "same_side": 0.95, "spearman": 0.99}},
                "warnings": ["the score follows | loss"],
            },
            "cv": {"spearman": {"loss": -0.2}},
            "kurtosis": {},
        },
    }


@pytest.fixture(scope="module")
def whole() -> Experiment:
    return Experiment(synthetic())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(synthetic()))
    return tmp_path


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("|")]


def row_of(table: str, name: str) -> dict[str, str]:
    headings, _, *rows = cells(table)
    [row] = [row for row in rows if row[0] == name]
    return dict(zip(headings, row, strict=True))


# --- numbers as text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.021, -0.01, 0.053, 0, 1), "+2.1 [−1.0, 5.3]"),
        (Interval(-0.1, -0.2, -0.05, 0, 1), "−10.0 [−20.0, −5.0]"),
        (Interval(0.0004, -0.0004, 0.01, 0, 1), "0.0 [0.0, 1.0]"),
    ],
)
def test_differences_have_true_minus_signs_and_no_negative_zero(interval: Interval, text: str) -> None:
    assert tables.points(interval) == text


@pytest.mark.parametrize(("p", "text"), [(0.00005, "<0.001"), (0.0314, "0.031"), (0.0999, "0.10"), (1.0, "1.00"), (None, "–")])
def test_p_values(p: float | None, text: str) -> None:
    assert tables.p_value(p) == text


# --- tables


def test_success_is_the_mean_over_seeds_and_tasks_by_type(whole: Experiment) -> None:
    row = row_of(tables.success_table(whole, ["base", "gini"], "unseen"), "PRISM, Gini 50:50")
    runs = next(arm["runs"] for arm in synthetic()["arms"] if arm["name"] == "gini")
    won = [[int(c) for c in run["success"]["unseen"]] for run in runs]
    assert row["All (60)"].startswith(f"{100 * sum(map(sum, won)) / 180:.1f} [")
    picks = [w[i] for w in won for i in range(60) if i % 6 == 0]
    assert row["Pick (10)"] == f"{100 * sum(picks) / 30:.1f}"
    assert (row["seeds"], row["SFT / RL"]) == ("3", "300 / 300")


def test_an_interval_ends_where_a_success_does() -> None:
    results = synthetic()
    for place, run in enumerate(results["arms"][5]["runs"]):
        run["success"]["unseen"] = ("1" if place else "0") * 60
    found = Experiment(results).mean("gini")
    assert found is not None and (found.mean, found.low, found.high) == (pytest.approx(2 / 3), 0.0, 1.0)


def test_a_score_that_is_not_the_success_gets_a_column() -> None:
    results = synthetic()
    for arm in results["arms"]:
        for run in arm["runs"]:
            run["score"]["unseen"] = [0.5] * 60
    experiment = Experiment(results)
    assert row_of(tables.success_table(experiment, ["gini"], "unseen"), "PRISM, Gini 50:50")["score"] == "50.0 [50.0, 50.0]"
    assert "score" not in cells(tables.success_table(experiment, ["gini"], "seen"))[0]


def test_every_arm_is_compared_with_each_reference_but_itself(whole: Experiment) -> None:
    headings, _, *rows = cells(tables.difference_table(whole, whole.of_group("table1"), "unseen"))
    p_values = ["p, these models", "p, any trainings"]
    assert headings == ["arm", "less Random 50:50", *p_values, "less SFT then RL, 100:100", *p_values]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["Random 50:50"][:3] == ["–", "–", "–"]
    assert by_name["SFT then RL, 100:100"][3:] == ["–", "–", "–"]
    assert by_name["PRISM, Gini 50:50"][0] == tables.points(whole.difference("gini", "random"))
    assert by_name["Base"][1] == "<0.001"


def test_claims_are_judged_by_the_p_of_any_trainings(whole: Experiment) -> None:
    row = row_of(tables.claims_table(whole), "Gini beats a random split")
    claims = [(c["better"], c["worse"]) for c in synthetic()["claims"]]
    known = [p for pair in claims if (p := whole.training_p(*pair)) is not None]
    assert len(known) == 3, "Gini beats CV is not measured"
    assert row["p, any trainings"] == tables.p_value(holm(known)[0])
    of_models = [p for pair in claims if (p := whole.p(*pair)) is not None]
    assert row["p, these models"] == tables.p_value(holm(of_models)[0])
    unmeasured = row_of(tables.claims_table(whole), "Gini beats CV")
    assert (unmeasured["verdict"], unmeasured["p, any trainings"], unmeasured["seeds"]) == ("not measured yet", "–", "0")
    above, below = Interval(0.1, 0.01, 0.2, 0.05, 2), Interval(-0.1, -0.2, -0.01, 0.05, 2)
    assert tables.verdict(above, 0.06) == "suggested: holds", "clear by itself, not among so many"
    assert tables.verdict(below, 0.06) == "suggested: does not hold"
    assert tables.verdict(Interval(0.1, -0.01, 0.2, 0.05, 2), 0.04) == "cannot be told apart"
    assert tables.verdict(above, 0.04) == "**holds**"
    assert tables.verdict(below, 0.04) == "**does not hold**"
    assert tables.verdict(above, None) == "one seed: not decided"


def test_pairs_are_of_the_seeds_that_both_have_and_the_base_is_everyones() -> None:
    results = synthetic()
    arms = {arm["name"]: arm for arm in results["arms"]}
    arms["gini"]["runs"] = arms["gini"]["runs"][1:]
    experiment = Experiment(results)
    random_, gini = experiment.values("random", "unseen"), experiment.values("gini", "unseen")
    a, b = experiment.pairs("gini", "random", "unseen")
    assert (a == gini).all() and (b == random_[1:]).all() and len(a) == 2
    a, b = experiment.pairs("gini", "base", "unseen")
    assert len(a) == len(b) == 2 and (b == experiment.values("base", "unseen")[0]).all()
    arms["gini"]["runs"][0]["seed"], arms["gini"]["runs"][1]["seed"] = 7, 8
    assert Experiment(results).difference("gini", "random") is None


@pytest.mark.parametrize(
    ("regime", "expected"),
    [
        ({}, [True, True, True]),
        ({"base_low": 0.5, "base_high": 0.6}, [False, True, True]),
        ({"ceiling": 0.3}, [True, True, False]),
    ],
)
def test_regime_says_pass_or_fail(regime: dict[str, float], expected: list[bool]) -> None:
    experiment = Experiment({**synthetic(), "regime": regime})
    assert [met for met, _ in tables.regime(experiment)] == expected
    text = tables.regime_text(experiment)
    assert (text.count(": pass."), text.count(": **fail**.")) == (expected.count(True), expected.count(False))


def test_costs_by_hand(whole: Experiment) -> None:
    row = row_of(tables.cost_table(whole), "PRISM, Gini 50:50")
    # The mean seed takes 1.05 times 65.6 minutes, full RL 1.05 times 120; periodic evaluations are left out.
    assert row["wall time"] == "1.1 h"
    assert row["speed-up, wall"] == f"{120 / 65.6:.2f}× ({120 * 1.05 / (65.6 * 1.1):.2f}–{120 * 1.05 / 65.6:.2f})"
    assert row["speed-up, FLOPs"] == f"{120 / 65.6:.2f}×"
    assert row["choosing, of wall"] == f"{100 * 0.6 / 65.6:.1f} %"
    assert row["to full RL's success, wall"].endswith("× (3 of 3)")
    assert row_of(tables.cost_table(whole), "SFT, all")["to full RL's success, wall"] == "never (0 of 3)"
    total = row_of(tables.ledger_table(whole), "total")
    assert int(total["number"]) == len(whole.stages)


def test_while_training_an_arm_may_have_been_better_than_at_its_end() -> None:
    results = synthetic()
    for place, run in enumerate(results["arms"][5]["runs"]):
        levels = [("sft", 1.0, 0.9), ("rl", 0.0, 0.2), ("rl", 0.5, 0.5 + 0.1 * place), ("rl", 1.0, 0.4)]
        run["curve"] = [{"stage": s, "fraction": f, "success": y, "tasks": 9} for s, f, y in levels]
        run["score"]["unseen"] = [0.0] * 15 * (place + 1) + [0.5] * (60 - 15 * (place + 1))
    row = row_of(tables.training_table(Experiment(results)), "PRISM, Gini 50:50")
    assert (row["before RL"], row["highest (at, of RL)"], row["end"]) == ("20.0", "60.0 (50 %)", "40.0")
    assert row["score 0, all tasks"] == "50.0", "a quarter, a half and three quarters"
    assert "SFT, all" not in tables.training_table(Experiment(results))
    results["arms"] = [arm for arm in results["arms"] if arm["name"] in ("base", "sft")]
    assert tables.training_table(Experiment(results)) == ""


def test_a_probe_that_costs_more_than_it_saves_is_flagged() -> None:
    results = synthetic()
    assert "PRISM, Gini 50:50: in wall time pays (choosing costs 37.8 s, training saves 57.8 min against full RL); in FLOPs" in (
        "\n".join(tables.saving_lines(Experiment(results)))
    )
    for name, stage in results["stages"].items():
        if name.startswith("probe-gini-"):
            stage["wall_seconds"] = 1e5
    text = tables.tables_text(Experiment(results))
    assert "- PRISM, Gini 50:50: in wall time **does not pay** (choosing costs" in text
    assert "against full RL); in FLOPs pays (" in text


def test_one_seed_decides_nothing() -> None:
    experiment = Experiment(synthetic(seeds=1))
    assert "above the base: +" in (text := tables.regime_text(experiment))
    assert "points: not known." in text and "by itself: –; as one of the 4 claims, corrected: –." in text
    assert row_of(tables.claims_table(experiment), "Gini beats a random split")["verdict"] == "one seed: not decided"


def test_times_of_different_machines_are_not_compared() -> None:
    results = synthetic()
    results["machines"] += [{"cpu": "Other", "cores": 64}]
    for name, stage in results["stages"].items():
        stage["machine"] = int(name.startswith("rl-gini-"))
    row = row_of(tables.cost_table(Experiment(results)), "PRISM, Gini 50:50")
    assert (row["speed-up, wall"], row["speed-up, CPU"]) == ("–", "–") and row["speed-up, FLOPs"] != "–"
    assert row_of(tables.cost_table(Experiment(results)), "SFT, all")["speed-up, wall"] != "–"
    assert row["to full RL's success, wall"] == "–" and "× (" in row["to full RL's success, FLOPs"]
    [line] = [line for line in tables.saving_lines(Experiment(results)) if "PRISM, Gini 50:50" in line]
    assert "in wall time" not in line and "in FLOPs pays" in line
    # The same kind of machine with other versions of libraries.
    results["machines"][1] = {**results["machines"][0], "versions": {"gradprism": "0.2.0"}}
    assert row_of(tables.cost_table(Experiment(results)), "PRISM, Gini 50:50")["speed-up, wall"] != "–"
    # What has no use for a GPU does not know of it.
    results["machines"] = [{"cpu": "Xeon", "gpu": "H100"}, {"cpu": "Xeon"}]
    text = tables.tables_text(Experiment(results))
    assert row_of(tables.cost_table(Experiment(results)), "PRISM, Gini 50:50")["speed-up, wall"] != "–"
    assert text.count("Xeon") == 1, "said once"
    results["stages"][next(iter(results["stages"]))]["machine"] = 2
    with pytest.raises(DataError, match="is not among the machines"):
        Experiment(results)


def test_a_gpu_s_time_and_memory_are_shown_where_there_is_one() -> None:
    results = synthetic()
    assert "GPU" not in tables.work_table(Experiment(results))
    for stage in results["stages"].values():
        stage |= {"gpu_seconds": 60.0, "peak_gpu_memory_mib": 7000.0}
    row = row_of(tables.work_table(Experiment(results)), "SFT, all")
    assert row["peak GPU MiB"] == "7000" and row["GPU time"] != "-"


def test_what_was_drawn_by_chance_is_said() -> None:
    results = synthetic()
    for place, run in enumerate(results["arms"][5]["runs"]):
        run["n_rl_by_chance"] = 5 * place
    assert row_of(tables.success_table(Experiment(results), ["gini"], "unseen"), "PRISM, Gini 50:50")["SFT / RL"] == (
        "300 / 300 (0–10 by chance)"
    )
    for run in results["arms"][5]["runs"]:
        run["n_rl_by_chance"] = 0
    assert "chance" not in tables.success_table(Experiment(results), ["gini"], "unseen")


def test_audits_skip_what_is_missing(whole: Experiment) -> None:
    text = tables.audits_text(whole)
    headings, _, gini, cv, kurtosis = cells(text)[:5]
    assert headings[:3] == ["metric", "ρ loss", r"ρ n\_response\_tokens"]
    assert gini == ["gini", "−0.16", "–", "0.31", "0.0041", "0.035"]
    assert (cv[1], kurtosis[1]) == ("−0.20", "–")
    assert "| gini | another context length | 0.95 | 0.90 | 0.99 |" in text
    assert "- **gini**: the score follows | loss" in text
    assert tables.audits_text(Experiment({**synthetic(), "audits": {"gini": {}, "note": "free"}})) == ""


def test_names_from_the_data_do_not_break_a_table() -> None:
    results = synthetic()
    results["arms"][5]["title"] = "a|b_<i>\n"
    table = tables.main_table(Experiment(results))
    assert {line.count(" | ") for line in table.splitlines()} == {5}
    assert r"a\|b\_\<i\>" in table


@pytest.mark.parametrize(
    "missing", ["seeds", "reference_arms", "full_rl_arm", "base_arm", "claims", "sweeps", "audits", "machines"]
)
def test_any_optional_part_may_be_missing(missing: str) -> None:
    results = synthetic(seeds=1)
    del results[missing]
    assert tables.tables_text(Experiment(results))


def test_an_unfinished_experiment_shows_what_is_there() -> None:
    results = synthetic()
    results["arms"] = [arm for arm in results["arms"] if arm["name"] not in ("sft", "grpo", "random")]
    results["arms"][2]["runs"] = results["arms"][2]["runs"][1:]
    results["arms"][2]["runs"][0]["success"].pop("seen")
    experiment = Experiment(results)
    text = tables.tables_text(experiment)
    assert "**Unfinished**, seeds done: PRISM, Gini 50:50 (2 of 3)." in text
    assert row_of(tables.success_table(experiment, ["gini"], "seen"), "PRISM, Gini 50:50")["seeds"] == "1"
    assert "SFT on all is clearly above the base: –: not known." in text
    assert tables.main_table(experiment)
    assert tables.tables_text(Experiment({**results, "arms": []}))


def test_equal_results_give_equal_text() -> None:
    assert tables.tables_text(Experiment(synthetic())) == tables.tables_text(Experiment(synthetic()))


# --- blocks


def test_blocks_are_replaced_in_their_places() -> None:
    text = "a <!-- gradprism: x -->old<!-- /gradprism --> b\n<!-- gradprism: y -->\nold\n<!-- /gradprism -->\n"
    once = pages.replace_block(text, "x", r"1 \g")
    assert once == text.replace(">old<", r">1 \g<")
    table = pages.replace_block(once, "y", "| a |\n| - |\n")
    assert table.endswith("<!-- gradprism: y -->\n\n| a |\n| - |\n\n<!-- /gradprism -->\n")
    assert pages.replace_block(table, "y", "| a |\n| - |\n") == table
    with pytest.raises(DataError, match="no block 'z'"):
        pages.replace_block(text, "z", "")


def block(name: str) -> str:
    return f"<!-- gradprism: {name} -->?<!-- /gradprism -->"


def test_inline_numbers_are_those_of_the_tables(whole: Experiment) -> None:
    names = [
        "success gini",
        "success gini seen",
        "difference gini random",
        "speedup gini",
        "speedup-flops gini",
        "detectable",
        "score gini",
    ]
    filled = pages.fill_blocks("\n".join(f"x {block(name)}" for name in names), whole, "README.md")
    shown = re.findall("-->(.*?)<!--", filled)
    assert re.fullmatch(r"\d+\.\d % \[\d+\.\d, \d+\.\d\]", shown[0])
    assert shown[0].replace(" %", "") == tables.percent(whole.mean("gini"))
    assert shown[1].replace(" %", "") == tables.percent(whole.mean("gini", "seen"))
    assert shown[2] == f"{tables.points(whole.difference('gini', 'random'))} points"
    assert shown[3].startswith("1.83× (")
    assert shown[4] == "1.83×"
    assert re.fullmatch(r"\d+\.\d points", shown[5])
    assert shown[6] == tables.percent(whole.mean("gini", what="score"))


def test_a_prefix_leaves_other_experiments_alone(whole: Experiment) -> None:
    text = block("alfworld-mini main") + block("webshop-mini main") + block("anything")
    filled = pages.fill_blocks(text, whole, "README.md", prefix="alfworld-mini")
    assert filled.endswith(block("webshop-mini main") + block("anything"))
    assert "PRISM, Gini" in filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (block("sucess gini"), r"R\.md: no block is called 'sucess gini'"),
        (block("success"), "no block is called 'success'"),
        (block("success gino"), "block 'success gino': no 'gino' in results.json; it has base, sft"),
        (block("success gini train"), "no 'train' in results.json; it has unseen, seen"),
        ("<!-- gradprism: main --> …", "block 'main' does not end"),
    ],
)
def test_wrong_blocks_are_named(whole: Experiment, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pages.fill_blocks(text, whole, "R.md")


# --- files


def test_what_is_written_is_current_until_something_changes(folder: Path) -> None:
    (folder / "README.md").write_text(f"# Mini\n\n{block('main')}\n\nGini: {block('success gini')}.\n")
    assert set(pages.tables_are_current(folder)) == {"tables.md", "README.md", *(f"{name}.svg" for name in figures.FIGURES)}
    written = pages.write_tables(folder)
    assert {path.name for path in written} == {"tables.md", "README.md", *(f"{name}.svg" for name in figures.FIGURES)}
    assert pages.tables_are_current(folder) == []
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    pages.write_tables(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    with open(folder / "tables.md", "a") as file:
        file.write("by hand")
    svg = (folder / "cost.svg").read_text()
    (folder / "cost.svg").write_text(svg.replace("</svg>", "<g/></svg>"))
    assert pages.tables_are_current(folder) == ["tables.md", "cost.svg"]
    # Another version of matplotlib draws in other bytes, which says nothing of the data.
    (folder / "cost.svg").write_text(re.sub(r"Matplotlib v[\d.]+", "Matplotlib v3.0.0", svg))
    assert pages.tables_are_current(folder) == ["tables.md"]

    results = synthetic()
    del results["sweeps"]
    (folder / "results.json").write_text(json.dumps(results))
    assert {"sweeps.svg", "tables.md"} <= set(pages.tables_are_current(folder))
    assert folder / "sweeps.svg" not in pages.write_tables(folder)
    assert not (folder / "sweeps.svg").exists()
    assert pages.tables_are_current(folder) == []


def test_figures_carry_the_names_of_arms_and_no_date(whole: Experiment) -> None:
    drawn = figures.draw_figures(whole)
    assert list(drawn) == ["success.svg", "sweeps.svg", "cost.svg", "curves.svg"]
    for svg in drawn.values():
        assert figures.drawn_by(svg) == figures.matplotlib_version()
        assert "<dc:date>" not in svg
        assert not re.search(r"[ \t]$", svg, flags=re.MULTILINE)


def test_a_wrong_block_leaves_everything_as_it_was(folder: Path) -> None:
    (folder / "README.md").write_text(block("nonsense"))
    with pytest.raises(DataError, match="nonsense"):
        pages.write_tables(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "results.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {}}, r"results\.json: arms: Input should be a valid list"),
        ({"tasks": {}}, "tasks: Dictionary should have at least 1 item"),
        ({"stages": {"probe": {"kind": "probe", "wall_seconds": -1.0}}}, r"stages\.probe\.wall_seconds: Input should be greater"),
    ],
)
def test_wrong_sections_are_named(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "results.json").write_text(json.dumps(synthetic() | change))
    with pytest.raises(DataError, match=message) as caught:
        read_experiment(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("success", {"unseen": "01"}, "arm 'gini', seed 0: 'unseen' has 2 results, tasks 60"),
        ("success", {"unseen": "x" * 60}, r"arms\.5\.runs\.0\.success\.unseen: String should match"),
        ("success", {"train": "01"}, "'train' has 2 results, tasks 0"),
        ("score", {"unseen": [1.0]}, "'unseen' has 1 results, tasks 60"),
        ("stages", ["rl-absent"], "stage 'rl-absent' is not among the stages"),
        ("seed", 1, "arm 'gini' has two runs of one seed"),
    ],
)
def test_runs_that_do_not_fit_are_named(key: str, value: Any, message: str) -> None:
    results = synthetic()
    results["arms"][5]["runs"][0][key] = value
    with pytest.raises(DataError, match=message):
        Experiment(results)


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"holds no results\.json; .*gradprism experiment"):
        read_experiment(tmp_path)
    with pytest.raises(MissingFileError, match="no such folder"):
        read_experiment(tmp_path / "absent")
