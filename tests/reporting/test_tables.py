"""An experiment's tables and figures, rebuilt from a synthetic `results.json`, also while arms and seeds are missing."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gradprism.evaluation.summary import wilson_interval
from gradprism.experiments.comparison import Comparison
from gradprism.experiments.comparison import Tested as OfClaim  # which pytest would take for a test
from gradprism.experiments.power import detectable
from gradprism.experiments.results import Power, read_results
from gradprism.experiments.statistics import Interval, holm
from gradprism.reporting import checks, figures, numbers, pages, tables
from gradprism.reporting.document import markdown
from gradprism.runtime.errors import DataError, MissingFileError
from helpers.experiments import cells, comparison, row_of, synthetic


@pytest.fixture(scope="module")
def whole() -> Comparison:
    return comparison()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(synthetic()))
    return tmp_path


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
    assert numbers.points(interval) == text


@pytest.mark.parametrize(("p", "text"), [(0.00005, "<0.001"), (0.0314, "0.031"), (0.0999, "0.10"), (1.0, "1.00"), (None, "–")])
def test_p_values(p: float | None, text: str) -> None:
    assert numbers.p_value(p) == text


def test_success_is_the_mean_over_seeds_and_tasks_by_type(whole: Comparison) -> None:
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
    found = comparison(results).mean("gini")
    assert found is not None and (found.mean, found.low, found.high) == (pytest.approx(2 / 3), 0.0, 1.0)


def test_a_score_that_is_not_the_success_gets_a_column() -> None:
    results = synthetic()
    for arm in results["arms"]:
        for run in arm["runs"]:
            run["score"]["unseen"] = [0.5] * 60
    experiment = comparison(results)
    assert row_of(tables.success_table(experiment, ["gini"], "unseen"), "PRISM, Gini 50:50")["score"] == "50.0 [46.7, 53.3]"
    assert "score" not in cells(tables.success_table(experiment, ["gini"], "seen"))[0]


def test_episodes_that_were_cut_short_get_a_column_where_they_are_known() -> None:
    results = synthetic()
    for n, run in enumerate(results["arms"][5]["runs"]):
        run["ends"] = {"unseen": {"out_of_steps": 20 + n, "cut_by_context": n, "failures": 0}}
    experiment = comparison(results)
    table = tables.success_table(experiment, ["base", "gini"], "unseen")
    assert [row_of(table, name)[tables.ENDS] for name in ("Base", "PRISM, Gini 50:50")] == ["–", "21 / 1 / 0"]
    assert tables.ENDS not in cells(tables.success_table(experiment, ["gini"], "seen"))[0]


def test_every_arm_is_compared_with_each_reference_but_itself(whole: Comparison) -> None:
    headings, _, *rows = cells(tables.difference_table(whole, whole.of_group("table1"), "unseen"))
    p_values = ["p, these models", "p, any trainings"]
    assert headings == [
        "arm",
        "difference to Random 50:50 (points)",
        *p_values,
        "difference to SFT then RL, 100:100 (points)",
        *p_values,
    ]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["Random 50:50"][:3] == ["–", "–", "–"]
    assert by_name["SFT then RL, 100:100"][3:] == ["–", "–", "–"]
    assert by_name["PRISM, Gini 50:50"][0] == numbers.points(whole.difference("gini", "random"))
    assert by_name["Base"][1] == "<0.001"


def test_claims_are_judged_by_the_p_of_any_trainings(whole: Comparison) -> None:
    row = row_of(tables.claims_table(whole), "Gini beats a random split")
    claims = [(c["better"], c["worse"]) for c in synthetic()["claims"]]
    of_trainings = [whole.training_p(*pair) for pair in claims]
    assert of_trainings.count(None) == 1, "Gini beats CV is not measured, and counts all the same"
    assert row["p, any trainings"] == numbers.p_value(holm([1.0 if p is None else p for p in of_trainings])[0])
    of_models = [whole.p(*pair) for pair in claims]
    assert row["p, these models"] == numbers.p_value(holm([1.0 if p is None else p for p in of_models])[0])
    unmeasured = row_of(tables.claims_table(whole), "Gini beats CV")
    assert (unmeasured["verdict"], unmeasured["p, any trainings"], unmeasured["seeds"]) == ("not measured yet", "–", "0")


ABOVE, BELOW = Interval(0.1, 0.01, 0.2, 0.05, 2), Interval(-0.1, -0.2, -0.01, 0.05, 2)


@pytest.mark.parametrize(
    ("difference", "p", "detectable", "more", "said"),
    [
        (ABOVE, 0.06, 0.178, {}, "cannot be told (17.8 points detectable)"),  # clear by itself, not among so many
        (BELOW, 0.06, 0.178, {}, "cannot be told (17.8 points detectable)"),
        (BELOW, 0.06, 1.2, {}, "cannot be told (nothing detectable)"),
        (ABOVE, 0.04, 0.178, {}, "**holds**"),
        (BELOW, 0.04, 0.178, {}, "**does not hold**"),
        (ABOVE, None, None, {"seeds": 1}, "cannot be told (one seed)"),
        (ABOVE, None, None, {}, "cannot be told (one task)"),
        (None, None, None, {"seeds": 0}, "no seed in common yet"),
        (None, None, None, {"seeds": 0, "measured": False}, "not measured yet"),
    ],
)
def test_verdicts(difference: Interval | None, p: float | None, detectable: float | None, more: dict[str, Any], said: str) -> None:
    told = OfClaim(difference, None, p, seeds=3, comparisons=4, detectable=detectable, measured=True)
    told = replace(told, **more)
    assert tables.verdict(told) == said


def few_tasks(n: int, gini: str = "1", random: str = "0") -> Comparison:
    """With so many tasks on the main split, all of which the arm of Gini wins, and none the random one."""
    results = synthetic()
    results["tasks"]["unseen"] = results["tasks"]["unseen"][:n]
    for arm in results["arms"]:
        for run in arm["runs"]:
            won = {"gini": gini, "random": random}.get(arm["name"])
            run["success"]["unseen"] = won * n if won else run["success"]["unseen"][:n]
            run["score"]["unseen"] = run["score"]["unseen"][:n]
    return comparison(results)


def test_claims_of_few_tasks_say_why_they_cannot_be_told() -> None:
    one = few_tasks(1)
    assert row_of(tables.claims_table(one), "Gini beats a random split")["verdict"] == "cannot be told (one task)"
    assert one.detectable() is None and one.detectable(4) is None and one.detectable_between("gini", "random") is None
    five = row_of(tables.claims_table(few_tasks(5)), "Gini beats a random split")
    assert five["verdict"].startswith("cannot be told (") and five["difference (points)"].startswith("+100.0 [")
    hopeless = few_tasks(30, gini="0")
    assert hopeless.training_p("gini", "random") == 1.0
    found, least = hopeless.mean("gini"), hopeless.detectable_between("gini", "random")
    assert found is not None and (found.low, found.high) == pytest.approx(wilson_interval(0, 30))
    assert least is not None and least > 0.1


def test_arms_without_a_seed_in_common_are_told_so() -> None:
    results = synthetic()
    arms = {arm["name"]: arm for arm in results["arms"]}
    arms["gini"]["runs"], arms["random"]["runs"] = arms["gini"]["runs"][:1], arms["random"]["runs"][1:]
    row = row_of(tables.claims_table(comparison(results)), "Gini beats a random split")
    assert (row["verdict"], row["seeds"]) == ("no seed in common yet", "0")


def test_a_family_of_one_claim_has_no_more_degrees_than_any_other() -> None:
    results = {**synthetic(), "power": {}}
    results["claims"] = [{**results["claims"][0], "family": "main"}]
    found = comparison(results)
    others = ("random", "sft-then-rl")
    pairs = [(arm, other) for other in others for arm in found.of_group("table1") if arm not in ("base", other)]
    intervals = [each for pair in pairs if (each := found.difference(*pair))]
    least = [(stats.t.ppf(0.975, min(i.degrees, 2)) + stats.t.ppf(0.8, min(i.degrees, 2))) * i.standard_error for i in intervals]
    alone, only = found.detectable(), found.detectable(1)
    assert alone and only and only == pytest.approx(np.median(least)) and alone < only
    assert found.tested(found.results.claims)[0].detectable == found.detectable_between("gini", "random", 1)
    assert f"as the one main claim: {100 * only:.1f} points." in checks.regime_text(found)
    before = detectable(Power(), 3, 60, 1)
    assert before and f"as the one main claim {100 * before.in_family:.1f} points were expected" in checks.power_found(found)


def test_claims_are_corrected_within_their_families() -> None:
    results = {**synthetic(), "power": {"seed_sd": 0.04, "task_sd": 0.2, "success": 0.4}}
    for claim, family in zip(results["claims"], ("main", "main", "further", "further"), strict=True):
        claim["family"] = family
    found = comparison(results)
    rows = cells(tables.claims_table(found))
    assert rows[0][-1] == "family" and [row[-1] for row in rows[2:]] == ["main", "main", "further", "further"]
    main = [p for claim in results["claims"][:2] if (p := found.training_p(claim["better"], claim["worse"])) is not None]
    assert [row[4] for row in rows[2:4]] == [numbers.p_value(p) for p in holm(main)]
    alone = found.training_p("sft", "grpo")
    assert alone and rows[4][4] == numbers.p_value(2 * alone), "the only one of two that is measured"
    text = checks.power_found(found)
    before = detectable(Power(seed_sd=0.04, task_sd=0.2, success=0.4), 3, 60, 2)
    assert before and f"as one of 2 main claims {100 * before.in_family:.1f} points were expected" in text
    assert text in markdown(pages.document(found))
    assert "as one of the 2 main claims, corrected: " in checks.regime_text(found)


def test_what_a_claim_could_have_detected_is_by_its_own_spread(whole: Comparison) -> None:
    found = whole.difference("gini", "random")
    assert found is not None
    degrees = min(found.degrees, 2)
    expected = (stats.t.ppf(1 - 0.05 / 4 / 2, degrees) + stats.t.ppf(0.8, degrees)) * found.standard_error
    assert whole.detectable_between("gini", "random", 4) == pytest.approx(expected)
    assert comparison(synthetic(seeds=1)).detectable_between("gini", "random", 4) is None


def sampled(attempts: int = 4, n: int = 20) -> dict[str, Any]:
    """With the arm of Gini sampled, of which task t is won in t of so many attempts, more or less by the seed."""
    results = synthetic()
    results["evaluations"] = [{"name": "hot", "temperature": 1.0, "attempts": attempts, "splits": {"unseen": n}}]
    for run in results["arms"][5]["runs"]:
        won = [[k < (task + run["seed"]) % (attempts + 1) for k in range(attempts)] for task in range(n)]
        stage = f"evaluate-hot-{run['seed']}"
        results["stages"][stage] = {"kind": "evaluate"}
        success = {"unseen": "".join("01"[k] for task in won for k in task)}
        run["sampled"] = {"hot": {"stage": stage, "success": success, "score": {"unseen": [sum(task) / attempts for task in won]}}}
    return results


def with_losses(seeds: int = 3) -> dict[str, Any]:
    """With held-out losses of the base, SFT, and two of the seeds of a random split."""
    results = synthetic(seeds)
    levels = {"base": [1.5], "sft": [1.0, 1.1, 1.3], "random": [1.2, 1.25]}
    for arm in results["arms"]:
        for run, loss in zip(arm["runs"], levels.get(arm["name"], []), strict=False):
            stage = f"held-out-loss-{arm['name']}-{run['seed']}"
            results["stages"][stage] = {"kind": "held-out-loss", "wall_seconds": 5.0}
            run["held_out"] = {"stage": stage, "loss": loss, "tokens": 1234, "trajectories": 40}
    return results


def test_held_out_losses_have_intervals_over_seeds_and_differences_paired_by_seed() -> None:
    found = comparison(with_losses())
    headings, _, *rows = cells(tables.held_out_table(found))
    assert headings == ["arm", "seeds", "loss (nats per token)", "difference to Random 50:50 (nats)"]
    half = stats.t.ppf(0.975, 2) * stats.sem([1.0, 1.1, 1.3])
    of_pairs = [1.0 - 1.2, 1.1 - 1.25]
    more = stats.t.ppf(0.975, 1) * stats.sem(of_pairs)
    mean, less = sum([1.0, 1.1, 1.3]) / 3, sum(of_pairs) / 2
    expected = [f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]", f"{less:.3f} [{less - more:.3f}, +{less + more:.3f}]"]
    sft = [cell.replace("−", "-") for cell in rows[1][2:]]
    assert rows[1][:2] == ["SFT, all", "3"] and sft == [expected[0], expected[1].replace("+", "")]
    assert rows[0][:3] == ["Base", "1", "1.500"] and rows[0][3].startswith("+0.275 ["), "paired with either seed of the other"
    assert rows[2][:2] == ["Random 50:50", "2"] and rows[2][3] == "–" and len(rows) == 3
    text = markdown(pages.document(found))
    assert "## Held-out loss" in text and "1,234 response tokens of 40 demonstrations" in text
    assert "| held-out-loss | 6 | 30.0 s |" in text, "what it cost is told"
    filled = pages.fill_blocks("x " + block("held-out-loss sft") + block("held-out-difference sft random"), found, "R.md")
    shown = [one.replace("−", "-") for one in re.findall("gradprism: .*? -->(.*?)<!--", filled)]
    assert shown == [expected[0].replace(" [", " nats [", 1), expected[1].replace("+", "") + " nats"]
    assert markdown([tables.held_out_table(found) or ""]).strip() in pages.fill_blocks(block("held-out"), found, "R.md")


def test_without_a_held_out_loss_nothing_is_told_of_it(whole: Comparison) -> None:
    assert tables.held_out_table(whole) is None and "Held-out" not in markdown(pages.document(whole))
    filled = pages.fill_blocks(block("held-out") + block("held-out-loss sft") + block("held-out-difference sft random"), whole, "R")
    assert re.findall("gradprism: .*? -->(.*?)<!--", filled) == ["", "–", "–"]


def test_a_held_out_loss_of_one_seed_has_no_interval() -> None:
    found = comparison(with_losses(1))
    headings, _, base, sft, *_ = cells(tables.held_out_table(found))
    assert "seeds" not in headings and base[1:] == ["1.500", "+0.300"] and sft[1:] == ["1.000", "−0.200"]


def test_held_out_losses_are_of_the_same_demonstrations_and_of_stages_that_are_there() -> None:
    for key, value, message in (
        ("tokens", 1235, "held-out losses are of other demonstrations from run to run"),
        ("stage", "held-out-loss-x", "arm 'sft', seed 0: stage 'held-out-loss-x' is not among the stages"),
        ("loss", -1.0, r"held_out\.loss: Input should be greater than or equal to 0"),
    ):
        results = with_losses()
        results["arms"][1]["runs"][0]["held_out"][key] = value
        with pytest.raises(DataError, match=message):
            comparison(results)


AT_1 = "at 1, difference to Random 50:50 (points)"


def test_sampled_differences_are_of_the_seeds_that_both_have() -> None:
    results = sampled()
    arms = {arm["name"]: arm for arm in results["arms"]}
    for place, run in enumerate(arms["random"]["runs"][1:]):
        won = "".join("1" if (task + place) % 3 else "0" for task in range(20) for _ in range(4))
        results["stages"][f"cold-{place}"] = {"kind": "evaluate"}
        run["sampled"] = {"hot": {"stage": f"cold-{place}", "success": {"unseen": won}, "score": {"unseen": [0.5] * 20}}}
    experiment = comparison(results)
    of = {
        name: {run["seed"]: run["sampled"]["hot"]["success"]["unseen"] for run in arms[name]["runs"] if "sampled" in run}
        for name in ("gini", "random")
    }
    both = sorted(of["gini"].keys() & of["random"].keys())
    slow = sum(of["gini"][seed].count("1") - of["random"][seed].count("1") for seed in both) / (80 * len(both))
    found = experiment.sampled_difference("gini", "random", "hot")
    assert len(both) == 2 and found is not None and found.mean == pytest.approx(slow)
    row = row_of(tables.sampled_table(experiment), "PRISM, Gini 50:50")
    assert row[AT_1] == numbers.points(found)
    filled = pages.fill_blocks(block("sampled-difference gini random hot"), experiment, "README.md")
    assert f"{numbers.points(found)} points" in filled
    assert experiment.sampled_difference("base", "random", "hot") is None


def test_a_share_s_interval_stays_within_it() -> None:
    results = sampled()
    for run, won in zip(results["arms"][5]["runs"], "101", strict=True):
        run["sampled"]["hot"]["success"]["unseen"] = won * 80
    found = comparison(results).sampled_mean("gini", "hot")
    assert found is not None and (found.low, found.high) == (0.0, 1.0)


def test_sampled_answers_stand_beside_greedy_ones_on_the_same_tasks() -> None:
    results = sampled()
    experiment = comparison(results)
    headings, _, *rows = cells(tables.sampled_table(experiment))
    assert headings == ["arm", "seeds", "greedy (20)", "at 1", "at 1 less greedy (points)", "pass@4 at 1", AT_1]
    [row] = rows
    runs = results["arms"][5]["runs"]
    greedy = [int(run["success"]["unseen"][t]) for run in runs for t in range(20)]
    hot = [run["sampled"]["hot"]["success"]["unseen"][4 * t : 4 * t + 4] for run in runs for t in range(20)]
    share = [each.count("1") / 4 for each in hot]
    assert row[0] == "PRISM, Gini 50:50"
    assert row[2] == f"{100 * sum(greedy) / 60:.1f}" and row[6] == "–" and row[3].startswith(f"{100 * sum(share) / 60:.1f} [")
    assert row[5].startswith(f"{100 * sum('1' in each for each in hot) / 60:.1f} [")
    assert row[4].startswith(numbers.fixed(100 * (sum(share) - sum(greedy)) / 60).replace("−", "−"))
    assert tables.sampled_table(experiment, "seen") is None and tables.sampled_table(comparison()) is None
    assert "## Greedy against sampled" in markdown(pages.document(experiment))
    results["arms"][5]["runs"][0]["sampled"]["hot"]["success"]["unseen"] += "1"
    with pytest.raises(DataError, match="arm 'gini', seed 0: hot of 'unseen' has 81 results and 20 scores of 20 tasks"):
        comparison(results)


def test_pairs_are_of_the_seeds_that_both_have_and_the_base_is_everyones() -> None:
    results = synthetic()
    arms = {arm["name"]: arm for arm in results["arms"]}
    arms["gini"]["runs"] = arms["gini"]["runs"][1:]
    experiment = comparison(results)
    random_, gini = experiment.values("random", "unseen"), experiment.values("gini", "unseen")
    a, b = experiment.pairs("gini", "random", "unseen")
    assert (a == gini).all() and (b == random_[1:]).all() and len(a) == 2
    a, b = experiment.pairs("gini", "base", "unseen")
    assert len(a) == len(b) == 2 and (b == experiment.values("base", "unseen")[0]).all()
    arms["gini"]["runs"][0]["seed"], arms["gini"]["runs"][1]["seed"] = 7, 8
    assert comparison(results).difference("gini", "random") is None


def test_what_was_drawn_by_chance_is_said() -> None:
    results = synthetic()
    for place, run in enumerate(results["arms"][5]["runs"]):
        run["n_rl_by_chance"] = 5 * place
    assert row_of(tables.success_table(comparison(results), ["gini"], "unseen"), "PRISM, Gini 50:50")["SFT / RL"] == (
        "300 / 300 (0–10 by chance)"
    )
    for run in results["arms"][5]["runs"]:
        run["n_rl_by_chance"] = 0
    assert "chance" not in str(tables.success_table(comparison(results), ["gini"], "unseen"))


def test_audits_skip_what_is_missing(whole: Comparison) -> None:
    text = markdown(tables.audit_blocks(whole))
    headings, _, gini, cv, kurtosis = cells(text)[:5]
    assert headings[:3] == ["metric", "ρ loss", r"ρ n\_response\_tokens"]
    assert gini == ["gini", "−0.16", "–", "0.31", "0.0041", "0.035"]
    assert (cv[1], kurtosis[1]) == ("−0.20", "–")
    assert "| gini | another context length | 0.95 | 0.90 | 0.99 |" in text
    assert "- **gini**: the score follows | loss" in text
    assert tables.audit_blocks(comparison({**synthetic(), "audits": {"gini": {}}})) == []


def test_names_from_the_data_do_not_break_a_table() -> None:
    results = synthetic()
    results["arms"][5]["title"] = "a|b_<i>\n"
    table = markdown([tables.main_table(comparison(results))])
    assert {line.count(" | ") for line in table.splitlines()} == {5}
    assert r"a\|b\_\<i\>" in table


@pytest.mark.parametrize(
    "missing", ["seeds", "reference_arms", "full_rl_arm", "base_arm", "claims", "sweeps", "audits", "machines"]
)
def test_any_optional_part_may_be_missing(missing: str) -> None:
    results = synthetic(seeds=1)
    del results[missing]
    assert markdown(pages.document(comparison(results)))


def test_an_unfinished_experiment_shows_what_is_there() -> None:
    results = synthetic()
    results["arms"] = [arm for arm in results["arms"] if arm["name"] not in ("sft", "grpo", "random")]
    results["arms"][2]["runs"] = results["arms"][2]["runs"][1:]
    results["arms"][2]["runs"][0]["success"].pop("seen")
    experiment = comparison(results)
    text = markdown(pages.document(experiment))
    assert "**Unfinished**, seeds done: PRISM, Gini 50:50 (2 of 3)." in text
    assert row_of(tables.success_table(experiment, ["gini"], "seen"), "PRISM, Gini 50:50")["seeds"] == "1"
    assert "RL on everything is at least as good as SFT on everything: – to sft: not known." in text
    assert tables.main_table(experiment)
    assert markdown(pages.document(comparison({**results, "arms": []})))


def test_equal_results_give_equal_text() -> None:
    assert markdown(pages.document(comparison())) == markdown(pages.document(comparison()))


# --- blocks


def block(name: str) -> str:
    return f"<!-- gradprism: {name} -->?<!-- /gradprism -->"


def test_blocks_are_replaced_in_their_places(whole: Comparison) -> None:
    text = f"a {block('detectable')} b\n{block('main')} c\n"
    filled = pages.fill_blocks(text, whole, "R.md")
    assert filled.startswith(f"a <!-- gradprism: detectable -->{checks.detectable_text(whole)}<!-- /gradprism --> b\n")
    table = markdown([tables.main_table(whole)]).strip()
    assert filled.endswith(f"<!-- gradprism: main -->\n\n{table}\n\n<!-- /gradprism --> c\n"), "Markdown wants blank lines"
    assert pages.fill_blocks(filled, whole, "R.md") == filled


def test_inline_numbers_are_those_of_the_tables() -> None:
    whole = comparison(sampled())
    names = [
        "success gini",
        "success gini seen",
        "difference gini random",
        "speedup gini",
        "speedup-flops gini",
        "detectable",
        "score gini",
        "sampled-success gini hot",
        "pass-at-k gini hot",
    ]
    filled = pages.fill_blocks("\n".join(f"x {block(name)}" for name in names), whole, "README.md")
    shown = re.findall("-->(.*?)<!--", filled)
    assert re.fullmatch(r"\d+\.\d % \[\d+\.\d, \d+\.\d\]", shown[0])
    assert shown[0].replace(" %", "") == numbers.percent(whole.mean("gini"))
    assert shown[1].replace(" %", "") == numbers.percent(whole.mean("gini", "seen"))
    assert shown[2] == f"{numbers.points(whole.difference('gini', 'random'))} points"
    assert shown[3].startswith("1.83× (")
    assert shown[4] == "1.83×"
    assert re.fullmatch(r"\d+\.\d points", shown[5])
    assert shown[6] == numbers.percent(whole.mean("gini", what="score"))
    assert shown[7] == numbers.percent(whole.sampled_mean("gini", "hot"), " %")
    assert shown[8] == numbers.percent(whole.sampled_mean("gini", "hot", any_attempt=True), " %")
    with pytest.raises(DataError, match=r"block 'pass-at-k gini cold': no 'cold' in results\.json; it has hot"):
        pages.fill_blocks(block("pass-at-k gini cold"), whole, "README.md")


def test_what_a_claim_detects_stands_as_in_the_table_of_claims(whole: Comparison) -> None:
    claims = whole.results.claims
    said = [(c, row[1]) for c, row in zip(claims, tables.claims_table(whole).rows, strict=True) if "detectable" in row[1]]
    assert said
    for claim, words in said:
        shown = pages.fill_blocks(block(f"claim-detectable {claim.better} {claim.worse}"), whole, "README.md")
        assert f">{words.removeprefix('cannot be told (').removesuffix(' detectable)')}<" in shown
    with pytest.raises(DataError, match=r"R\.md: block 'claim-detectable random gini': no claim .* says that random beats gini"):
        pages.fill_blocks(block("claim-detectable random gini"), whole, "R.md")


def test_a_prefix_leaves_other_experiments_alone(whole: Comparison) -> None:
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
def test_wrong_blocks_are_named(whole: Comparison, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pages.fill_blocks(text, whole, "R.md")


# --- files

FOUR = ["success", "sweeps", "cost", "curves"]


def test_what_is_written_is_current_until_something_changes(folder: Path) -> None:
    (folder / "README.md").write_text(f"# Mini\n\n{block('main')}\n\nGini: {block('success gini')}.\n")
    assert set(pages.tables_are_current(folder)) == {"tables.md", "README.md", *(f"{name}.svg" for name in FOUR)}
    written = pages.write_tables(folder)
    assert {path.name for path in written} == {"tables.md", "README.md", *(f"{name}.svg" for name in FOUR)}
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


def test_figures_carry_the_names_of_arms_and_no_date(whole: Comparison) -> None:
    drawn = figures.draw_figures(whole)
    assert list(drawn) == FOUR
    for svg in drawn.values():
        assert not figures.drawn_elsewhere(svg)
        assert "<dc:date>" not in svg
        assert not re.search(r"[ \t]$", svg, flags=re.MULTILINE)


def test_a_page_may_show_results_of_the_folders_beside_it(folder: Path) -> None:
    for name, file in (("other", "results.json"), ("success", "results.json"), ("gains", "gain.json")):
        (folder.parent / name).mkdir()
        shutil.copy(folder / "results.json", folder.parent / name / file)
    theirs, gains, own = block("other success gini"), block("gains rho sft loss gini"), block("success gini")
    (folder / "README.md").write_text(f"{theirs} {gains} {own}")
    pages.write_tables(folder)
    kept = (folder / "README.md").read_text()
    assert theirs in kept and gains in kept and own not in kept, (
        "theirs wait for them; a folder that is called as a block is hides none"
    )
    pages.fill_page(folder.parent / "other", folder / "README.md")
    assert theirs not in (folder / "README.md").read_text() and pages.tables_are_current(folder) == []
    (folder / "README.md").write_text(block("nowhere success gini"))
    with pytest.raises(DataError, match="'nowhere' is no folder of results beside this one"):
        pages.write_tables(folder)
    (folder / "README.md").write_text(block(f"{folder.name} success gini"))
    with pytest.raises(DataError, match="no block is called"):
        pages.write_tables(folder)
    (folder / "README.md").write_text(f"<!-- gradprism: other success gini-->2 {block('success gini')}")
    with pytest.raises(DataError, match="the marker of block 'other success gini' does not end"):
        pages.write_tables(folder)


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
        read_results(folder)
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
        comparison(results)


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"holds no results\.json; .*gradprism experiment"):
        read_results(tmp_path)
    with pytest.raises(MissingFileError, match="no such folder"):
        read_results(tmp_path / "absent")


def test_named_parts_of_the_score_have_a_table_where_any_run_tells_of_them(whole: Comparison) -> None:
    assert tables.parts_table(whole, ["base", "gini"], "unseen") is None
    results = synthetic()
    [gini] = [arm for arm in results["arms"] if arm["name"] == "gini"]
    gini["runs"][0]["parts"] = {"unseen": {"ending": 0.25, "name": 1.0}}
    gini["runs"][1]["parts"] = {"unseen": {"ending": 0.5}}
    told = comparison(results)
    table = tables.parts_table(told, ["base", "gini"], "unseen")
    assert cells(table)[2:] == [["Base", "–", "–"], ["PRISM, Gini 50:50", "37.5", "100.0"]]
    assert "Parts of the score" in markdown(pages.document(told))
    assert "| PRISM, Gini 50:50 | 37.5 | 100.0 |" in pages.fill_blocks(block("parts"), told, "README.md")
    assert "37.5" not in pages.fill_blocks(block("parts"), whole, "README.md")
