"""The command and its Python face, on probe folders of every kind."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gradprism as gp
from gradprism.advice.evidence import Arm, Contrast, Experiment, Rule, Span, Way, packaged
from gradprism.probing.result import Probe
from gradprism.reporting.checks import Check
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import write_jsonl
from helpers.cli import assert_refused
from helpers.probes import COUNT, make_probe
from helpers.tiny import sample_trajectories


def episodes(path, wins, k=8, tasks=COUNT):
    """`wins` of k episodes of each task are won."""
    write_jsonl(path, [{"id": f"sample-{i:04d}", "success": j < wins} for i in range(tasks) for j in range(k)])
    return path


@pytest.fixture
def probe(tmp_path):
    make_probe(tmp_path / "probe")
    return tmp_path / "probe"


def test_the_text_begins_with_the_advice_and_its_certainty(cli, probe):
    code, out, err = cli("advise", probe)
    found = gp.advise(probe)
    lines = out.splitlines()
    assert (code, err) == (0, "") and lines[:2] == [found.recommendation, f"Certainty: {found.certainty}"]
    assert [line for line in lines if line in ("Why", "What would change it", "Next, what decides most first")] == [
        "Why",
        "What would change it",
        "Next, what decides most first",
    ]
    assert found.start is None and "Pass rates: not known" in out and f"--tasks {probe}/corpus.jsonl" in out
    assert "not known; they are of" in out


def test_json_is_the_value(cli, probe):
    code, out, err = cli("advise", probe, "--prefer", "price", "--json")
    assert (code, err) == (0, "") and json.loads(out) == gp.advise(probe, prefer="price").to_json()


def test_a_way_that_splits_has_a_rule_and_others_none(probe):
    for prefer in ("success", "price"):
        found = gp.advise(probe, prefer=prefer)
        assert (found.rule is not None) == bool(found.way and found.way.splits)
        if found.rule and not any(contrast.shown > 0 for one in packaged() for contrast in one.rules):
            assert found.rule == Rule(policy="random")


def test_pass_rates_of_all_tasks_or_of_some(cli, probe, tmp_path):
    weak = gp.advise(probe, pass_rates=episodes(tmp_path / "weak.jsonl", 0))
    assert weak.start and weak.start.success.high < 0.05  # 168 episodes lost
    assert weak.way is None or weak.way.sft != "none"
    assert any("SFT first" in reason for reason in weak.reasons)
    strong = gp.advise(probe, pass_rates=episodes(tmp_path / "strong.jsonl", 7))
    assert strong.way and strong.way.sft == "none" and any("SFT has little to add" in reason for reason in strong.reasons)
    solved = gp.advise(probe, pass_rates=episodes(tmp_path / "solved.jsonl", 8))
    assert solved.way is None and solved.recommendation.startswith("Neither")
    some = gp.advise(probe, pass_rates=episodes(tmp_path / "some.jsonl", 1, k=4, tasks=5))
    assert some.start and (some.start.tasks, some.start.of_tasks, some.start.at_least) == (5, COUNT, True)
    assert any("at least" in reason for reason in some.reasons) and any("pass rates" in line for line in some.next)
    bad = episodes(tmp_path / "bad.jsonl", 1)
    bad.write_text(bad.read_text().replace("sample-", "other-"))
    assert_refused(cli("advise", probe, "--pass-rates", bad), str(bad), "none of the corpus's 21 tasks")


def test_without_task_names_or_an_environment_only_sft_is_left(cli, probe, tmp_path):
    make_probe(tmp_path / "nameless", trajectories=[replace(t, task={}) for t in sample_trajectories(5)])
    nameless = gp.advise(tmp_path / "nameless", pass_rates=episodes(tmp_path / "e.jsonl", 4, tasks=5))
    code, out, _ = cli("advise", probe, "--no-env", "--json")
    for found in (nameless.to_json(), json.loads(out)):
        assert found["way"]["rl"] == "none" and found["recommendation"].startswith("SFT on everything")
    assert code == 0 and "None of the 5 trajectories names a task" in "\n".join(nameless.reasons) and nameless.start is None


def test_rl_plays_only_what_names_a_task(tmp_path):
    some = [t if i % 3 else replace(t, task={}) for i, t in enumerate(sample_trajectories(9))]
    make_probe(tmp_path / "some", trajectories=some)
    found = gp.advise(tmp_path / "some")
    assert (found.corpus.trajectories, found.corpus.named, found.corpus.tasks) == (9, 6, 6)
    assert "only the 6 of 9 trajectories" in found.recommendation


def test_an_environment_is_asked_which_tasks_it_knows(cli, tmp_path):
    environment = gp.make_environment("dialogue")
    known = environment.tasks("train", 4)
    foreign = {"env": "dialogue", "id": "train/none"}
    tasks = [known[i % 4].reference() if i < 6 else foreign if i < 8 else {} for i in range(9)]
    make_probe(
        tmp_path / "some", trajectories=[replace(t, task=task) for t, task in zip(sample_trajectories(9), tasks, strict=True)]
    )
    asked = gp.advise(tmp_path / "some", environment=environment)
    found = asked.corpus
    assert (found.trajectories, found.named, found.tasks, found.environment, found.known) == (9, 8, 4, "dialogue", 6)
    assert "only the 6 of 9 trajectories whose task dialogue knows" in asked.recommendation
    assert asked.reasons[0].startswith(
        "Environment dialogue knows the tasks of 6 of 9 trajectories, 4 in all; not that of 'sample-0006': "
    )
    unasked = gp.advise(tmp_path / "some")
    assert (unasked.corpus.known, unasked.corpus.tasks) == (None, 5) and "was not checked: --env NAME" in unasked.reasons[0]
    other = gp.advise(tmp_path / "some", environment=gp.make_environment("stories", fluency="none"))
    assert other.corpus.known == 0 and other.recommendation.startswith("SFT on everything")
    code, out, _ = cli("advise", tmp_path / "some", "--env", "stories", "--env-option", "fluency=none")
    assert code == 0 and out.startswith("SFT on everything") and "stories knows the tasks of 0 of 9 trajectories" in out


def test_one_trajectory_is_enough_for_an_answer(tmp_path):
    make_probe(tmp_path / "one", trajectories=sample_trajectories(1))
    found = gp.advise(tmp_path / "one")
    assert found.corpus.trajectories == 1 and found.scores[0].own is None and str(found)
    assert "Audit of gini: the same for all 1 trajectories, so that it splits nothing." in found.reasons


def test_scores_that_are_not_defined_are_told(tmp_path):
    def change(norms):
        norms[3] = 0

    make_probe(tmp_path / "probe", change=change)
    found = gp.advise(tmp_path / "probe")
    assert (found.scores[0].undefined, found.scores[0].first_undefined) == (1, "sample-0003")
    assert any("not defined for 1 of 21" in reason for reason in found.reasons)


def halves_are_best(rule, p):
    """An experiment that shows a rule for halves with this corrected p."""
    halves = Way(sft="routed", rl="routed", rl_share=0.5)
    success = Span(mean=0.5, low=0.4, high=0.6)
    gain = Contrast(
        first="ruled",
        second="random",
        difference=Span(mean=0.2, low=0.1, high=0.3),
        p=p,
        comparisons=3,
        detectable=0.1,
    )
    return Experiment(
        name="made-up",
        environment="made-up",
        model=None,
        parameters=None,
        trajectories=None,
        tasks=9,
        base=Span(mean=0.1, low=0, high=0.2),
        arms=(
            Arm(name="random", way=halves, rule=Rule(policy="random"), seeds=3, success=success),
            Arm(name="ruled", way=halves, rule=rule, seeds=3, success=success),
        ),
        ways=(),
        rules=(gain,),
        bars=(Check(True, "RL gains"),),
    )


def test_a_rule_is_advised_where_it_is_shown_and_the_own_audit_has_nothing_against_it(probe, tmp_path, monkeypatch):
    rule = Rule(policy="inverse", metric="cv", normalise="per_parameter")
    make_probe(tmp_path / "other", change=lambda norms: norms.__imul__(np.random.default_rng(1).random(norms.shape)))
    make_probe(tmp_path / "many", trajectories=sample_trajectories(200))

    def advice(folder, p=0.01, rule=rule, **options):
        monkeypatch.setattr("gradprism.advice.advise.packaged", lambda: (halves_are_best(rule, p),))
        return gp.advise(folder, **options)

    shown = advice(tmp_path / "many")
    assert (shown.rule, shown.scores[1].metric, shown.scores[1].doubts) == (rule, "cv", ())
    assert "split by low cv (per_parameter)" in shown.recommendation
    assert any(
        "low cv (per_parameter) against a random split" in reason and "p 0.010, 10 points detectable" in reason
        for reason in shown.reasons
    )
    assert advice(tmp_path / "many", p=0.06).rule == Rule(policy="random")

    doubted = advice(probe, compare=tmp_path / "other")
    [rho] = doubted.scores[1].stability.values()
    assert rho is not None and rho < 0.9 and f"ρ {rho:.2f}" in " ".join(doubted.scores[1].doubts)
    assert doubted.rule == Rule(policy="random") and "split at random" in doubted.recommendation
    assert any("is not advised here" in reason for reason in doubted.reasons) and f"ρ {rho:.2f}" in str(doubted)
    assert not any("same probe in another dtype" in line for line in doubted.next)
    other = Rule(policy="pass_rate")  # which goes by no score of the audit
    assert advice(probe, rule=other, compare=tmp_path / "other").rule == other


def test_nothing_is_advised_where_no_experiment_speaks(probe, monkeypatch):
    monkeypatch.setattr("gradprism.advice.advise.packaged", lambda: ())
    found = gp.advise(probe)
    assert (found.way, found.rule, found.certainty) == (None, None, "none.") and found.recommendation.startswith(
        "No share is advised"
    )


def test_the_price_of_pass_rates_is_that_of_their_episodes(cli, tmp_path, monkeypatch):
    corpus = list(itertools.islice(gp.load_corpus(gp.shipped("alfworld-quickstart.jsonl")), 3))
    make_probe(tmp_path / "probe", trajectories=corpus, manifest={"model": str(gp.shipped("alfworld-tiny"))})
    asked = {}

    def estimate(model, renderer, environment, tasks, config, machine):
        asked.update(model=model, tasks=[task.id for task in tasks])
        return {"rollout hours": gp.Figure(0.5, "h", ""), "episodes": gp.Figure(100, "", "")}

    monkeypatch.setattr(gp, "estimate_rl", estimate)
    code, out, err = cli("advise", tmp_path / "probe", "--env", "alfworld")
    assert (code, err) == (0, "")
    assert "pass rates, 3 tasks × 8 episodes, about 7.2 min" in out  # 18 s each
    assert "--model shipped:alfworld-tiny" in out
    assert asked["tasks"] == [trajectory.task["id"] for trajectory in corpus]
    assert_refused(cli("advise", tmp_path / "probe", "--env", "alfworld", "--no-env"), "exclude each other")


def test_own_experiments_count_beside_those_of_the_package_and_before_those_of_their_name(cli, probe, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("results.json", "config.json"):
        values = json.loads((Path("results/webshop-mini") / name).read_text())
        (own / name).write_text(json.dumps({**values, "name": "mine"}))
    names = [one.name for one in packaged()]
    found = gp.advise(probe, results=own)
    assert [one.name for one in found.experiments] == ["mine", *names]
    assert any(reason.startswith("mine, success") for reason in found.reasons)
    again = gp.advise(probe, results=["results/webshop-mini"])
    assert [one.name for one in again.experiments] == ["webshop-mini", *(name for name in names if name != "webshop-mini")]
    assert_refused(cli("advise", probe, "--results", tmp_path / "nothing"), str(tmp_path / "nothing"))


def test_wrong_choices_are_one_line(cli, probe, tmp_path):
    assert_refused(cli("advise", probe, "--prefer", "luck"), "prefer 'luck': choose success or price")
    assert_refused(cli("advise", tmp_path / "no"), "no such folder")
    assert_refused(cli("advise", probe, "--metric", "nope"), "nope")
    assert_refused(cli("advise", probe, "--group-size", "1"), "--group-size")
    with pytest.raises(ConfigError, match="group size 0"):
        gp.advise(Probe.load(probe), group_size=0)
