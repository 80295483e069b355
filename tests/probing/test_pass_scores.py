"""Scores of the pass in a probe folder: asked for, stored, resumed, merged, ranked by."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import gradprism as gp
from gradprism.probing.api import probe as probe_corpus
from gradprism.probing.folder import ProbeFolder
from gradprism.probing.manifest import ProbeManifest
from gradprism.probing.pass_scores import PASS_SCORES, RANKING, SKETCH_SIDE, ranked_by
from gradprism.probing.prepared import Prepared
from gradprism.probing.prober import Prober
from gradprism.probing.result import Probe
from gradprism.probing.scores import View
from gradprism.probing.work import ProbeOptions, Share, do_share
from gradprism.routing.stability import score_table
from gradprism.runtime.errors import ConfigError, DataError, FolderInUseError
from gradprism.runtime.files import sha256_json
from gradprism.trajectories.corpus import write_messages_jsonl
from helpers.cli import assert_refused
from helpers.probes import COUNT, make_probe
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer

N = 12


@pytest.fixture(scope="module")
def model():
    return tiny_qwen3(len(tiny_tokenizer()))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """A probe folder with all scores, of trajectories and turns."""
    out = tmp_path_factory.mktemp("scored") / "probe"
    probe_corpus(model, tiny_tokenizer(), sample_trajectories(N), out=out, scores="all", per_turn=True, batch_tokens=300)
    return out


def test_rows_have_what_the_pass_gave(model, folder):
    probe, prepared = Probe.load(folder), Prepared(folder)
    assert probe.manifest.scores == tuple(PASS_SCORES)
    prober = Prober(model, costs=probe.manifest.costs, scores=["all"])
    alone = [prober.probe([prepared.sequence(index)]).scores for index in range(N)]
    for name in PASS_SCORES:
        expected = np.stack([one[name][0] for one in alone])
        np.testing.assert_allclose(probe.pass_scores(name), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert probe.pass_scores("gini_rows").shape == probe.norms.shape and probe.pass_scores("sketch").shape == (N, SKETCH_SIDE**2)
    measured = probe.measures(metrics=["gini", *RANKING])
    assert measured.columns == [*probe.frame.columns, "gini", *RANKING]
    for name in RANKING:
        np.testing.assert_array_equal(measured[name].to_numpy(), ranked_by(name, probe.pass_scores(name)))
    first = [0, 2, 5]
    of_some = probe.views([View("effective_rank", units=np.array(first)), View("token_variance", units=np.array(first))])
    np.testing.assert_allclose(of_some[:, 0], probe.pass_scores("effective_rank")[:, first].mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(of_some[:, 1], probe.pass_scores("token_variance"))


def test_turns_have_scores_of_their_own(folder):
    probe = Probe.load(folder)
    turns = probe.turn_scores("effective_rank")
    assert len(turns) == len(probe.turns.frame) and turns["score"].is_finite().all()
    assert "turn_score_mean" in gp.route(folder, "effective_rank", per_turn=True).frame.columns


def test_a_probe_without_scores_is_as_it_was(model, folder, tmp_path):
    plain = probe_corpus(model, tiny_tokenizer(), sample_trajectories(N), out=tmp_path / "plain", batch_tokens=300)
    scored = Probe.load(folder)
    np.testing.assert_array_equal(plain.norms, scored.norms)
    assert plain.frame.equals(scored.frame)
    assert "scores" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())
    shard = pl.read_parquet(next((tmp_path / "plain").glob("norms-*.parquet")))
    assert not set(shard.columns) & set(PASS_SCORES)
    with pytest.raises(ConfigError, match="sketch: the probe has not measured it; probe into a new folder with --scores sketch"):
        plain.pass_scores("sketch")
    with pytest.raises(ConfigError, match="effective_rank: the probe has not measured it"):
        gp.route(plain, "effective_rank")
    with pytest.raises(FolderInUseError, match=r"scores: null → \[\"gini_rows\"\]"):
        probe_corpus(model, tiny_tokenizer(), sample_trajectories(N), out=tmp_path / "plain", scores="gini_rows")


def test_a_manifest_s_hash_knows_its_scores_and_nothing_of_none():
    plain, scored = ProbeManifest(units=("a", "b")), ProbeManifest(units=("a", "b"), scores=("sketch",))
    assert plain.fingerprint != scored.fingerprint
    assert "scores" not in plain.to_json() and ProbeManifest.from_json(scored.to_json(), "here") == scored
    assert plain.fingerprint == sha256_json({key: value for key, value in plain.to_json().items() if key in _CAUSES})
    with pytest.raises(DataError, match="here: has scores that this version does not know"):
        ProbeManifest.from_json({**scored.to_json(), "scores": ["beauty"]}, "here")


_CAUSES = frozenset(
    (
        *("units", "model_class", "weights_sha256", "config_sha256", "dtype", "attention", "rope_boundaries", "tokenizer_sha256"),
        *("template_sha256", "context_length", "corpus_sha256", "n_trajectories", "versions"),
    )
)


def test_a_resumed_probe_and_shares_give_the_same_rows(model, folder, tmp_path):
    whole = Probe.load(folder)
    settings = {"scores": "all", "per_turn": True, "batch_tokens": 300}
    out = tmp_path / "probe"
    probe_corpus(model, tiny_tokenizer(), sample_trajectories(N), out=out, **settings)
    for path in out.glob("norms-*.parquet"):
        path.write_bytes(path.read_bytes()[:-100])
    options = ProbeOptions(None, 300, True, scores=tuple(PASS_SCORES))
    assert not len(ProbeFolder(out).finished())
    counts = [do_share(model, options, out, None, Share(rank, 2), "again") for rank in range(2)]
    assert all(one.rows for one in counts)
    again = Probe.load(out)
    for name in PASS_SCORES:
        np.testing.assert_array_equal(again.pass_scores(name), whole.pass_scores(name))
    run = probe_corpus(model, tiny_tokenizer(), sample_trajectories(N), out=out, **settings).run
    assert run is not None and run.probed == 0


def test_trajectories_are_routed_and_audited_by_scores_of_the_pass(folder):
    probe = Probe.load(folder)
    routes = gp.route(probe, "nuclear_norm")
    np.testing.assert_array_equal(routes.frame["score"].to_numpy(), ranked_by("nuclear_norm", probe.pass_scores("nuclear_norm")))
    reverse = gp.route(probe, "nuclear_norm", policy="inverse")
    assert (reverse.frame["route"] != routes.frame["route"]).all()
    found = gp.audit(probe, "effective_rank", compare=probe)
    assert found.scores is not None and set(RANKING) <= set(found.scores.scores) and set(RANKING) < set(score_table(probe).columns)
    assert found.agreement.probes["probe"].spearman == pytest.approx(1) and not found.agreement.normalisations
    assert "no comparison of normalisations: effective_rank is not made of norms" in found.notes
    assert "first half – second half" in found.agreement.layers
    assert "no comparison of layers: token_variance is not made of matrices" in gp.audit(probe, "token_variance").notes
    with pytest.raises(ConfigError, match="scales norms, and nuclear_norm is not made of them"):
        gp.route(probe, "nuclear_norm", normalise="per_parameter")
    with pytest.raises(ConfigError, match="metric 'sketch': is a direction, which ranks nothing by itself"):
        gp.route(probe, "sketch")


def test_a_trajectory_without_a_score_is_named(tmp_path):
    rank = np.ones((COUNT, 14), np.float32)
    rank[3] = np.nan
    make_probe(tmp_path / "probe", scores={"effective_rank": rank})
    with pytest.raises(DataError, match=r"trajectory '.*': its effective_rank is not defined"):
        gp.route(tmp_path / "probe", "effective_rank")
    assert score_table(Probe.load(tmp_path / "probe"))["effective_rank"].is_nan().to_list() == [i == 3 for i in range(COUNT)]


def test_the_command_takes_names(cli, model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    write_messages_jsonl(tmp_path / "corpus.jsonl", sample_trajectories(3))
    command = ("probe", "--model", tmp_path / "model", "--data", tmp_path / "corpus.jsonl", "--out", tmp_path / "probe")
    assert_refused(cli(*command, "--scores", "gini"), "score 'gini': choose from effective_rank")
    assert cli(*command, "--scores", "token_variance, gini_rows")[0] == 0
    assert Probe.load(tmp_path / "probe").manifest.scores == ("gini_rows", "token_variance")
    assert cli("route", tmp_path / "probe", "--metric", "gini_rows", "--out", tmp_path / "route")[0] == 0
    assert_refused(
        cli("route", tmp_path / "probe", "--metric", "effective_rank", "--out", tmp_path / "other"),
        "effective_rank: the probe has not measured it",
    )
