import dataclasses
import json
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradprism.probing.folder import ProbeFolder, ProbeRow
from gradprism.probing.plan import item_code
from gradprism.runtime.errors import ConfigError, DataError, FolderInUseError, MissingFileError
from gradprism.runtime.folders import plain
from gradprism.trajectories.corpus import canonical_line, load_corpus
from helpers.probes import create_folder
from helpers.tiny import sample_trajectories

N = 14


@pytest.fixture
def trajectories():
    return sample_trajectories(10)


@pytest.fixture
def description():
    return {
        "units": [f"unit {i}" for i in range(N)],
        "weights_sha256": "abc",
        "context_length": 64,
        "model": "here",
    }


def row(index, seed=0, turn=-1):
    norms = np.random.default_rng([seed, index, turn + 1]).random(N, dtype=np.float32)
    return ProbeRow(index, f"sample-{index:04d}", turn, 100 + index, 10 + index, index, index / 7, index / 3, norms)


def codes(indices, turn=-1):
    return item_code(np.array(sorted(indices)), turn).tolist()


@pytest.fixture
def store(tmp_path, description, trajectories):
    return create_folder(tmp_path / "probe", description, trajectories)


def test_rows_come_back_exactly_and_in_the_corpus_s_order(store, trajectories):
    order = [7, 2, 9, 0, 5, 1, 3, 8, 6, 4]
    for part in (order[:3], order[3:4], order[4:]):
        store.append([row(i) for i in part])
    table = ProbeFolder(store.folder).read()
    assert table.ids == [t.id for t in trajectories]
    assert table.norms.dtype == np.float32
    np.testing.assert_array_equal(table.norms, [row(i).norms for i in range(10)])
    assert table.frame["id"].to_list() == table.ids
    assert table.frame["loss"].to_list() == [i / 7 for i in range(10)]
    assert table.frame["n_tokens"].to_list() == [100 + i for i in range(10)]
    assert table.frame["n_response_tokens"].to_list() == [10 + i for i in range(10)]
    assert table.frame["n_turns"].to_list() == list(range(10))
    assert table.frame["l2"].to_list() == [i / 3 for i in range(10)]
    assert [line for block in store.corpus_blocks() for line in block] == [canonical_line(t)[:-1] for t in trajectories]
    assert list(load_corpus(store.folder / "corpus.jsonl")) == trajectories


def test_the_schema_is_a_fixed_size_list_of_float32(store):
    store.append([row(0)])
    (path,) = store.folder.glob("norms-*.parquet")
    assert str(pq.read_schema(path).field("norms").type) == f"fixed_size_list<element: float>[{N}]"


def test_rows_written_twice_count_once(store):
    store.append([row(i) for i in range(6)])
    store.append([row(i, seed=1) for i in range(4, 10)])
    store.append([row(i) for i in range(6)])
    assert len(list(store.folder.glob("norms-*.parquet"))) == 2
    assert store.read().ids == [f"sample-{i:04d}" for i in range(10)]
    assert len(store.finished()) == 10


def test_processes_may_write_to_one_folder_at_once(store, description, trajectories):
    def write(part):
        other = create_folder(store.folder, description, trajectories)
        for i in part:
            other.append([row(i)])

    threads = [threading.Thread(target=write, args=(range(k, 10, 3),)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(store.read().norms, [row(i).norms for i in range(10)])


def test_pending_rows_are_counted(store):
    store.append([row(i) for i in range(7)])
    with pytest.raises(DataError, match=r"probe: 3 of 10 trajectories are not probed yet; give the same `gradprism probe` command"):
        store.read()


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "bit flip", "other form"])
def test_a_torn_shard_is_pending_again(store, damage, capsys):
    store.append([row(i) for i in range(6)])
    (path,) = store.folder.glob("norms-*.parquet")
    whole = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        path.write_bytes(b"PAR1" + b"x" * 500 + b"PAR1")
    elif damage == "bit flip":
        middle = len(whole) // 3
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    else:
        pq.write_table(pq.read_table(path).drop_columns(["loss"]), path)
    store.append([row(i) for i in range(6, 10)])
    with pytest.raises(DataError, match=rf"6 of 10 trajectories are not probed yet \(cannot be read: {path.name}\)"):
        store.read()
    assert store.finished(set_aside=False).tolist() == codes(range(6, 10))
    assert path.exists()
    assert store.finished().tolist() == codes(range(6, 10))
    assert f"{path}: cannot be read; set aside" in capsys.readouterr().err
    assert not path.exists()
    assert path.with_suffix(".parquet.torn").exists()
    store.append([row(i) for i in range(6)])
    np.testing.assert_array_equal(store.read().norms, [row(i).norms for i in range(10)])


