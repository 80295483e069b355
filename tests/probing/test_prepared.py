"""The rendered corpus in the probe folder: what is read back, when it is made again, and what a failure leaves."""

import json
from pathlib import Path

import numpy as np
import pytest

from gradprism.probing import prepared as module
from gradprism.probing.folder import ProbeFolder
from gradprism.probing.manifest import ProbeManifest, Totals
from gradprism.probing.prepared import Prepared, one_turn, prepare, reopen, turn_lengths
from gradprism.probing.prober import read_length
from gradprism.runtime.errors import DataError, FolderInUseError, MissingFileError, ModelError
from gradprism.runtime.files import sha256_file
from gradprism.trajectories.corpus import load_corpus, write_messages_jsonl
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer
from helpers.tiny import sample_trajectories, tiny_tokenizer


@pytest.fixture(scope="module")
def renderer():
    return Renderer(tiny_tokenizer(), 60)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    write_messages_jsonl(path, sample_trajectories(40))
    return path


def describe(*files, **more):
    data = [{"path": str(file), "sha256": sha256_file(file)} for file in files]
    values = {"units": ["a", "b"], "context_length": 60, "data": data, "read": {"limit": None}, **more}
    return ProbeManifest.from_json(values, "a test")


def unread():
    """A corpus that must not be begun."""
    raise AssertionError
    yield


