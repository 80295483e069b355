"""Each rule of the choice, on findings that are made up."""

import pytest

from gradprism.advice.choice import RL, SFT, choose, rule_trials, shown_rules, verdict, weigh
from gradprism.advice.evidence import Arm, Contrast, Experiment, Rule, Span, Way
from gradprism.advice.pass_rates import Start
from gradprism.reporting.checks import Check

BOTH = Way(sft="all", rl="all")
HALVES = Way(sft="routed", rl="routed", rl_share=0.5)
GINI, RANDOM = Rule(policy="concentration"), Rule(policy="random")


def span(mean, half=0.0):
    return Span(mean=mean, low=mean - half, high=mean + half)


def contrast(first, second, mean, p=1.0, half=0.5):
    return Contrast(first=first, second=second, difference=span(mean, half), p=p, comparisons=1, detectable=0.1)


def experiment(successes, flops=None, rules=(), base=0.1, met=True, name="made-up", ways=()):
    """An experiment of arms by their ways' successes, and arms by Gini with (difference, p) to the random halves."""
    flops = flops or {SFT: 0.2, RL: 0.9, BOTH: 1.0, HALVES: 0.5}
    arms = [
        Arm(name=str(way), way=way, rule=RANDOM if way.splits else None, seeds=3, success=span(s), flops=span(flops[way]))
        for way, s in successes.items()
    ]
    ruled = [Arm(name=f"rule {i}", way=HALVES, rule=rule, seeds=3, success=span(0.5)) for i, (rule, *_) in enumerate(rules)]
    return Experiment(
        name=name,
        environment="made-up",
        model="tiny",
        parameters=1000,
        trajectories=10,
        tasks=10,
        base=span(base),
        arms=(*arms, *ruled),
        ways=ways,
        rules=tuple(contrast(f"rule {i}", str(HALVES), mean, p) for i, (_, mean, p) in enumerate(rules)),
        bars=(Check(met, "RL gains"),),
    )


def begin(success, varying=None, scores=None, at_least=False, half=0.01):
    spans = [None if share is None else span(share, half) for share in (varying, scores)]
    return Start(
        tasks=100,
        of_tasks=100,
        fewest_episodes=8,
        most_episodes=8,
        success=span(success, half),
        group_size=8,
        varying=spans[0],
        varying_scores=spans[1],
        at_least=at_least,
    )


SEEN = experiment({SFT: 0.6, RL: 0.8, BOTH: 0.9, HALVES: 0.84})


def test_pass_rates_decide_by_their_whole_interval():
    assert verdict(None) == "unknown"
    assert [verdict(begin(s, 0.5)) for s in (0.01, 0.045, 0.3, 0.795, 0.9)] == ["weak", "between", "between", "between", "strong"]
    assert verdict(begin(0.5, 0.01)) == "flat" and verdict(begin(0.5, 0.01, at_least=True)) == "between"
    assert verdict(begin(0.5, 0.01, scores=0.5)) == "between" and verdict(begin(0.5)) == "between"
    assert verdict(begin(0.01, 0.01, scores=0.5)) == "graded" and verdict(begin(0.01, 0.01, scores=0.01)) == "weak"


def test_nothing_to_play_leaves_sft_alone():
    for found in ([SEEN], []):
        assert choose(found, begin(0.9, 0.5), True, "price", {}).way == SFT


def test_success_or_price():
    assert choose([SEEN], None, False, "success", {}).way == BOTH
    assert choose([SEEN], None, False, "price", {}).way == HALVES  # 0.74 of 0.8 gained, at half of the price
    dear = experiment({SFT: 0.6, RL: 0.8, BOTH: 0.9, HALVES: 0.7})
    assert choose([dear], None, False, "price", {}).way == BOTH


