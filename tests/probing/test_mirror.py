"""Probe folders behind a URL, on fsspec's file system in memory."""

import fsspec
import numpy as np
import pytest

from gradprism.probing.api import probe
from gradprism.probing.result import Probe
from gradprism.runtime.errors import ConfigError, FolderInUseError, WriteError
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
URL = "memory://bucket/probes/one"


@pytest.fixture(scope="module")
def model():
    return tiny_qwen3(len(TOKENIZER))


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def names(memory):
    return {path.rsplit("/", 1)[1] for path in memory.find("/bucket/probes/one")}


def test_a_probe_behind_a_url_is_the_one_of_a_folder(model, memory, tmp_path):
    here = probe(model, TOKENIZER, sample_trajectories(9), out=tmp_path / "probe", batch_tokens=200)
    there = probe(model, TOKENIZER, sample_trajectories(9), out=URL, batch_tokens=200)
    assert there.folder is None
    np.testing.assert_array_equal(there.norms, here.norms)
    assert names(memory) == {path.name for path in (tmp_path / "probe").iterdir()}
    loaded = Probe.load(URL)
    np.testing.assert_array_equal(loaded.norms, here.norms)
    assert list(loaded.trajectories) == sample_trajectories(9)
    again = probe(model, TOKENIZER, sample_trajectories(9), out=URL, batch_tokens=200)
    assert again.run is not None and (again.run.probed, again.run.kept) == (0, 9)


def test_another_probe_is_refused_or_replaced_and_other_files_are_left_alone(model, memory):
    probe(model, TOKENIZER, sample_trajectories(9), out=URL)
    shards = {name for name in names(memory) if name.startswith("norms-")}
    with pytest.raises(FolderInUseError, match="n_trajectories: 9 → 4"):
        probe(model, TOKENIZER, sample_trajectories(4), out=URL)
    memory.pipe_file("/bucket/probes/one/notes.txt", b"mine")
    replaced = probe(model, TOKENIZER, sample_trajectories(4), out=URL, on_existing="replace")
    assert replaced.run is not None and replaced.run.probed == 4
    assert not shards & names(memory)
    assert memory.cat_file("/bucket/probes/one/notes.txt") == b"mine"
    memory.pipe_file("/bucket/thesis/thesis.tex", b"mine")
    for on_existing in ("resume", "replace"):
        with pytest.raises(FolderInUseError, match="is in use and holds no probe"):
            probe(model, TOKENIZER, sample_trajectories(4), out="memory://bucket/thesis", on_existing=on_existing)
    assert memory.find("/bucket/thesis") == ["/bucket/thesis/thesis.tex"]


def test_a_shard_that_is_torn_there_is_probed_again(model, memory):
    first = probe(model, TOKENIZER, sample_trajectories(5), out=URL)
    (path,) = (path for path in memory.find("/bucket") if "norms-" in path)
    memory.pipe_file(path, memory.cat_file(path)[:90])
    again = probe(model, TOKENIZER, sample_trajectories(5), out=URL)
    assert again.run is not None and again.run.probed == 5
    np.testing.assert_array_equal(Probe.load(URL).norms, first.norms)


def test_what_cannot_be_opened_or_written_is_one_line(model, memory, monkeypatch):
    with pytest.raises(ConfigError, match="nowhere://x: no URL that fsspec knows"):
        probe(model, TOKENIZER, sample_trajectories(2), out="nowhere://x")

    def full(*arguments, **options):
        raise OSError("quota exceeded")

    monkeypatch.setattr(type(memory), "pipe_file", full)
    with pytest.raises(WriteError, match=r"one: cannot be written \(quota exceeded\)"):
        probe(model, TOKENIZER, sample_trajectories(2), out=URL)