def test_resume_keeps_rows_and_restores_the_corpus(store, description, trajectories):
    store.append([row(i) for i in range(10)])
    (store.folder / "corpus.jsonl").write_text("{}")
    again = create_folder(store.folder, {**description, "model": "moved there"}, trajectories)
    assert again.finished().tolist() == codes(range(10))
    assert sum(map(len, again.corpus_blocks())) == 10


def test_a_differing_manifest_is_refused_with_the_keys(store, description, trajectories):
    store.append([row(i) for i in range(3)])
    other = {**description, "weights_sha256": "def", "context_length": 128}
    with pytest.raises(FolderInUseError) as error:
        create_folder(store.folder, other, trajectories)
    assert 'context_length: 64 → 128; weights_sha256: "abc" → "def"' in str(error.value)
    assert len(store.finished()) == 3
    assert json.loads((store.folder / "manifest.json").read_text()) == plain(store.manifest.to_json())


def test_replace_deletes_a_probe_and_nothing_else(store, description, trajectories):
    store.append([row(i) for i in range(3)])
    (store.folder / "notes.txt").write_text("mine")
    again = create_folder(store.folder, {**description, "context_length": 128}, trajectories, "replace")
    assert len(again.finished()) == 0
    assert again.manifest.context_length == 128
    assert (store.folder / "notes.txt").read_text() == "mine"


def test_fail_refuses_any_folder_in_use(store, description, trajectories):
    with pytest.raises(FolderInUseError, match="is not empty"):
        create_folder(store.folder, description, trajectories, "fail")
    with pytest.raises(ConfigError, match="choose resume, replace or fail"):
        create_folder(store.folder, description, trajectories, "append")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("on_existing", ["resume", "replace", "fail"])
def test_a_folder_that_is_no_probe_is_left_alone(tmp_path, description, trajectories, on_existing):
    (tmp_path / "corpus.jsonl").write_text("the only copy")
    with pytest.raises(FolderInUseError):
        create_folder(tmp_path, description, trajectories, on_existing)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    assert (tmp_path / "corpus.jsonl").read_text() == "the only copy"
    with pytest.raises(FolderInUseError, match="is not a folder"):
        create_folder(tmp_path / "corpus.jsonl", description, trajectories, on_existing)


@pytest.mark.parametrize("on_existing", ["resume", "replace"])
def test_another_tool_s_manifest_is_left_alone(tmp_path, description, trajectories, on_existing):
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(FolderInUseError, match="is in use and holds no probe"):
        create_folder(tmp_path, description, trajectories, on_existing)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "a web app"}'


def test_what_a_killed_writer_leaves_is_no_hindrance(tmp_path, description, trajectories):
    (tmp_path / ".norms-0.parquet.abc.tmp").write_bytes(b"half")
    assert create_folder(tmp_path, description, trajectories, "fail").finished().size == 0


def test_folders_that_are_no_probe(tmp_path):
    with pytest.raises(MissingFileError, match="no such folder"):
        ProbeFolder(tmp_path / "absent")
    with pytest.raises(MissingFileError, match=r"holds no manifest\.json"):
        ProbeFolder(tmp_path)
    (tmp_path / "manifest.json").write_text('{"units": 3}')
    with pytest.raises(DataError, match=r"manifest\.json: not a probe's manifest \(units: "):
        ProbeFolder(tmp_path)


def test_a_corpus_that_is_not_the_probed_one_is_refused(store):
    path = store.folder / "corpus.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(DataError, match=r"corpus\.jsonl: is not the corpus that was probed"):
        list(store.corpus_blocks())


