"""Two cuts, and trajectories that go elsewhere than their scores say."""

import json
import multiprocessing

import numpy as np
import polars as pl
import pytest

import gradprism as gp
from gradprism.concentration import gini
from gradprism.routing.routes import Routes, route
from gradprism.routing.split import Side
from gradprism.runtime.errors import ConfigError, DataError
from helpers.cli import assert_refused
from helpers.probes import COUNT, make_probe

FILES = ["audit.json", "rl.jsonl", "routes.parquet", "routing.json", "sft.jsonl"]


def ids_of(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_between_two_cuts_a_trajectory_goes_to_neither(cli, tmp_path):
    score = gini(make_probe(tmp_path / "probe"))
    low, high = np.sort(score)[[6, 15]]
    cut = ("--cuts", f"{low},{high}", "--sides", "sft,none,rl")
    code, out, _ = cli("route", tmp_path / "probe", "--out", tmp_path / "route", *cut)
    assert code == 0 and "7 to SFT, 5 to RL, 9 to neither; concentration of gini, cuts" in out
    routes = Routes.load(tmp_path / "route")
    expected = ["rl" if s > high else "sft" if s <= low else "none" for s in score]
    assert routes.frame["route"].to_list() == expected
    assert ids_of(tmp_path / "route" / "sft.jsonl") == [i for i, e in zip(routes.frame["id"], expected, strict=True) if e == "sft"]
    assert ids_of(tmp_path / "route" / "rl.jsonl") == [i for i, e in zip(routes.frame["id"], expected, strict=True) if e == "rl"]
    assert [len(routes.sft), len(routes.rl)] == [7, 5]
    assert_refused(
        cli("route", tmp_path / "probe", "--out", tmp_path / "b", "--cuts", f"{high},{low}", "--sides", "sft,none,rl"),
        "give numbers on the score's scale, ascending",
    )


def test_an_override_moves_a_trajectory_between_the_sets_and_back(tmp_path):
    make_probe(tmp_path / "probe")
    routes = route(tmp_path / "probe")
    routes.save(tmp_path / "route")
    before = {name: (tmp_path / "route" / name).read_bytes() for name in FILES}
    (tmp_path / "route" / "notes.txt").write_text("mine")
    to_sft = routes.frame.filter(pl.col("route") == "rl")["id"][0]
    to_rl, left = routes.frame.filter(pl.col("route") == "sft")["id"].head(2)
    moves: list[tuple[str, Side]] = [(to_sft, "sft"), (to_rl, "rl"), (left, "none")]
    for id, side in moves:
        Routes.override_folder(tmp_path / "route", id, side, f" to {side} ", tmp_path / "probe")

    moved = Routes.load(tmp_path / "route")
    assert (moved.routing.n_sft, moved.routing.n_none, moved.routing.n_rl, moved.routing.n_overrides) == (10, 1, 10, 3)
    kept = moved.frame.filter(pl.col("override").is_not_null()).select("id", "route", "override", "reason").sort("id").rows()
    assert kept == sorted(((to_sft, "sft", "sft", "to sft"), (to_rl, "rl", "rl", "to rl"), (left, "none", "none", "to none")))
    sft, rl = [t.id for t in moved.sft], [t.id for t in moved.rl]
    assert to_sft in sft and to_rl in rl and left not in sft + rl and len(sft) + len(rl) == COUNT - 1
    assert sft == ids_of(tmp_path / "route" / "sft.jsonl") and rl == ids_of(tmp_path / "route" / "rl.jsonl")
    assert (tmp_path / "route" / "notes.txt").read_text() == "mine"
    everything = routes.override(routes.frame["id"].to_list(), "sft", "all of it")
    assert everything.audit().warnings[-1] == "all 21 trajectories go to SFT: the other stage has nothing to train on"
    made = gp.export(tmp_path / "route", "trl", tmp_path / "trl")
    assert made.routing.n_overrides == 3 and "3 overridden" in str(made.routing)

    Routes.override_folder(tmp_path / "route", [to_sft, to_rl, left], None, "", tmp_path / "probe")
    assert {name: (tmp_path / "route" / name).read_bytes() for name in FILES} == before


def test_an_override_that_cannot_be_is_refused(tmp_path):
    make_probe(tmp_path / "probe")
    routes = route(tmp_path / "probe")
    id = routes.frame["id"][0]
    with pytest.raises(ConfigError, match="choose sft, none, rl or both"):
        routes.override(id, "all", "x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give a reason"):
        routes.override(id, "sft", "  ")
    with pytest.raises(DataError, match="'nobody': is not in the route"):
        routes.override("nobody", "sft", "x")
    routes.save(tmp_path / "route")
    with pytest.raises(ConfigError, match="give the probe that was routed"):
        Routes.load(tmp_path / "route").override(id, "sft", "x")
    make_probe(tmp_path / "other", manifest={"weights_sha256": "another"})
    with pytest.raises(DataError, match="other: is not the probe that was routed"):
        Routes.load(tmp_path / "route").override(id, "sft", "x", tmp_path / "other")


def _override(folder, id):
    Routes.override_folder(folder / "route", id, "none", "at once", folder / "probe")


def test_overrides_of_two_processes_are_both_kept(tmp_path):
    make_probe(tmp_path / "probe")
    routes = route(tmp_path / "probe")
    routes.save(tmp_path / "route")
    ids = routes.frame["id"].head(4).to_list()
    processes = [multiprocessing.get_context("spawn").Process(target=_override, args=(tmp_path, id)) for id in ids]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    moved = Routes.load(tmp_path / "route").frame
    assert moved.filter(pl.col("route") == "none")["id"].to_list() == ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probe", "route"]
