"""Several cuts, ranks within strata, and norms by their corpus median, each against a slow and obvious reference."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradprism.concentration import gini
from gradprism.exporting.registry import export
from gradprism.probing import scores as probing_scores
from gradprism.probing.result import Probe
from gradprism.routing.routes import Routes
from gradprism.routing.routes import route as route_probe
from gradprism.routing.split import Cut, counts, to_side
from gradprism.routing.strata import rank_within, strata
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.runtime.files import write_jsonl
from gradprism.trajectories.corpus import load_corpus
from helpers.cli import assert_refused
from helpers.probes import COUNT, N, make_probe, measures_table
from helpers.tiny import sample_trajectories

BAND = ("sft", "rl", "none")
few = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 1.0])


@settings(deadline=None)  # the machine may be busy
@given(st.lists(few, min_size=1, max_size=30), st.lists(few, min_size=1, max_size=3, unique=True).map(sorted), st.data())
def test_a_score_belongs_to_the_range_above_the_cuts_that_are_smaller(scores, cuts, data):
    sides = data.draw(st.lists(st.sampled_from(BAND), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    cut, values = Cut.of(cuts, sides), np.array(scores)
    assert cut.route(values).tolist() == [sides[sum(score > number for number in cuts)] for score in scores]
    nearest = [min((score - number for number in cuts), key=abs) for score in scores]
    np.testing.assert_allclose(np.abs(cut.margins(values)), np.abs(nearest))


@pytest.mark.parametrize(
    ("cuts", "sides", "words"),
    [
        ((), ("sft", "rl"), "cuts none: give numbers"),
        ((0.7, 0.1), BAND, r"cuts 0\.7, 0\.1: give numbers on the score's scale, ascending"),
        ((0.1, 0.1), BAND, "ascending"),
        ((0.1, float("nan")), BAND, "give numbers"),
        ((0.1, 0.7), ("sft", "rl"), "sides: 2 given for 2 cuts; name one for each of the 3 ranges, lowest first"),
        ((0.1,), ("sft", "all"), "sides 'all': choose from sft, none, rl, both"),
    ],
)
def test_bad_cuts(cuts, sides, words):
    with pytest.raises(ConfigError, match=words):
        Cut.of(cuts, sides)


def test_a_band_of_pass_rates_leaves_out_what_is_solved(cli, tmp_path):
    make_probe(tmp_path / "probe")
    trajectories = sample_trajectories(COUNT)
    rate = {t.task.get("id", t.id): i % 5 / 4 for i, t in enumerate(trajectories)}
    episodes = tmp_path / "episodes.jsonl"
    write_jsonl(episodes, [{"id": task, "success": k < 4 * share} for task, share in rate.items() for k in range(4)])
    options = ("--policy", "pass_rate", "--pass-rates", episodes, "--cuts", "0.1, 0.7", "--sides", "sft,rl,none")
    code, out, err = cli("route", tmp_path / "probe", "--out", tmp_path / "band", *options)
    sides = ["sft" if share < 0.1 else "rl" if share <= 0.7 else "none" for share in rate.values()]
    n = [sides.count(side) for side in BAND]
    assert (code, err) == (0, "")
    assert f"{n[0]} to SFT, {n[1]} to RL, {n[2]} to neither; pass_rate of gini, cuts 0.1, 0.7 (sft, rl, none)" in out
    made = Routes.load(tmp_path / "band")
    assert made.frame["route"].to_list() == sides
    assert made.frame["score"].to_list() == made.frame["pass_rate"].to_list(), "no equals are drawn apart"
    assert [made.routing.n_sft, made.routing.n_rl, made.routing.n_none] == n
    ids = {side: [t.id for t, its in zip(trajectories, sides, strict=True) if its == side] for side in BAND}
    assert [t.id for t in load_corpus(tmp_path / "band" / "sft.jsonl")] == ids["sft"] == [t.id for t in made.sft]
    lines = (tmp_path / "band" / "rl.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids["rl"] == [task.id for task in made.rl]
    assert made.audit().threshold_standard_error is None
    # In memory, and the other way round.
    reverse = route_probe(tmp_path / "probe", policy="pass_rate", pass_rates=rate, cuts=(0.1, 0.7), sides=("rl", "sft", "none"))
    assert ([t.id for t in reverse.sft], [t.id for t in reverse.rl]) == (ids["rl"], ids["sft"])
    assert "cuts 0.1, 0.7 (rl, sft, none)" in str(reverse.audit())


def test_a_side_that_cuts_leave_empty_is_said(cli, tmp_path):
    make_probe(tmp_path / "probe")
    options = ("--cuts", "8,9", "--sides", "none,rl,sft")
    code, out, _ = cli("route", tmp_path / "probe", "--out", tmp_path / "none", *options)
    assert code == 0 and "all 21 trajectories go to neither: there is nothing to train on" in out
    code, out, _ = cli("route", tmp_path / "probe", "--out", tmp_path / "some", "--cuts", "0.3,9", "--sides", "none,rl,sft")
    assert code == 0 and "of 21 trajectories none goes to SFT" in out
    route = ("route", tmp_path / "probe", "--out", tmp_path / "other")
    assert_refused(cli(*route, "--cuts", "0.1,x"), "--cuts '0.1,x': expected numbers")
    assert_refused(cli(*route, "--cuts", "0.1"), "sides: 0 given for 1 cuts")
    assert_refused(cli(*route, "--sides", "sft,rl"), "cuts none")
    assert_refused(cli(*route, "--cuts", "0.1", "--sides", "sft,rl", "--threshold", "1"), "exclude each other")
    assert_refused(cli(*route, "--cuts", "0.1", "--sides", "sft,rl", "--rl-share", "0.2"), "exclude each other")


@settings(deadline=None)
@given(st.lists(st.tuples(few, st.sampled_from("ab"), st.integers(0, 3)), min_size=1, max_size=25))
def test_ranks_are_among_those_of_the_same_kind(rows):
    kinds = pl.DataFrame({"task_type": [kind for _, kind, _ in rows], "length": [number for *_, number in rows]})
    found = rank_within(np.array([score for score, *_ in rows]), kinds)
    for (score, *kind), rank in zip(rows, found, strict=True):
        same = [other for other, *its in rows if its == kind]
        below, equal = sum(other < score for other in same), same.count(score)
        assert rank == pytest.approx((below + (equal + 1) / 2 - 0.5) / len(same))


def test_each_fifth_of_the_lengths_and_each_task_type_is_halved(cli, tmp_path):
    n = 40
    trajectories = [replace(t, task={"id": t.id, "task_type": "xyz"[i % 3]}) for i, t in enumerate(sample_trajectories(n))]
    make_probe(tmp_path / "probe", trajectories=trajectories)
    made = route_probe(tmp_path / "probe", within=("length",))
    lengths = made.frame["n_response_tokens"].to_numpy()
    kinds = strata(("length",), made.frame, pl.DataFrame())["length"].to_numpy()
    assert set(kinds) == {0, 1, 2, 3, 4}
    for length in lengths:
        assert len(set(kinds[lengths == length])) == 1, "equal lengths lie in one fifth"
    assert all(lengths[kinds == k].max() < lengths[kinds == k + 1].min() for k in range(4))
    to_rl = (made.frame["route"] == "rl").to_numpy()
    for kind in range(5):
        assert to_rl[kinds == kind].sum() == (kinds == kind).sum() // 2
        scores = made.frame["gini"].to_numpy()[kinds == kind]
        assert set(scores[to_rl[kinds == kind]]) == set(sorted(scores)[-int(to_rl[kinds == kind].sum()) :])
    code, out, _ = cli("route", tmp_path / "probe", "--out", tmp_path / "both", "--within", "length", "--within", "task_type")
    assert code == 0 and "concentration of gini within length and task_type, threshold 0.5" in out
    code, out, _ = cli("route", tmp_path / "probe", "--out", tmp_path / "type", "--within", "task_type")
    frame = pl.read_parquet(tmp_path / "type" / "routes.parquet")
    halves = [(frame["route"] == "rl").to_numpy()[k::3].sum() for k in range(3)]
    assert halves == [len(range(k, n, 3)) // 2 for k in range(3)]


def test_strata_that_are_not_there(cli, tmp_path):
    make_probe(tmp_path / "probe")
    route = ("route", tmp_path / "probe", "--out", tmp_path / "out")
    assert_refused(cli(*route, "--within", "colour"), "within 'colour': choose from length, task_type")
    assert_refused(cli(*route, "--within", "length", "--within", "length"), "within length: is given twice")
    one, two = (route_probe(tmp_path / "probe", within=within).frame for within in ("length", ["length"]))
    assert one.equals(two), "a bare string is one name"
    table = measures_table(3)
    with pytest.raises(DataError, match="trajectory 't1': its task names no type"):
        strata(("task_type",), table, pl.DataFrame({"task_type": ["a", None, "b"]}))


@pytest.mark.parametrize("entries", [1 << 26, 3 * COUNT, 1])
def test_norms_by_their_corpus_median_have_the_median_one(cli, tmp_path, monkeypatch, entries):
    monkeypatch.setattr(probing_scores, "_MEDIAN_ENTRIES", entries)
    norms = make_probe(tmp_path / "probe")
    probe = Probe.load(tmp_path / "probe")
    medians = [sorted(norms[:, unit].tolist())[COUNT // 2] for unit in range(N)]
    np.testing.assert_allclose(probe.scores("gini", normalise="per_corpus_median"), gini(norms / np.array(medians)))
    code, _, _ = cli("route", tmp_path / "probe", "--out", tmp_path / "out", "--normalise", "per_corpus_median")
    assert code == 0
    table = pl.read_parquet(tmp_path / "out" / "routes.parquet")
    np.testing.assert_allclose(table["score"], gini(norms / np.array(medians)))


def test_no_matrix_of_one_size_counts_more_for_it(tmp_path):
    """A unit whose norms are all a thousand times as large changes no score."""
    norms = make_probe(tmp_path / "probe")
    make_probe(tmp_path / "larger", change=lambda its: its.__setitem__((slice(None), 3), 1000 * its[:, 3]))
    here, there = (Probe.load(tmp_path / name).scores(normalise="per_corpus_median") for name in ("probe", "larger"))
    np.testing.assert_allclose(here, there, rtol=1e-6)
    assert len(norms) == len(here)


def test_a_matrix_without_gradients_has_no_median_to_divide_by(cli, tmp_path):
    make_probe(tmp_path / "probe", change=lambda norms: norms.__setitem__((slice(0, 15), 2), 0.0))
    refused = cli("route", tmp_path / "probe", "--out", tmp_path / "out", "--normalise", "per_corpus_median")
    assert_refused(refused, "layers.0.2", "half of the corpus has no gradient")


# Both sides, and shares

ANY = ("sft", "rl", "none", "both")
share_lists = st.lists(st.integers(0, 10), min_size=2, max_size=4).filter(sum).map(lambda ns: [n / sum(ns) for n in ns])


def shares_by_hand(scores, shares, sides):
    """Counts from the top: the highest ⌊share·n⌋ of what is above each cut; equals go to the lower range, since none may part."""
    n, found = len(scores), []
    ascending = sorted(scores)
    for score in scores:
        place = 0
        for i in range(1, len(shares)):
            above = int(sum(shares[i:]) * n + 1e-6)
            is_above = above == n or (above > 0 and score > ascending[n - above - 1])
            place = i if is_above else place
        found.append(sides[place])
    return found


@settings(deadline=None)
@given(st.lists(few, min_size=1, max_size=30), share_lists, st.data())
def test_shares_are_those_of_the_trajectories(scores, shares, data):
    sides = data.draw(st.lists(st.sampled_from(ANY), min_size=len(shares), max_size=len(shares)))
    cut = Cut.of_shares(np.array(scores), shares, sides)
    assert cut.route(np.array(scores)).tolist() == shares_by_hand(scores, shares, sides)
    assert list(cut.at) == sorted(cut.at)


@settings(deadline=None)
@given(share_lists, st.integers(1, 40))
def test_of_distinct_scores_every_range_has_its_share_up_to_one(shares, n):
    scores = np.random.default_rng(n).permutation(n).astype(float)
    sides = [str(i) for i in range(len(shares))]
    cut = Cut(Cut.of_shares(scores, shares, ["none"] * len(shares)).at, tuple(sides))  # type: ignore[arg-type]
    found = cut.route(scores).tolist()
    assert all(abs(found.count(side) - share * n) < 1 + 1e-6 for side, share in zip(sides, shares, strict=True))


@settings(deadline=None)
@given(st.lists(st.sampled_from(ANY), min_size=1, max_size=40))
def test_every_trajectory_ends_somewhere_and_is_counted_so(route):
    column = pl.Series(route)
    n, sft, rl = counts(column), to_side(column, "sft"), to_side(column, "rl")
    assert n["n_sft"] == sft.sum() == sum(side in ("sft", "both") for side in route)
    assert n["n_rl"] == rl.sum() == sum(side in ("rl", "both") for side in route)
    assert n["n_sft"] + n["n_rl"] - n["n_both"] + n["n_none"] == len(route)
    assert [bool(a or b) for a, b in zip(sft, rl, strict=True)] == [side != "none" for side in route]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shares": (0.5, 0.4), "sides": ("sft", "rl")}, r"shares 0\.5, 0\.4: give one per side, lowest first, with the sum 1"),
        ({"shares": (1.5, -0.5), "sides": ("sft", "rl")}, "give one per side"),
        ({"shares": (float("nan"), 1), "sides": ("sft", "rl")}, "give one per side"),
        ({"shares": (0.5, 0.5), "sides": ("sft", "both", "rl")}, "sides: 3 given for 2 shares"),
        ({"shares": (0.5, 0.5), "sides": ("sft", "half")}, "sides 'half': choose from"),
        ({"shares": (0.5, 0.5), "sides": ("sft", "rl"), "cuts": (1.0,)}, "give either cuts or shares: shares are of"),
        ({"shares": (0.5, 0.5), "sides": ("sft", "rl"), "threshold": 1.0}, "exclude each other"),
        ({"shares": (0.5, 0.5), "sides": ("sft", "rl"), "rl_share": 0.2}, "exclude each other"),
    ],
)
def test_shares_that_cannot_be(tmp_path, options, words):
    make_probe(tmp_path / "probe")
    with pytest.raises(ConfigError, match=words):
        route_probe(tmp_path / "probe", **options)


def test_what_goes_to_both_is_in_both_sets(cli, tmp_path):
    score = gini(make_probe(tmp_path / "probe"))
    options = ("--shares", "0.4,0.2,0.4", "--sides", "sft,both,rl")
    code, out, err = cli("route", tmp_path / "probe", "--out", tmp_path / "route", *options)
    assert (code, err) == (0, "") and "13 to SFT, 12 to RL, 4 to both; concentration of gini, cuts" in out
    made = Routes.load(tmp_path / "route")
    expected = shares_by_hand(score.tolist(), (0.4, 0.2, 0.4), ("sft", "both", "rl"))
    assert made.frame["route"].to_list() == expected
    assert (made.routing.n_sft, made.routing.n_rl, made.routing.n_both, made.routing.n_none) == (13, 12, 4, 0)
    assert made.routing.threshold_rule == "shares" and made.routing.shares == (0.4, 0.2, 0.4)
    for side, ids in (("sft", [t.id for t in made.sft]), ("rl", [t.id for t in made.rl])):
        assert ids == [id for id, its in zip(made.frame["id"], expected, strict=True) if its in (side, "both")]
    assert made.audit().split_by["loss"].same_side > 0
    # Two shares are the share of RL.
    halves = route_probe(tmp_path / "probe", shares=(0.7, 0.3), sides=("sft", "rl"))
    assert halves.frame.equals(route_probe(tmp_path / "probe", rl_share=0.3).frame)
    moved = made.override(made.rl[0].id, "both", "to see", tmp_path / "probe")
    assert (
        moved.routing.n_overrides == 1 and made.rl[0].id in [t.id for t in moved.sft] and made.rl[0].id in [t.id for t in moved.rl]
    )
    all_both = route_probe(tmp_path / "probe", cuts=(9.0,), sides=("both", "rl"))
    assert [t.id for t in all_both.sft] == [t.id for t in all_both.rl] and len(all_both.sft) == COUNT
    assert "all 21 trajectories go to both: nothing is routed" in str(all_both.audit())
    assert_refused(cli("route", tmp_path / "probe", "--out", tmp_path / "x", "--shares", "a", "--sides", "sft"), "--shares 'a'")


# Order


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_an_order_sorts_both_sets_and_moves_nothing(cli, tmp_path, order):
    score = dict(zip(Probe.load(folder := _probe(tmp_path)).ids, Probe.load(folder).scores(), strict=True))
    plain = route_probe(folder, shares=(0.4, 0.2, 0.4), sides=("sft", "both", "rl"))
    cut = ("--shares", "0.4,0.2,0.4", "--sides", "sft,both,rl")
    code, out, err = cli("route", folder, "--out", tmp_path / "route", *cut, "--order", order)
    assert (code, err) == (0, "") and f", {order} order" in out and "keep it with --order given" in out
    made = Routes.load(tmp_path / "route")
    assert made.frame.equals(plain.frame) and made.routing.order == order
    of_memory = route_probe(folder, shares=(0.4, 0.2, 0.4), sides=("sft", "both", "rl"), order=order)
    for ordered, in_memory, before in ((made.sft, of_memory.sft, plain.sft), (made.rl, of_memory.rl, plain.rl)):
        assert ordered == in_memory
        assert [one.id for one in ordered] == sorted((one.id for one in before), key=score.get, reverse=order == "descending")  # type: ignore[arg-type]
    moved = of_memory.override(made.sft[0].id, "none", "gone", folder)
    assert [t.id for t in moved.sft] == [t.id for t in made.sft[1:]]
    exported = export(tmp_path / "route", "trl", tmp_path / "trl")
    assert any(f"rows are in the {order} order of their scores" in line for line in exported.warnings)
    assert pl.read_parquet(tmp_path / "trl" / "sft.parquet")["id"].to_list() == [t.id for t in made.sft]


def _probe(tmp_path):
    make_probe(tmp_path / "probe")
    return tmp_path / "probe"


def test_an_order_that_there_is_none_of(cli, tmp_path):
    route = ("route", _probe(tmp_path), "--out", tmp_path / "out")
    assert_refused(cli(*route, "--order", "up"), "order 'up': choose from ascending, descending")
