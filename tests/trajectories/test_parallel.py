"""Rendering in several processes gives what one gives, in order."""

from pathlib import Path

import numpy as np
import pytest

from gradprism.runtime.errors import GradprismError, ModelError
from gradprism.trajectories import parallel
from gradprism.trajectories.corpus import load_corpus
from gradprism.trajectories.parallel import render_all, render_each, render_usable
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer
from helpers.tiny import sample_trajectories, tiny_tokenizer


def test_processes_give_the_same_in_the_same_order_errors_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_PATIENCE", 0.0)
    late = Trajectory("late", (Message("user", "look " * 100), Message("assistant", "go")), source="d:9")
    trajectories = sample_trajectories(150)
    trajectories[70:70] = [late]
    renderer = Renderer(tiny_tokenizer(), 80)
    alone = list(render_each(renderer, trajectories, processes=1))
    several = list(render_each(renderer, iter(trajectories), processes=2))
    assert [t.id for t, _ in several] == [t.id for t in trajectories]
    for (_, one), (_, other) in zip(alone, several, strict=True):
        assert type(one) is type(other)
        if isinstance(one, GradprismError) or isinstance(other, GradprismError):
            assert str(one) == str(other)
        else:
            np.testing.assert_array_equal(one.input_ids, other.input_ids)
            np.testing.assert_array_equal(one.response_mask, other.response_mask)
    with pytest.raises(ModelError, match="d:9: trajectory 'late': empty response mask"):
        render_all(renderer, trajectories)


def test_what_cannot_be_rendered_is_left_out_of_a_corpus_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_PATIENCE", 0.0)
    late = Trajectory("late", (Message("user", "look " * 100), Message("assistant", "go")), source="d:9")
    renderer, good = Renderer(tiny_tokenizer(), 80), sample_trajectories(5)
    corpus = load_corpus([*good, late], on_bad="skip")
    assert [trajectory for trajectory, _ in render_usable(renderer, corpus)] == good
    (skipped,) = corpus.account.skipped
    assert (skipped.id, skipped.source) == ("late", "d:9")
    assert skipped.reason.startswith("empty response mask: the response begins at token")
    assert len(list(render_usable(renderer, corpus))) == 5
    assert len(corpus.account.skipped) == 1


def test_one_of_61_records_is_too_long() -> None:
    path = Path(__file__).parents[2].parent / "shared/data/cases/long_last.jsonl"
    if not path.is_file():
        pytest.skip("needs the corpora of shared/data")
    renderer, corpus = Renderer(tiny_tokenizer(), 200), load_corpus(path, on_bad="skip")
    assert len(list(render_usable(renderer, corpus))) == 60
    assert [one.source for one in corpus.account.skipped] == [f"{path}:61"]
