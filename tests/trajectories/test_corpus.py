"""Corpus files, formats and the way back."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import struct
import zipfile
from pathlib import Path

import pyarrow
import pytest
import zstandard

from gradprism.runtime.errors import ConfigError, DataError, MissingFileError
from gradprism.trajectories.corpus import load_corpus, write_messages_jsonl
from gradprism.trajectories.corpus_files import iter_records
from gradprism.trajectories.formats import FORMATS, register_format
from gradprism.trajectories.record import Message, Trajectory
from helpers.tiny import sample_trajectories

MESSAGES = [{"role": "user", "content": "look"}, {"role": "assistant", "content": "go to desk 1"}]
TURNS = [{"from": "human", "value": "look"}, {"from": "gpt", "value": "go to desk 1"}]
EXPECTED = (Message("user", "look"), Message("assistant", "go to desk 1"))


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def fails(path: Path, *words: str, error: type[Exception] = DataError, format: str | None = None) -> None:
    """Reading raises `error` in one line that names the file and says `words`."""
    with pytest.raises(error) as raised:
        list(load_corpus([path], format=format))
    message = str(raised.value)
    assert "\n" not in message
    for word in (path.name, *words):
        assert word in message, message


# Formats


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"id": 7, "messages": MESSAGES, "task": {"env": "x", "n": [1]}}, Trajectory("7", EXPECTED, {"env": "x", "n": [1]})),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "lo"}, {"type": "text", "text": "ok"}]},
                    MESSAGES[1],
                ]
            },
            Trajectory("data-1", EXPECTED),
        ),
        (
            {"id": "a", "messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}]},
            Trajectory("a", (EXPECTED[0], Message("assistant", "go to desk 1", 0.0))),
        ),
        (
            {"id": "a", "game_file": "json/g.tw-pddl", "conversations": TURNS},
            Trajectory("a", EXPECTED, {"env": "alfworld", "game_file": "json/g.tw-pddl"}),
        ),
        ({"id": "a", "reward": 0.5, "conversations": TURNS}, Trajectory("a", EXPECTED, {"reward": 0.5})),
        (
            {
                "item_id": "webshop_3",
                "conversations": [TURNS[0], {**TURNS[1], "loss": False}, TURNS[0], {**TURNS[1], "loss": True}],
            },
            Trajectory("webshop_3", (EXPECTED[0], Message("assistant", "go to desk 1", 0.0), *EXPECTED)),
        ),
        (
            {
                "id": "a",
                "system": "be brief",
                "task_type": "heat",
                "conversations": [*TURNS, {"from": "observation", "value": "ok"}],
            },
            Trajectory("a", (Message("system", "be brief"), *EXPECTED, Message("tool", "ok")), {"task_type": "heat"}),
        ),
        ({"id": "a", "item_id": "b", "conversations": TURNS}, Trajectory("a", EXPECTED, {"item_id": "b"})),
        ({"id": "a", "messages": MESSAGES, "task": '{"n": [1]}', "stars": 5}, Trajectory("a", EXPECTED, {"n": [1], "stars": 5})),
        ({"id": "a", "messages": MESSAGES, "task": "{}"}, Trajectory("a", EXPECTED)),
        ({"id": "a", "messages": MESSAGES, "task": "heat {"}, Trajectory("a", EXPECTED, {"task": "heat {"})),
        ({"id": "a", "messages": MESSAGES, "task": "5"}, Trajectory("a", EXPECTED, {"task": "5"})),
    ],
    ids=[
        *("messages", "parts", "weight", "eto-game", "eto-reward", "agenttraj", "sharegpt", "two-ids"),
        *("json-task", "empty-task", "text-task", "number-task"),
    ],
)
def test_recognised_formats(tmp_path: Path, record: dict, expected: Trajectory) -> None:
    assert list(load_corpus([write(tmp_path / "data.jsonl", record)])) == [expected]


def test_source_and_default_id_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "my.data.jsonl"
    path.write_text(f"\n{json.dumps({'messages': MESSAGES})}\n\n{json.dumps({'messages': MESSAGES})}\n")
    first, second = list(load_corpus([path]))
    assert (first.id, first.source) == ("my.data-2", f"{path}:2")
    assert (second.id, second.source) == ("my.data-4", f"{path}:4")


def test_each_file_has_its_own_format_and_order_is_kept(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", {"id": "z", "messages": MESSAGES})
    b = write(tmp_path / "b.jsonl", {"id": "y", "reward": 1, "conversations": TURNS})
    assert [t.id for t in list(load_corpus([b, a]))] == ["y", "z"]


def test_forced_format_overrules_recognition(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": "a", "game_file": "g", "conversations": TURNS})
    assert next(iter(load_corpus([path], format="sharegpt"))).task == {"game_file": "g"}
    fails(path, "a.jsonl:1", "'messages'", "conversations", "looks like 'eto'", format="messages")
    with pytest.raises(ConfigError, match="agenttraj"):
        list(load_corpus([path], format="nonsense"))


def test_a_format_of_a_user_s_own_is_recognised_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMATS, "_known", dict(FORMATS._known))

    @register_format("pairs")
    class Pairs:
        @staticmethod
        def recognises(record):
            return "completion" in record

        @staticmethod
        def parse(record):
            messages = [Message("user", record["prompt"]), Message("assistant", record["completion"])]
            return Trajectory(record.get("id", ""), tuple(messages), {"stars": 5})

    assert isinstance(Pairs, type)
    pair = {"prompt": "look", "completion": "go to desk 1", "conversations": TURNS}
    path = write(tmp_path / "data.jsonl", pair, {**pair, "id": "b"})
    expected = [Trajectory("data-1", EXPECTED, {"stars": 5}), Trajectory("b", EXPECTED, {"stars": 5})]
    assert list(load_corpus(path)) == list(load_corpus(path, format="pairs")) == expected
    assert [t.task for t in load_corpus([pair], format="sharegpt")] == [{"prompt": "look", "completion": "go to desk 1"}]
    fails(write(path, {"completion": "b"}), "data.jsonl:1", "format 'pairs' cannot read the record (KeyError: 'prompt')")


# Sources


def test_trajectories_records_data_sets_and_files_give_one_corpus(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = write(tmp_path / "record.jsonl", *CORPUS)
    expected = list(load_corpus(path))
    data_set = datasets.Dataset.from_list(CORPUS)
    for source in (str(path), [path], CORPUS, data_set, iter(CORPUS), expected, iter(expected), load_corpus(path)):
        corpus = load_corpus(source)
        assert list(corpus) == expected
        assert list(corpus) == expected, "may be gone through again"
    assert [t.id for t in load_corpus(path, limit=2)] == ["0", "1"]
    assert [t.id for t in load_corpus(data_set, limit=2)] == ["0", "1"]
    assert [t.id for t in load_corpus([{"messages": MESSAGES}])] == ["record-1"]
    with pytest.raises(ConfigError, match="limit -1: must be 0 or more"):
        load_corpus([], limit=-1)
    with pytest.raises(ConfigError, match="mapping of train, test; choose one"):
        load_corpus(datasets.DatasetDict({"train": data_set, "test": data_set}))
    with pytest.raises(DataError, match="record 2: id '0' is taken by record 1"):
        list(load_corpus([CORPUS[0], CORPUS[0]]))
    with pytest.raises(DataError, match="record 2: expected a JSON object, found int"):
        list(load_corpus([CORPUS[0], 3]))  # pyright: ignore[reportArgumentType]
    assert list(load_corpus([])) == []


def test_a_corpus_knows_its_files_by_their_bytes(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", CORPUS[0]), write(tmp_path / "b.jsonl", *CORPUS[1:])]
    corpus = load_corpus(paths, format="messages", limit=2)
    assert [(Path(file.path), file.sha256) for file in corpus.files] == [
        (path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths
    ]
    assert (corpus.format, corpus.limit) == ("messages", 2)
    assert load_corpus(CORPUS).files == ()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: is no regular file"):
        _ = load_corpus(tmp_path / "pipe").files


# Files

CORPUS = [{"id": str(i), "messages": MESSAGES, "task": {"n": i}} for i in range(3)]
LINES = "".join(json.dumps(record) + "\n" for record in CORPUS).encode()
COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data[:50]) + zstandard.ZstdCompressor().compress(data[50:]),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("lines.jsonl", LINES),
        ("windows.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n")),
        ("no-end.jsonl", LINES.rstrip()),
        ("list.json", json.dumps(CORPUS).encode()),
        ("indented.json", json.dumps(CORPUS, indent=2).encode()),
    ],
)
def test_text_files(tmp_path: Path, name: str, data: bytes, suffix: str) -> None:
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESS[suffix](data))
    trajectories = list(load_corpus([path]))
    assert [t.id for t in trajectories] == ["0", "1", "2"]
    assert [t.task for t in trajectories] == [{"n": 0}, {"n": 1}, {"n": 2}]
    path.rename(tmp_path / "nameless")  # bytes say what a file is
    assert list(load_corpus([tmp_path / "nameless"])) == trajectories


@pytest.mark.parametrize("indent", [None, 2])
def test_single_json_object(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(CORPUS[0], indent=indent))
    assert [t.id for t in list(load_corpus([path]))] == ["0"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_parquet(tmp_path: Path, suffix: str) -> None:
    import polars

    # The missing keys of a struct come back as nulls, and a missing number as NaN.
    rows = [
        {
            "id": 1,
            "messages": [MESSAGES[0], {**MESSAGES[1], "train": False}, MESSAGES[1]],
            "score": float("nan"),
            "task": {"env": "x"},
        },
        {"id": 2, "messages": MESSAGES, "score": 1.0, "task": None},
    ]
    path = tmp_path / f"data.parquet{suffix}"
    polars.DataFrame(rows).write_parquet(tmp_path / "plain")
    path.write_bytes(COMPRESS[suffix]((tmp_path / "plain").read_bytes()))
    first, second = list(load_corpus([path]))
    assert first == Trajectory("1", (EXPECTED[0], Message("assistant", "go to desk 1", 0.0), EXPECTED[1]), {"env": "x"})
    assert second == Trajectory("2", EXPECTED, {"score": 1.0})
    assert second.source == f"{path}:row 2"


def test_written_messages_read_back_equal(tmp_path: Path) -> None:
    odd = Trajectory(
        "ü\u2028\U0001f600", (Message("system", ""), Message("user", 'a\n"b'), Message("assistant", "c", weight=0.0), *EXPECTED)
    )
    trajectories = [*sample_trajectories(20), odd]
    path = tmp_path / "sft.jsonl"
    write_messages_jsonl(path, trajectories)
    assert list(load_corpus([path])) == trajectories
    assert path.read_text().count('"train"') == 1
    before = path.read_bytes()
    write_messages_jsonl(path, list(load_corpus([path])))
    assert path.read_bytes() == before


# Errors


def test_missing_file_and_folder(tmp_path: Path) -> None:
    fails(tmp_path / "no.jsonl", "no such file", error=MissingFileError)
    fails(tmp_path, "is a folder")


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf\n", b"[]", gzip.compress(b"", mtime=0), lzma.compress(b"\n")])
def test_no_records(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    fails(tmp_path / "a.jsonl", "holds no records")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LINES + b'{"id": "9", "mess\n', ("a.jsonl:4", "broken JSON")),
        (b'{"id": "9", \n' + LINES, ("a.jsonl:1", "broken JSON")),
        (b'[{"id": 1},\n{"id": ]', ("a.jsonl:2", "broken JSON")),
        (LINES + b'"text"\n', ("a.jsonl:4", "JSON object")),
        (b"[[1]]", ("record 1", "JSON object")),
        (LINES + b'{"id": "\xff"}\n', ("a.jsonl:4", "UTF-8")),
        (b"[\n\n\xff]", ("a.jsonl:3", "UTF-8")),
        ("ä".encode("utf-16"), ("a.jsonl:1", "UTF-8")),
        (LINES + b'{"id": "\\ud800"}\n', ("a.jsonl:4", "\\ud8xx")),
        (LINES + b'{"id": NaN}\n', ("a.jsonl:4", "NaN")),
        (b"[" * 100_000, ("a.jsonl:1", "JSON")),
        (b"PAR1 and then nothing", ("Parquet",)),
        (b"id,messages\n1,a\n", ("a.jsonl:1", "begins with 'id,messages'", "Parquet")),
        (b"- id: 1\n", ("a.jsonl:1", "begins with '- id: 1'", "convert it")),
        (bz2.compress(LINES), ("a.jsonl:1", "begins with 'BZh9", "gzip, xz or zstd")),
    ],
)
def test_broken_files(tmp_path: Path, data: bytes, words: tuple[str, ...]) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    fails(tmp_path / "a.jsonl", *words)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_compressed_file_cut_short(tmp_path: Path, suffix: str, keep: float) -> None:
    data = b"".join(json.dumps({"id": str(i), "messages": MESSAGES, "n": i * i}).encode() + b"\n" for i in range(5000))
    compressed = COMPRESS[suffix](data)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compressed[: int(len(compressed) * keep)])
    fails(path, "compressed data broken or cut short")


def test_zstd_file_cut_at_a_record_boundary_is_not_taken_for_whole(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    flushed = compressor.compress(LINES) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    (tmp_path / "a.jsonl.zst").write_bytes(flushed)
    fails(tmp_path / "a.jsonl.zst", "cut short")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"ask": "a", "answer": "b"}, ("format not recognised", "ask, answer", "messages, eto, sharegpt, agenttraj")),
        ({"messages": "text"}, ("format not recognised", "messages")),
        ({"messages": []}, ("'messages' is empty",)),
        ({"messages": MESSAGES[:1]}, ("no assistant turn",)),
        ({"messages": [{"role": "robot", "content": "a"}]}, ("turn 1", "'robot'", "system, user, assistant, tool")),
        ({"messages": [{"role": ["user"], "content": "a"}]}, ("turn 1", "['user']")),
        ({"messages": MESSAGES, "task": '{"a": NaN}'}, ("'task' is not plain JSON",)),
        ({"messages": MESSAGES, "task": '{"a": "\\ud800"}'}, ("'task' is not plain JSON",)),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": None}]}, ("turn 2", "'content' is null")),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": 3}]}, ("turn 2", "'content' is a number")),
        ({"messages": [MESSAGES[0], {"role": "assistant"}]}, ("turn 2", "no 'content'")),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ("turn 1", "part that is not text")),
        ({"messages": [*MESSAGES, "text"]}, ("turn 3", "found a string")),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": [{}]}]}, ("turn 2", "'tool_calls'", "without a name")),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "train": "no"}]}, ("turn 2", "'train'", "true or false")),
        ({"id": "a", "reward": 1, "conversations": [{"from": "human"}]}, ("turn 1", "'value'")),
        ({"conversations": TURNS, "system": ["a"]}, ("'system' is a list",)),
        ({"conversations": [{"from": "system", "value": "a"}, *TURNS], "system": "b"}, ("keep one",)),
        ({"id": "", "messages": MESSAGES}, ("'id' is ''",)),
        ({"id": 1.5, "messages": MESSAGES}, ("'id' is 1.5",)),
        ({"id": True, "messages": MESSAGES}, ("'id' is True",)),
    ],
)
def test_bad_records(tmp_path: Path, record: dict, words: tuple[str, ...]) -> None:
    fails(write(tmp_path / "a.jsonl", record), "a.jsonl:1", *words)


def test_duplicate_ids_name_both_places(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", {"id": "x", "messages": MESSAGES}, {"id": "5", "messages": MESSAGES})
    b = write(tmp_path / "b.jsonl", {"id": 5, "messages": MESSAGES})
    with pytest.raises(DataError, match=r"b\.jsonl:1: id '5' is taken by .*a\.jsonl:2"):
        list(load_corpus([a, b]))


def test_jsonl_is_streamed(tmp_path: Path) -> None:
    """A broken last line is met after the records before it: no read of the whole file comes first."""
    (tmp_path / "a.jsonl").write_bytes(LINES + b"{")
    records = iter_records(tmp_path / "a.jsonl")
    assert [next(records).number for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DataError, match=r"a\.jsonl:4"):
        next(records)


def test_records_of_several_formats_in_one_file_are_each_read_by_their_own(tmp_path: Path, capsys) -> None:
    records = [{"messages": MESSAGES}, {"conversations": TURNS}, {"text": "look"}, {"messages": MESSAGES}]
    path = write(tmp_path / "mixed.jsonl", *records, {"instruction": "look", "output": "go to desk 1"})
    corpus = load_corpus(path, on_bad="skip")
    for _ in range(2):
        assert [trajectory.messages for trajectory in corpus] == [EXPECTED] * 4
    (skipped,) = corpus.account.skipped
    assert skipped.source == f"{path}:3" and "format 'sharegpt' needs a list 'conversations'" in skipped.reason
    told = f"{path}: records of several formats, each read by its own: messages (2), alpaca (1), sharegpt (1)"
    assert capsys.readouterr().err.count(told) == 1
    assert corpus.account.notes.to_json()["mixed_formats"] == {str(path): {"messages": 2, "alpaca": 1, "sharegpt": 1}}
    fails(path, "mixed.jsonl:2", "needs a list 'messages'", "looks like 'sharegpt'", format="messages")
    other = write(tmp_path / "other.jsonl", {"conversations": TURNS})
    two = load_corpus([other, write(tmp_path / "one.jsonl", {"messages": MESSAGES})])
    assert len(list(two)) == 2 and two.account.notes.mixed() == {}


def test_installed_packages_are_looked_through_once_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("gradprism.runtime.registry.entry_points", lambda **group: asked.append(group) or [])
    counts = []
    for size in (2, 50):
        path = write(tmp_path / f"{size}.jsonl", *[{"messages": MESSAGES}, {"conversations": TURNS}] * size)
        asked.clear()
        assert len(list(load_corpus(path))) == 2 * size
        counts.append(len(asked))
    assert counts[0] >= counts[1], "each format's name is looked up once, whatever the number of records"


@pytest.mark.parametrize(
    "document",
    [
        {"samples": [1], "eval": {}},
        {"samples": ["a"], "eval": {"task": "t"}},
        {"simulations": [None]},
        {"simulations": [{"reward_info": "x"}]},
        {"rows": [{"row": 3}]},
    ],
)
def test_documents_that_only_look_like_a_log_are_refused_in_one_line(tmp_path: Path, document: dict) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"a\.json[^\n]*$"):
        list(load_corpus(tmp_path / "a.json"))


@pytest.mark.parametrize(("header", "says"), [("{", "header.json:1: broken JSON"), ("[]", "format not recognised")])
def test_a_log_with_a_broken_header_is_refused_in_one_line(tmp_path: Path, header: str, says: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as archive:
        archive.writestr("header.json", header)
        archive.writestr("samples/1.json", "{}")
    with pytest.raises(DataError, match=says):
        list(load_corpus(tmp_path / "a.eval"))


def test_an_arrow_file_with_broken_offsets_is_refused_and_ends_no_process(tmp_path: Path) -> None:
    table = pyarrow.table({"id": ["first", "second"], "messages": [[{"role": "user", "content": "x" * 40}]] * 2})
    stream = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    data = stream.getvalue().to_pybytes()
    offsets = struct.pack("<3i", 0, 5, 11)  # of the ids
    (tmp_path / "a.arrow").write_bytes(data.replace(offsets, struct.pack("<3i", 0, 1 << 30, -5)))
    assert data.count(offsets) == 1
    with pytest.raises(DataError, match=r"a\.arrow: not a readable Arrow file"):
        list(load_corpus(tmp_path / "a.arrow"))