def test_a_probe_is_read_without_torch():
    import subprocess
    import sys

    code = "import sys, gradprism.probing.result, gradprism.routing.routes; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_turns_are_rows_of_their_own(tmp_path, description, trajectories):
    store = create_folder(tmp_path / "probe", description, trajectories, turns=3)
    store.append([row(i) for i in range(10)])
    with pytest.raises(
        DataError, match=r"3 of 3 turns are not probed yet; give the same `gradprism probe --per-turn` command again"
    ):
        store.read("turns")
    store.append([row(7, turn=2), row(7, turn=0)])
    assert store.read().ids == [t.id for t in trajectories]
    with pytest.raises(DataError, match="1 of 3 turns are not probed yet"):
        store.read("turns")
    store.append([row(2, turn=1), row(7, turn=0, seed=1)])
    table = store.read("turns")
    assert list(zip(table.frame["index"], table.frame["turn"], strict=True)) == [(2, 1), (7, 0), (7, 2)]
    np.testing.assert_array_equal(table.norms[[0, 2]], [row(2, turn=1).norms, row(7, turn=2).norms])
    assert store.finished().tolist() == sorted([*codes(range(10)), *codes([2], 1), *codes([7], 0), *codes([7], 2)])


def test_rows_that_are_not_finite_are_pending(store):
    bad = dataclasses.replace(row(4), norms=np.full(N, np.inf, np.float32))
    store.append([row(i) for i in range(10) if i != 4] + [bad])
    assert store.finished().tolist() == codes(i for i in range(10) if i != 4)
    store.append([row(4)])
    np.testing.assert_array_equal(store.read().norms, [row(i).norms for i in range(10)])


def test_a_scan_gives_each_row_once_with_what_is_computed_of_it(store):
    for part in ([0, 1, 2], [2, 3, 4, 5], [6, 7, 8, 9, 0]):
        store.append([row(i) for i in part])
    sums = {}
    for shard in store.scan("whole", lambda shard: shard.norms.sum(axis=1)):
        sums |= dict(zip(shard.columns["index"].to_pylist(), shard.norms.tolist(), strict=True))
    assert sums == {i: float(row(i).norms.sum()) for i in range(10)}
    assert sum(len(shard.codes) for shard in store.scan("whole")) == 10


def test_rows_of_another_probe_do_not_count(store, description, trajectories, tmp_path):
    """A run whose folder was taken over by another goes on writing into it."""
    store.append([row(i) for i in range(3)])
    new = create_folder(store.folder, {**description, "weights_sha256": "def"}, trajectories[:5], "replace")
    store.append([row(i) for i in range(4, 10)])
    new.append([row(0, seed=1)])
    assert new.finished(set_aside=False).tolist() == codes([0])
    with pytest.raises(DataError, match="4 of 5 trajectories are not probed yet"):
        new.read()
    new.append([row(i, seed=1) for i in range(1, 5)])
    np.testing.assert_array_equal(new.read().norms, [row(i, seed=1).norms for i in range(5)])


def test_a_shard_that_another_process_sets_aside_first_is_no_error(store, monkeypatch):
    store.append([row(i) for i in range(3)])
    (path,) = store.folder.glob("norms-*.parquet")
    path.write_bytes(b"torn")
    real = type(path).rename

    def late(self, target):
        real(self, target)
        return real(self, target)

    monkeypatch.setattr(type(path), "rename", late)
    assert store.finished().tolist() == []
    assert path.with_suffix(".parquet.torn").exists()


def test_a_shard_that_cannot_be_opened_is_not_torn(store, monkeypatch):
    store.append([row(i) for i in range(3)])
    (path,) = store.folder.glob("norms-*.parquet")

    def busy(*args, **options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("gradprism.probing.folder.pq.ParquetFile", busy)
    with pytest.raises(DataError, match=r"Too many open files.*nothing is lost"):
        store.finished()
    assert path.exists()


def test_what_is_computed_of_a_shard_is_computed_of_the_rows_asked_for(store):
    store.append([row(i) for i in range(10)] + [row(2, turn=0)])
    asked = []

    def compute(shard):
        asked.extend(shard.codes.tolist())
        return shard.norms[:, :1]

    found = list(store.scan("whole", compute))
    assert asked == codes(range(10))
    np.testing.assert_array_equal(np.concatenate([shard.norms for shard in found]), [row(i).norms[:1] for i in range(10)])


def test_sizes_that_are_not_one_per_unit_are_refused(store):
    manifest = json.loads((store.folder / "manifest.json").read_text())
    (store.folder / "manifest.json").write_text(json.dumps({**manifest, "n_parameters": [1]}))
    with pytest.raises(DataError, match="not a probe's manifest \\(n_parameters: not one per unit\\)"):
        ProbeFolder(store.folder)
