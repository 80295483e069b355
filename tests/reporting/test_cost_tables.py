"""What the tables say of costs and of training, by hand, from a synthetic `results.json`."""

import pytest

from gradprism.reporting import cost_tables
from gradprism.reporting.document import markdown
from gradprism.reporting.pages import document
from gradprism.runtime.errors import DataError
from helpers.experiments import comparison, row_of, synthetic


def test_costs_by_hand() -> None:
    whole = comparison()
    row = row_of(cost_tables.cost_table(whole), "PRISM, Gini 50:50")
    # The mean seed takes 1.05 times 65.6 minutes, full RL 1.05 times 120; periodic evaluations are left out.
    assert row["wall time"] == "1.1 h"
    assert row["speed-up, wall"] == f"{120 / 65.6:.2f}× ({120 * 1.05 / (65.6 * 1.1):.2f}–{120 * 1.05 / 65.6:.2f})"
    assert row["speed-up, FLOPs"] == f"{120 / 65.6:.2f}×"
    assert row["choosing, of wall"] == f"{100 * 0.6 / 65.6:.1f} %"
    assert row["to full RL's success, wall"].endswith("× (3 of 3)")
    assert row_of(cost_tables.cost_table(whole), "SFT, all")["to full RL's success, wall"] == "never (0 of 3)"
    total = row_of(cost_tables.ledger_table(whole), "total")
    assert int(total["number"]) == len(whole.results.stages)


def test_while_training_an_arm_may_have_been_better_than_at_its_end() -> None:
    results = synthetic()
    for place, run in enumerate(results["arms"][5]["runs"]):
        levels = [("sft", 1.0, 0.9), ("rl", 0.0, 0.2), ("rl", 0.5, 0.5 + 0.1 * place), ("rl", 1.0, 0.4)]
        run["curve"] = [{"stage": s, "fraction": f, "success": y, "tasks": 9} for s, f, y in levels]
        run["score"]["unseen"] = [0.0] * 15 * (place + 1) + [0.5] * (60 - 15 * (place + 1))
    row = row_of(cost_tables.training_table(comparison(results)), "PRISM, Gini 50:50")
    assert (row["before RL"], row["highest (at, of RL)"], row["end"]) == ("20.0", "60.0 (50 %)", "40.0")
    assert row["score 0, all tasks"] == "50.0", "a quarter, a half and three quarters"
    assert "SFT, all" not in str(cost_tables.training_table(comparison(results)))
    results["arms"] = [arm for arm in results["arms"] if arm["name"] in ("base", "sft")]
    assert cost_tables.training_table(comparison(results)) is None


def test_a_probe_that_costs_more_than_it_saves_is_flagged() -> None:
    results = synthetic()
    assert "PRISM, Gini 50:50: in wall time pays (choosing costs 37.8 s, training saves 57.8 min against full RL); in FLOPs" in (
        "\n".join(cost_tables.saving_lines(comparison(results)))
    )
    for name, stage in results["stages"].items():
        if name.startswith("probe-gini-"):
            stage["wall_seconds"] = 1e5
    text = markdown(document(comparison(results)))
    assert "- PRISM, Gini 50:50: in wall time **does not pay** (choosing costs" in text
    assert "against full RL); in FLOPs pays (" in text


def test_times_of_different_machines_are_not_compared() -> None:
    results = synthetic()
    results["machines"] += [{"cpu": "Other", "cores": 64}]
    for name, stage in results["stages"].items():
        stage["machine"] = int(name.startswith("rl-gini-"))
    row = row_of(cost_tables.cost_table(comparison(results)), "PRISM, Gini 50:50")
    assert (row["speed-up, wall"], row["speed-up, CPU"]) == ("–", "–") and row["speed-up, FLOPs"] != "–"
    assert row_of(cost_tables.cost_table(comparison(results)), "SFT, all")["speed-up, wall"] != "–"
    assert row["to full RL's success, wall"] == "–" and "× (" in row["to full RL's success, FLOPs"]
    [line] = [line for line in cost_tables.saving_lines(comparison(results)) if "PRISM, Gini 50:50" in line]
    assert "in wall time" not in line and "in FLOPs pays" in line
    # The same kind of machine with other versions of libraries.
    results["machines"][1] = {**results["machines"][0], "versions": {"gradprism": "0.2.0"}}
    assert row_of(cost_tables.cost_table(comparison(results)), "PRISM, Gini 50:50")["speed-up, wall"] != "–"
    # What has no use for a GPU does not know of it.
    results["machines"] = [{"cpu": "Xeon", "gpu": "H100"}, {"cpu": "Xeon"}]
    text = markdown(document(comparison(results)))
    assert row_of(cost_tables.cost_table(comparison(results)), "PRISM, Gini 50:50")["speed-up, wall"] != "–"
    assert text.count("Xeon") == 1, "said once"
    results["stages"][next(iter(results["stages"]))]["machine"] = 2
    with pytest.raises(DataError, match="is not among the machines"):
        comparison(results)


def test_a_gpu_s_time_and_memory_are_shown_where_there_is_one() -> None:
    results = synthetic()
    assert "GPU" not in str(cost_tables.work_table(comparison(results)))
    for stage in results["stages"].values():
        stage |= {"gpu_seconds": 60.0, "peak_gpu_memory_mib": 7000.0}
    row = row_of(cost_tables.work_table(comparison(results)), "SFT, all")
    assert row["peak GPU MiB"] == "7000" and row["GPU time"] != "-"
