"""Directions of gradients: cosines to a target set, and the diversity of sets, by sketches."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gradprism as gp
from gradprism.probing.api import probe as probe_corpus
from gradprism.probing.norms import BY_PRODUCTS
from gradprism.probing.pass_scores import SKETCH_SIDE
from gradprism.probing.prober import Prober
from gradprism.probing.result import Probe
from gradprism.routing.directions import diversity, target_cosines
from gradprism.runtime.errors import ConfigError, DataError
from helpers.cli import assert_refused
from helpers.families import family_model, random_trajectory, reference_gradients
from helpers.probes import COUNT, make_probe
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer

WIDTH = SKETCH_SIDE**2


def sketches(n=COUNT, seed=0):
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


@pytest.fixture
def probes(tmp_path):
    """Two probe folders of one model, with sketches of a common direction."""
    common = 2 * sketches(1, 9)
    for seed, name in enumerate(("probe", "target")):
        make_probe(
            tmp_path / name, scores={"sketch": sketches(seed=seed) + np.linspace(-1, 1, COUNT, dtype=np.float32)[:, None] * common}
        )
    return tmp_path / "probe", tmp_path / "target"


def slow_diversity(x):
    x = x.astype(np.float64)
    cosines = [[float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)) for b in x] for a in x]
    values = np.linalg.eigvalsh(np.array(cosines) / len(x))
    return math.exp(-sum(v * math.log(v) for v in values if v > 1e-15))


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 7)), elements=st.floats(-9, 9, width=16)), st.floats(0.1, 9)
)
@settings(deadline=None)
def test_diversity_is_that_of_the_cosines_whatever_the_sizes(x, scale):
    x = x[np.abs(x).max(axis=1) > 1e-2]
    if not len(x):
        assert diversity(x) is None
        return
    found = diversity(x)
    assert found is not None and found == pytest.approx(slow_diversity(x), rel=1e-6)
    assert 1 - 1e-9 <= found <= min(x.shape) + 1e-9
    assert found == pytest.approx(diversity(np.concatenate([x * np.float32(scale), -x, np.zeros_like(x)])), rel=1e-4)


def test_diversity_of_equals_and_of_orthogonal_ones():
    assert diversity(np.ones((5, 3))) == pytest.approx(1)
    assert diversity(np.eye(4)) == pytest.approx(4)
    assert diversity(np.zeros((3, 2))) is None and diversity(np.empty((0, 2))) is None


def test_cosines_are_those_to_the_target_s_mean(probes):
    probe, target = map(Probe.load, probes)
    mean = target.pass_scores("sketch").astype(np.float64).mean(axis=0)
    expected = [row @ mean / np.linalg.norm(row) / np.linalg.norm(mean) for row in probe.pass_scores("sketch").astype(np.float64)]
    np.testing.assert_allclose(target_cosines(probe, target), expected, rtol=1e-6)


def test_trajectories_are_routed_and_audited_by_a_target(probes):
    probe, target = probes
    routes = gp.route(probe, policy="target", target=target)
    cosines = target_cosines(*map(Probe.load, probes))
    np.testing.assert_array_equal(routes.frame["target_cosine"].to_numpy(), cosines)
    np.testing.assert_array_equal(routes.frame["score"].to_numpy(), cosines)
    assert routes.routing.target_sha256 == Probe.load(target).manifest.fingerprint
    found = gp.audit(probe, policy="target", target=target)
    assert found.scores is not None and "target_cosine" in found.scores.scores
    stored, to_rl = Probe.load(probe).pass_scores("sketch"), (routes.frame["route"] == "rl").to_numpy()
    assert found.diversity == {"all": diversity(stored), "sft": diversity(stored[~to_rl]), "rl": diversity(stored[to_rl])}
    assert "Directions that gradients are spread over (Vendi score): all " in str(found)


def test_what_cannot_be_compared_is_told(probes, tmp_path):
    probe, target = map(Probe.load, probes)
    make_probe(tmp_path / "other", manifest={"weights_sha256": "other"}, scores={"sketch": sketches()})
    with pytest.raises(DataError, match="its weights_sha256 are not those of"):
        target_cosines(probe, Probe.load(tmp_path / "other"))
    make_probe(tmp_path / "plain")
    with pytest.raises(ConfigError, match="sketch: the probe has not measured it"):
        target_cosines(probe, Probe.load(tmp_path / "plain"))
    assert gp.audit(tmp_path / "plain").diversity == {}
    empty = sketches()
    empty[4] = 0
    make_probe(tmp_path / "empty", scores={"sketch": empty})
    with pytest.raises(DataError, match=r"trajectory '.*': its gradient is zero or not finite"):
        target_cosines(Probe.load(tmp_path / "empty"), target)
    make_probe(tmp_path / "zero", scores={"sketch": np.zeros_like(empty)})
    with pytest.raises(DataError, match="its mean gradient is zero or not finite"):
        target_cosines(probe, Probe.load(tmp_path / "zero"))
    with pytest.raises(ConfigError, match="policy target: needs a target; give --target"):
        gp.route(probe, policy="target")
    with pytest.raises(ConfigError, match="compare: a target's direction is of one model"):
        gp.audit(probe, policy="target", target=target, compare=target)


def test_the_commands_take_a_target(cli, probes, tmp_path):
    probe, target = probes
    assert cli("route", probe, "--policy", "target", "--target", target, "--out", tmp_path / "route")[0] == 0
    assert "target_cosine" in gp.Routes.load(tmp_path / "route").frame.columns
    code, text, _ = cli("audit", probe, "--policy", "target", "--target", target)
    assert code == 0 and "target_cosine" in text
    assert_refused(cli("route", probe, "--policy", "target", "--out", tmp_path / "no"), "policy target: needs a target")


def test_sketches_of_real_gradients_have_their_cosines():
    # The bound of docs/audit.md at its worst, where one matrix has nearly all, is 0.36; these have 14 or 28 of unequal norms.
    rng = np.random.default_rng(0)
    model = family_model("llama", 60, hidden=64, layers=4)
    trajectories = [random_trajectory(rng, 60, int(length)) for length in rng.integers(8, 60, 24)]
    found = Prober(model, costs=BY_PRODUCTS, scores=["sketch"]).probe(trajectories).scores["sketch"].astype(np.float64)
    dense = [reference_gradients("llama", model, trajectory)[1] for trajectory in trajectories]
    gradients = np.stack([np.concatenate([G.flatten().numpy() for G in of_units.values()]) for of_units in dense])
    shares = np.square([[float(G.norm()) for G in of_units.values()] for of_units in dense])
    shares /= shares.sum(axis=1, keepdims=True)
    bound = np.sqrt((4 / SKETCH_SIDE + 4 / WIDTH) * (shares @ shares.T) + 2 / WIDTH)

    def cosines(x):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return unit @ unit.T

    error = (cosines(found) - cosines(gradients)) / bound
    apart = error[~np.eye(len(error), dtype=bool)]
    assert np.sqrt(np.mean(apart**2)) < 1 and np.abs(apart).max() < 4


def test_a_target_of_the_corpus_s_own_kind_is_nearest_to_itself(tmp_path):
    model, corpus = tiny_qwen3(len(tiny_tokenizer())), sample_trajectories(8)
    probe = probe_corpus(model, tiny_tokenizer(), corpus, scores="sketch")
    target = probe_corpus(model, tiny_tokenizer(), corpus[3:4], scores="sketch")
    cosines = target_cosines(probe, target)
    assert cosines.argmax() == 3 and cosines[3] == pytest.approx(1, abs=1e-4)
