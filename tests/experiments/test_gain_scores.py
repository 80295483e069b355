"""Scores of the pass among those that may predict gain."""

from pathlib import Path

import numpy as np
import pytest

import gradprism as gp
from gradprism.experiments.config import load_config
from gradprism.experiments.gain import GainPlan
from gradprism.experiments.schedule import run_stages
from gradprism.experiments.stage import Store, with_needs
from gradprism.probing.pass_scores import RANKING

FEW = ["gain.groups=5", "gain.demonstrations=3", "corpus.collect.count=6", "pass_rate.rollouts=1"]


def planned(*overrides: str) -> GainPlan:
    return GainPlan.of(load_config(Path("configs/gain-webshop.toml"), [*FEW, *overrides]))


def test_they_are_taken_beside_the_groups_that_are_there(tmp_path: Path) -> None:
    plain, more = planned("probe.scores=[]", f"out={tmp_path}"), planned(f"out={tmp_path}")
    assert plain.more is None and more.more is not None
    assert plain.groups.name == more.groups.name, "so that trainings on the groups are not lost"
    assert [stage.name for stage in plain.trained.values()] == [stage.name for stage in more.trained.values()]
    assert planned('probe.scores=["token_variance"]').more.target is None, "no direction without a sketch"  # pyright: ignore[reportOptionalMemberAccess]

    store = Store(tmp_path)
    run_stages(store, [more.more], more.labels, 1, 1)
    found = store.found(more.more)
    assert found.scores.keys() == {*RANKING, "target_cosine"}

    stages = [stage for stage in with_needs([more.more]).values() if stage.kind == "probe"]
    [probe] = [gp.Probe.load(store.path(stage) / "probe") for stage in stages if stage == more.more.probe]
    [target] = [gp.Probe.load(store.path(stage) / "probe") for stage in stages if stage == more.more.target]
    assert found.ids == probe.ids and len(target) == 3
    ours, theirs = probe.pass_scores("sketch"), target.pass_scores("sketch").mean(axis=0)
    slow = [float(one @ theirs / np.linalg.norm(one) / np.linalg.norm(theirs)) for one in ours]
    assert found.scores["target_cosine"] == pytest.approx(slow, abs=1e-5)
    assert found.scores["token_variance"] == pytest.approx(probe.measures(metrics=["token_variance"])["token_variance"].to_list())