def test_ways_are_weighed_over_all_experiments_that_have_them():
    other = experiment({SFT: 0.5, BOTH: 0.6}, base=0.1, name="other")
    found = weigh([SEEN, other], {})
    assert [one.way for one in found] == [SFT, BOTH]  # the cheapest first
    assert [one.kept for one in found] == pytest.approx([(0.5 / 0.8 + 0.4 / 0.5) / 2, 1])
    assert weigh([], {}) == ()
    assert [one.kept for one in weigh([experiment({SFT: 0.1, BOTH: 0.1})], {})] == [0, 0]


def test_a_weak_or_flat_base_is_not_sent_to_rl_alone():
    best_alone = experiment({SFT: 0.5, RL: 0.9, BOTH: 0.8})
    assert choose([best_alone], begin(0.3, 0.5), False, "success", {}).way == RL
    assert choose([best_alone], begin(0.01, 0.01), False, "success", {}).way == BOTH
    assert choose([best_alone], begin(0.5, 0.01), False, "success", {}).way == BOTH
    assert choose([best_alone], begin(0.01, 0.01, scores=0.5), False, "success", {}).way == RL


def test_a_strong_base_needs_little_sft_and_a_perfect_one_nothing():
    assert choose([SEEN], begin(0.9, 0.4), False, "success", {}).way == RL
    assert choose([SEEN], begin(0.98, 0.01), False, "success", {}).way is None


def test_a_base_that_wins_all_has_something_to_learn_where_scores_vary():
    assert choose([SEEN], begin(0.95, 0.01, scores=0.5), False, "success", {}).way == RL
    assert choose([SEEN], begin(0.95, 0.01, scores=0.01), False, "success", {}).way is None


def test_experiments_in_which_rl_did_not_work_say_nothing():
    silent = experiment({SFT: 0.6, BOTH: 0.9}, met=False, rules=((GINI, 0.5, 0.001),))
    unknown = silent.model_copy(update={"bars": (Check(None, "not known"),)})
    for found in (silent, unknown):
        chosen = choose([found], None, False, "success", {})
        assert (chosen.way, chosen.ways, rule_trials([found])) == (None, (), [])


def test_a_rule_needs_a_corrected_p_and_no_experiment_against_it():
    def rule(*findings):
        found = [experiment({HALVES: 0.5}, rules=each, name=str(i)) for i, each in enumerate(findings)]
        return shown_rules(rule_trials(found)).get(HALVES)

    other = Rule(policy="inverse")
    assert rule([(GINI, 0.3, 0.06)]) is None and rule([(GINI, -0.3, 0.01)]) is None
    assert rule([(GINI, 0.3, 0.04)]) == GINI
    assert rule([(GINI, 0.3, 0.04), (other, 0.4, 0.01)]) == other
    assert rule([(GINI, 0.3, 0.04)], [(GINI, 0.0, 1.0)]) == GINI
    assert rule([(GINI, 0.3, 0.04)], [(GINI, -0.3, 0.04)]) is None
    assert shown_rules([]) == {}


def test_a_way_that_splits_by_a_shown_rule_counts_as_that_rule_s_arm():
    found = experiment({BOTH: 0.7, HALVES: 0.5}, rules=((GINI, 0.3, 0.01),))
    ruled = [arm.model_copy(update={"success": span(0.8)}) if arm.rule == GINI else arm for arm in found.arms]
    found = found.model_copy(update={"arms": tuple(ruled)})
    assert choose([found], None, False, "success", {}).way == BOTH
    assert choose([found], None, False, "success", {HALVES: GINI}).way == HALVES
    other = found.model_copy(update={"arms": tuple(arm for arm in found.arms if arm.rule != GINI), "rules": ()})
    assert [one.kept for one in weigh([other], {HALVES: GINI})] == pytest.approx([0.4 / 0.6, 1])  # which has no such arm


def test_ways_below_the_base_are_weighed_too():
    worse = experiment({SFT: 0.05, RL: 0.9, BOTH: 0.02})
    for prefer in ("success", "price"):
        assert choose([worse], begin(0.01, 0.01), False, prefer, {}).way == SFT
