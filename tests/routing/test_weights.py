"""Weights in place of sides, against a slow reference, and through files, exports and loaders."""

import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradprism.concentration import gini
from gradprism.exporting import verl_sft
from gradprism.exporting.registry import export
from gradprism.exporting.sft_rows import SftRows
from gradprism.probing.result import Probe
from gradprism.routing.routes import Routes
from gradprism.routing.routes import route as route_probe
from gradprism.routing.weights import Weighting, sides_of
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.trajectories.corpus import canonical_line, load_corpus
from helpers.cli import assert_refused
from helpers.probes import COUNT, make_probe

scores_of_ties = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7]), min_size=1, max_size=30)


def weighting(form="linear", temperature=None) -> Weighting:
    made = Weighting.of(form, temperature)
    assert made is not None
    return made


def by_hand(scores, temperature=None):
    """Of each score: how many are below it and half of its equals, over n."""
    found = []
    for score in scores:
        rank = (sum(other < score for other in scores) + scores.count(score) / 2) / len(scores)
        found.append(rank if temperature is None else 1 / (1 + math.exp((0.5 - rank) / temperature)))
    return found


@settings(deadline=None)
@given(scores_of_ties, st.sampled_from([None, 0.05, 0.1, 1.0, 100.0]))
def test_weights_follow_the_rank(scores, temperature):
    rl = weighting("linear" if temperature is None else "logistic", temperature).of_rl(np.array(scores))
    np.testing.assert_allclose(rl, by_hand(scores, temperature), atol=1e-12)
    assert ((rl >= 0) & (rl <= 1)).all()
    sides = sides_of(1 - rl, rl)
    assert [side in ("sft", "both") for side in sides] == (1 - rl > 0).tolist()
    assert [side in ("rl", "both") for side in sides] == (rl > 0).tolist() and "none" not in sides


def test_cold_weights_are_the_split_at_the_median(tmp_path):
    make_probe(tmp_path / "probe")
    cold = route_probe(tmp_path / "probe", weights="logistic", temperature=1e-4)
    halves = route_probe(tmp_path / "probe")
    is_median = cold.frame["rank"].to_numpy() == (COUNT + 1) / 2  # whose two weights are halves
    assert cold.frame.filter(~is_median)["route"].equals(halves.frame.filter(~is_median)["route"])
    assert cold.frame.filter(is_median)["route"].to_list() == ["both"]
    assert cold.audit().split_by == halves.audit().split_by


def test_weights_are_in_the_table_the_sets_and_what_reads_them(cli, tmp_path):
    score = gini(make_probe(tmp_path / "probe"))
    code, out, err = cli("route", tmp_path / "probe", "--out", tmp_path / "route", "--weights", "linear")
    assert (code, err) == (0, "") and "21 to SFT, 21 to RL, 21 to both; concentration of gini, linear weights" in out
    made, expected = Routes.load(tmp_path / "route"), by_hand(score.tolist())
    np.testing.assert_allclose(made.frame["rl_weight"], expected)
    np.testing.assert_allclose(made.frame["sft_weight"] + made.frame["rl_weight"], 1)
    sft = [json.loads(line) for line in (tmp_path / "route" / "sft.jsonl").read_text().splitlines()]
    rl = [json.loads(line) for line in (tmp_path / "route" / "rl.jsonl").read_text().splitlines()]
    assert [row["weight"] for row in sft] == made.frame["sft_weight"].to_list()
    assert [row["weight"] for row in rl] == made.frame["rl_weight"].to_list()
    in_memory = route_probe(tmp_path / "probe", weights="linear")
    assert (made.sft, made.rl) == (in_memory.sft, in_memory.rl)
    assert [t.weight for t in made.sft] == made.frame["sft_weight"].to_list()
    data = made.to_datasets()
    assert list(data["sft"]["weight"]) == [t.weight for t in made.sft] and list(load_corpus(data["sft"])) == made.sft
    assert [line + b"\n" for line in (tmp_path / "route" / "sft.jsonl").read_bytes().splitlines()] == list(
        map(canonical_line, made.sft)
    )
    assert made.audit().warnings == tuple(w for w in route_probe(tmp_path / "probe").audit().warnings if "standard error" not in w)