def assert_same(a, b):
    assert (a.id, a.n_truncated) == (b.id, b.n_truncated)
    for x, y in ((a.input_ids, b.input_ids), (a.response_mask, b.response_mask), (a.turns, b.turns)):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_what_was_rendered_is_read_back(rows, tmp_path, renderer, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_ROWS", rows)
    trajectories = sample_trajectories(40)
    store, opened = prepare(tmp_path / "probe", describe(), iter(trajectories), renderer)
    rendered = [renderer.render(t) for t in trajectories]
    assert len(opened) == 40
    for index in (0, 39, 3, 17, *range(40)):
        assert_same(opened.rendered(index), rendered[index])
    assert opened.n_turns.tolist() == [sum(m.role == "assistant" for m in t.messages) for t in trajectories]
    assert opened.column("n_truncated").tolist() == [r.n_truncated for r in rendered]
    items = opened.items()
    assert items.index.tolist() == list(range(40))
    assert items.length.tolist() == [read_length(r) for r in rendered]
    assert store.manifest.totals == Totals(
        tokens=sum(len(r.input_ids) for r in rendered),
        response_tokens=sum(r.n_targets for r in rendered),
        turns=sum(int((r.turns[:, 1] > r.turns[:, 0]).sum()) for r in rendered),
        truncated=sum(r.n_truncated > 0 for r in rendered),
    )
    assert any(r.n_truncated for r in rendered)


@pytest.mark.parametrize("rows", [3, 1024])
def test_turns_are_items_where_they_are_trained_on_and_left(rows, tmp_path, renderer, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_ROWS", rows)
    look, answer = Message("user", "look at desk 1 ."), Message("assistant", "go to desk 1")
    silent = Message("assistant", "open drawer 1", weight=0.0)
    trajectories = [
        Trajectory("one", (look, answer)),
        Trajectory("unlearnt", (look, silent, look, answer)),
        Trajectory("cut", (look, answer, *(Message("user", "a b c d e f g h i j k l m n o p") for _ in range(4)), answer)),
        Trajectory("first", (answer, look, answer)),
    ]
    _, opened = prepare(tmp_path / "probe", describe(), trajectories, renderer)
    items = opened.items(per_turn=True)
    whole = items.turn == -1
    assert items.index[whole].tolist() == [0, 1, 2, 3]
    turns = list(zip(items.index[~whole].tolist(), items.turn[~whole].tolist(), strict=True))
    assert turns == [(0, 0), (1, 1), (2, 0), (3, 0), (3, 1)]
    for index, turn, length in zip(items.index.tolist(), items.turn.tolist(), items.length.tolist(), strict=True):
        assert read_length(opened.sequence(index, turn)) == length
    rendered = renderer.render(trajectories[1])
    sequence = opened.sequence(1, 1)
    start, stop = rendered.turns[1]
    np.testing.assert_array_equal(sequence.input_ids, rendered.input_ids[:stop])
    assert np.flatnonzero(sequence.response_mask).tolist() == list(range(start, stop))
    assert_same(one_turn(rendered, 1), sequence)
    assert turn_lengths(trajectories[1], rendered) == [0, stop - 1]


def test_the_same_data_is_not_read_again(tmp_path, corpus, renderer):
    _, first = prepare(tmp_path / "probe", describe(corpus), load_corpus(corpus), renderer)
    _, again = prepare(tmp_path / "probe", describe(corpus), unread(), renderer)
    assert_same(again.rendered(11), first.rendered(11))
    moved = corpus.rename(tmp_path / "moved.jsonl")
    assert reopen(tmp_path / "probe", describe(moved), "resume") is not None


@pytest.mark.parametrize("damage", ["no rendered", "no note", "cut", "bit", "other corpus", "no corpus"])
def test_what_is_damaged_is_made_again(tmp_path, corpus, renderer, damage):
    folder = tmp_path / "probe"
    prepare(folder, describe(corpus), load_corpus(corpus), renderer)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arrow = folder / "rendered.arrow"
    if damage == "no rendered":
        arrow.unlink()
    elif damage == "no note":
        (folder / "rendered.json").unlink()
    elif damage == "cut":
        arrow.write_bytes(before[arrow.name][:-100])
    elif damage == "bit":
        arrow.write_bytes(before[arrow.name][:5000] + bytes([before[arrow.name][5000] ^ 1]) + before[arrow.name][5001:])
    elif damage == "other corpus":
        (folder / "corpus.jsonl").write_bytes(before["corpus.jsonl"][1:])
    else:
        (folder / "corpus.jsonl").unlink()
    assert reopen(folder, describe(corpus), "resume") is None
    prepare(folder, describe(corpus), load_corpus(corpus), renderer)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_ways_of_reading_are_read_again(tmp_path, corpus, renderer):
    prepare(tmp_path / "probe", describe(corpus), load_corpus(corpus), renderer)
    assert reopen(tmp_path / "probe", describe(corpus, read={"limit": 3}), "resume") is None
    assert reopen(tmp_path / "probe", describe(corpus), "replace") is None
    assert reopen(tmp_path / "probe", describe(), "resume") is None
    # The same trajectories from elsewhere are the same corpus.
    store, _ = prepare(tmp_path / "probe", describe(), sample_trajectories(40), renderer)
    assert store.manifest.n_trajectories == 40
    with pytest.raises(FolderInUseError, match="n_trajectories: 40 → 39"):
        prepare(tmp_path / "probe", describe(), sample_trajectories(39), renderer)


def test_a_failure_leaves_the_folder_as_it_was(tmp_path, corpus, renderer):
    bad = Trajectory("untrained", (Message("user", "look"), Message("assistant", "go", weight=0.0)))
    new = tmp_path / "deep" / "probe"
    for trajectories, words in (([*sample_trajectories(3), bad], "'untrained': empty response mask"), ([], "no trajectories")):
        with pytest.raises((DataError, ModelError), match=words):
            prepare(new, describe(), trajectories, renderer)
        assert not (tmp_path / "deep").exists()
    prepare(tmp_path / "probe", describe(corpus), load_corpus(corpus), renderer)
    before = {path.name: path.read_bytes() for path in (tmp_path / "probe").iterdir()}
    for on_existing in ("resume", "replace"):
        with pytest.raises(ModelError):
            prepare(tmp_path / "probe", describe(), [*sample_trajectories(3), bad], renderer, on_existing)
        assert {path.name: path.read_bytes() for path in (tmp_path / "probe").iterdir()} == before


def test_a_folder_without_a_rendered_corpus(tmp_path):
    with pytest.raises(MissingFileError, match=r"rendered\.arrow: no such file"):
        Prepared(tmp_path)
    (tmp_path / "rendered.arrow").write_bytes(b"ARROW1" * 9)
    with pytest.raises(DataError, match=r"rendered\.arrow: cannot be read"):
        Prepared(tmp_path)


def test_long_texts_are_rendered(tmp_path):
    """One trajectory of some hundred kilobytes among short ones."""
    words = " ".join(["you see a cabinet 1 ."] * 20_000)
    long = Trajectory("long", (Message("user", words), Message("assistant", "go to desk 1")))
    trajectories = [*sample_trajectories(3), long, *sample_trajectories(3, seed=1)]
    whole = Renderer(tiny_tokenizer(), None)
    _, opened = prepare(tmp_path / "probe", describe(), iter(trajectories), whole)
    assert len(opened.rendered(3).input_ids) == 6 * 20_000 + 7
    assert_same(opened.rendered(3), whole.render(long))
    assert opened.items().length[3] == 6 * 20_000 + 6
    assert json.loads((Path(tmp_path) / "probe" / "manifest.json").read_text())["n_trajectories"] == 7


def test_a_folder_that_another_run_made_meanwhile_is_refused(tmp_path, renderer):
    def slowly():
        yield from sample_trajectories(3)
        prepare(tmp_path / "probe", describe(weights_sha256="def"), sample_trajectories(4), renderer)

    with pytest.raises(FolderInUseError, match='weights_sha256: "def" → "abc"'):
        prepare(tmp_path / "probe", describe(weights_sha256="abc"), slowly(), renderer)
    assert ProbeFolder(tmp_path / "probe").manifest.n_trajectories == 4
    assert Prepared(tmp_path / "probe").rendered(3).id == "sample-0003"


def test_tokens_that_the_tokenizer_does_not_know_are_counted(tmp_path, renderer):
    known, unknown = Message("user", "look ."), Message("user", "xylophone zither .")
    answer = Message("assistant", "go to desk 1")
    store, _ = prepare(
        tmp_path / "probe", describe(), [Trajectory("a", (known, answer)), Trajectory("b", (unknown, answer))], renderer
    )
    assert store.manifest.totals.unknown == 2
