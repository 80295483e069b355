"""What `benchmarks/probe_scale.py` does with a million trajectories, with 20,000: every row has the value that it must have."""

import json

import numpy as np
import polars as pl

import probe_scale
from gradprism.concentration import gini
from gradprism.probing import run
from gradprism.probing.folder import ProbeFolder
from gradprism.trajectories.corpus import canonical_line

N, UNITS = 20_000, 28


def test_a_large_corpus_is_probed_again_and_routed(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SHARDS", 8)  # 2500 rows each: what a larger corpus does
    probe_scale.make_corpus(tmp_path / "corpus.jsonl", N)
    first = probe_scale.probe(tmp_path / "corpus.jsonl", tmp_path / "probe", UNITS)
    assert (first["rows"], first["shards"]) == (N, 8)
    assert first["padding_share"] < 0.01
    assert probe_scale.probe(tmp_path / "corpus.jsonl", tmp_path / "probe", UNITS)["rows"] == 0
    assert probe_scale.route_corpus(tmp_path / "probe", tmp_path / "route")["n_sft"] >= N / 2

    trajectories = list(probe_scale.synthetic_trajectories(N))
    rendered = [probe_scale.ByteRenderer().render(t) for t in trajectories]
    norms = np.stack([probe_scale.stub_norms(r.input_ids, UNITS) for r in rendered])
    table = ProbeFolder(tmp_path / "probe").read()
    assert table.ids == [t.id for t in trajectories]
    np.testing.assert_array_equal(table.norms, norms.astype(np.float32))
    np.testing.assert_allclose(table.frame["l2"], np.linalg.norm(norms, axis=1))
    np.testing.assert_array_equal(table.frame["loss"], [r.response_mask.mean() for r in rendered])
    assert table.frame["n_response_tokens"].to_list() == [r.n_targets for r in rendered]
    assert table.frame["n_turns"].to_list() == [len(r.turns) for r in rendered]

    routes = pl.read_parquet(tmp_path / "route" / "routes.parquet")
    assert routes["id"].to_list() == table.ids
    np.testing.assert_allclose(routes["score"], gini(table.norms))
    to_rl = (routes["route"] == "rl").to_list()
    np.testing.assert_array_equal(to_rl, routes["score"].to_numpy() > np.median(routes["score"].to_numpy()))
    sft = (tmp_path / "route" / "sft.jsonl").read_bytes()
    assert sft == b"".join(canonical_line(t) for t, chosen in zip(trajectories, to_rl, strict=True) if not chosen)
    rl = [json.loads(line) for line in (tmp_path / "route" / "rl.jsonl").read_bytes().splitlines()]
    chosen = [t for t, chosen in zip(trajectories, to_rl, strict=True) if chosen]
    assert rl == [{"id": t.id, "prompt": t.prompt(), "task": t.task} for t in chosen]