def test_an_override_has_its_whole_weight_on_its_side(tmp_path):
    make_probe(tmp_path / "probe")
    routes = route_probe(tmp_path / "probe", weights="logistic")
    assert "logistic weights of temperature 0.1" in str(routes.routing)
    ids = routes.frame["id"].to_list()
    moved = (
        routes.override(ids[0], "sft", "x").override(ids[1], "rl", "x").override(ids[2], "both", "x").override(ids[3], "none", "x")
    )
    pairs = list(zip(moved.frame["sft_weight"], moved.frame["rl_weight"], strict=True))
    assert pairs[:4] == [(1, 0), (0, 1), (0.5, 0.5), (0, 0)]
    assert pairs[4:] == list(zip(routes.frame["sft_weight"], routes.frame["rl_weight"], strict=True))[4:]
    assert (moved.routing.n_sft, moved.routing.n_rl, moved.routing.n_both, moved.routing.n_none) == (19, 19, 18, 1)
    assert [t.id for t in moved.sft] == [ids[0], ids[2], *ids[4:]] and [t.id for t in moved.rl] == ids[1:3] + ids[4:]
    back = moved.override(ids[:4], None)
    assert back.frame.equals(routes.frame) and back.routing == routes.routing


def test_weights_of_the_corpus_and_of_the_route_are_multiplied(tmp_path):
    make_probe(tmp_path / "probe", manifest={})
    routes = route_probe(tmp_path / "probe", weights="linear")
    assert all(t.weight == w for t, w in zip(routes.sft, routes.frame["sft_weight"], strict=True)), "the corpus has none"
    line = canonical_line(routes.sft[3])
    [read] = load_corpus([json.loads(line)])
    assert read == routes.sft[3]


@pytest.mark.parametrize("bad", [-1, "much", True, float("nan")])
def test_a_record_whose_weight_is_none(bad):
    record = {"id": "a", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "weight": bad}
    with pytest.raises(DataError, match=r"'weight' is .*, expected a number of 0 or more"):
        list(load_corpus([record]))


def test_trainers_that_know_no_weights_are_refused_them(tmp_path):
    make_probe(tmp_path / "probe")
    routes = route_probe(tmp_path / "probe", weights="linear")
    for name in ("trl", "axolotl", "llamafactory", "openrlhf", "prime-rl", "skyrl", "nemo-rl", "tinker"):
        with pytest.raises(DataError, match=r"has weight 0\.\d+, and .* trains on all rows alike"):
            export(routes, name, tmp_path / name)
    with pytest.raises(DataError, match=r"has weight 0\.\d+, and verl trains on all rows alike"):
        SftRows.read(routes, verl_sft.READER)
    swift = export(routes, "ms-swift", tmp_path / "swift")
    assert any("is a column that ms-swift hands on and does not draw by" in line for line in swift.warnings)
    assert any("set --is_binary_loss_scale false" in line for line in swift.warnings)
    rows = [json.loads(line) for line in (tmp_path / "swift" / "sft.jsonl").read_text().splitlines()]
    scales = [{m["loss_scale"] for m in row["messages"] if m["role"] == "assistant"} for row in rows]
    assert scales == [{t.weight} for t in routes.sft]
    tasks = [json.loads(line) for line in (tmp_path / "swift" / "rl.jsonl").read_text().splitlines()]
    assert [row["weight"] for row in tasks] == [task.weight for task in routes.rl]
    export(routes, "datasets", tmp_path / "sets")
    from datasets import load_from_disk

    saved = load_from_disk(str(tmp_path / "sets"))
    assert list(load_corpus(saved["sft"])) == routes.sft  # type: ignore[arg-type]
    assert list(saved["rl"]["weight"]) == [task.weight for task in routes.rl]  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--weights", "cubic"), "weights 'cubic': choose from linear, logistic"),
        (("--temperature", "0.2"), "temperature 0.2: is that of logistic weights"),
        (("--weights", "linear", "--temperature", "0.2"), "is that of logistic weights"),
        (("--weights", "logistic", "--temperature", "0"), "temperature 0.0: must be a number above 0"),
        (("--weights", "linear", "--cuts", "0.3", "--sides", "sft,rl"), "take the place of sides"),
        (("--weights", "linear", "--threshold", "0.3"), "take the place of sides"),
        (("--weights", "linear", "--rl-share", "0.3"), "take the place of sides"),
        (("--weights", "linear", "--order", "ascending"), "give weights or an order"),
    ],
)
def test_what_weights_contradict(cli, tmp_path, options, words):
    make_probe(tmp_path / "probe")
    assert_refused(cli("route", tmp_path / "probe", "--out", tmp_path / "x", *options), words)


def test_equal_scores_have_equal_weights(tmp_path):
    make_probe(tmp_path / "probe")
    rates = {t.task.get("id", t.id): 0.5 for t in Probe.load(tmp_path / "probe").trajectories}
    routes = route_probe(tmp_path / "probe", policy="pass_rate", pass_rates=rates, weights="linear")
    assert routes.frame["rl_weight"].to_list() == [0.5] * COUNT
    with pytest.raises(ConfigError, match="weights"):
        route_probe(tmp_path / "probe", weights="none")  # type: ignore[arg-type]
    assert pl.Series(routes.frame["route"]).unique().to_list() == ["both"]
