import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from gradprism.runtime import folders
from gradprism.runtime.errors import DataError, FolderInUseError, MissingFileError, WriteError
from gradprism.runtime.files import (
    append_jsonl,
    atomic_write,
    parse_json,
    parse_toml,
    read_json,
    remove_stale_temporaries,
    sha256_folder,
    sha256_json,
    umask,
    write_json,
)
from gradprism.runtime.folders import FolderKind, OnExisting, atomic_folder, claim_output_folder, removed_on_failure


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_written_files_have_the_usual_permissions(tmp_path):
    write_json(tmp_path / "a.json", 1)
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_lists_of_numbers_take_one_line_and_strings_stay_as_they_are(tmp_path):
    value = {"a": [1, -2.5, 1e-07], "b": [[3], []], "c": "[\n  1,\n  2\n]", "d": ["x", 1], "e": [True, None]}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert '"a": [1, -2.5, 1e-07]' in text and "[3]" in text


def test_broken_and_missing_json_are_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json: not valid JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(MissingFileError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DataError, match="is a folder"):
        read_json(tmp_path)


def test_hashes_follow_content_and_nothing_else(tmp_path):
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 1, "b": 3})
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "f").write_text("x")
    assert sha256_folder(tmp_path / "one") == sha256_folder(tmp_path / "two")
    (tmp_path / "two" / "sub" / "f").rename(tmp_path / "two" / "f")
    assert sha256_folder(tmp_path / "one") != sha256_folder(tmp_path / "two")


def test_output_folders_are_claimed_once(tmp_path):
    folder = claim_output_folder(tmp_path / "out")
    assert claim_output_folder(folder) == folder  # empty still
    append_jsonl(folder / "x.jsonl", {"a": 1})
    append_jsonl(folder / "x.jsonl", {"a": 2})
    assert [json.loads(line) for line in (folder / "x.jsonl").read_text().splitlines()] == [{"a": 1}, {"a": 2}]
    with open(folder / "x.jsonl", "a") as file:
        file.write('{"a": ')  # torn by a kill
    append_jsonl(folder / "x.jsonl", {"a": 3})
    assert (folder / "x.jsonl").read_text().splitlines()[2:] == ['{"a": ', '{"a": 3}']
    with pytest.raises(FolderInUseError, match="is not empty"):
        claim_output_folder(folder)
    with pytest.raises(FolderInUseError, match="is not a folder"):
        claim_output_folder(folder / "x.jsonl")


def test_what_the_system_refuses_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "a.json"
    for write in (write_json, append_jsonl):
        with pytest.raises(WriteError, match=rf"{below}: cannot be written \(.*\); make room, or name a folder"):
            write(below, 1)
    # An error of ours that is also an OSError is about something else.
    with pytest.raises(MissingFileError, match="other: no such file"), atomic_write(tmp_path / "b") as file:
        file.write(read_json(tmp_path / "other"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_temporaries_of_killed_writers_are_deleted_and_those_of_living_ones_kept(tmp_path):
    with atomic_write(tmp_path / "living") as file:
        file.write("x")
        (old := tmp_path / ".dead.abc.tmp").write_text("x")
        (young := tmp_path / ".young.abc.tmp").write_text("x")
        (tmp_path / "thesis.tmp").write_text("mine")
        for path in tmp_path.iterdir():
            if path != young:
                os.utime(path, (0, 0))
        remove_stale_temporaries(tmp_path)
        assert not old.exists()
        assert young.exists()
    assert (tmp_path / "living").read_text() == "x"
    assert (tmp_path / "thesis.tmp").exists()


def test_folders_of_a_failed_block_are_removed_unless_they_hold_something(tmp_path):
    with pytest.raises(RuntimeError), removed_on_failure(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir(parents=True)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(RuntimeError), removed_on_failure(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir()
        (tmp_path / "a" / "b" / "kept").touch()
        raise RuntimeError
    assert (tmp_path / "a" / "b" / "kept").exists()


@pytest.mark.parametrize(
    "text",
    ['{"a": ', '"\\ud800"', '{"\\uDFFF": 1}', "[" * 100_000, "9" * 5000, b"\xff", b"\xed\xa0\x80", '"a"'.encode("utf-16")],
    ids=["cut", "half", "half-key", "deep", "digits", "byte", "encoded-half", "utf-16"],
)
def test_what_is_no_json_is_one_kind_of_error(text, tmp_path):
    with pytest.raises(ValueError):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"a\.json: not valid JSON \([^\n]+\)$"):
        read_json(tmp_path / "a.json")


def test_escapes_that_are_whole_characters_are_read():
    assert parse_json('"\\ud83d\\ude00 \\\\ud800 \\u00e9"') == "\U0001f600 \\ud800 é" and parse_json(b'"\xc3\xa9"') == "é"


@pytest.mark.parametrize("text", ["a = ", "a = " + "[" * 100_000, "a = " + "9" * 5000], ids=["cut", "deep", "digits"])
def test_what_is_no_toml_is_one_kind_of_error(text):
    with pytest.raises(ValueError):
        parse_toml(text)


def test_of_two_that_claim_a_folder_at_once_the_second_sees_what_the_first_wrote(tmp_path, monkeypatch):
    kind, out, begun, go = FolderKind("thing", identity="x"), tmp_path / "out", threading.Event(), threading.Event()
    write = folders.write_json

    def slow(path, value):
        begun.set()
        assert go.wait(10)
        write(path, value)

    monkeypatch.setattr(folders, "write_json", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kind.claim, out, {"x": 1}, "resume")
        assert begun.wait(10)
        second = pool.submit(kind.claim, out, {"x": 2}, "resume")
        assert not wait([second], timeout=0.3).done
        go.set()
        assert first.result(10) is False
        with pytest.raises(FolderInUseError, match=r"another thing \(x: 1 → 2\)"):
            second.result(10)
    assert read_json(out / "manifest.json") == {"x": 1}
    assert [path.name for path in out.iterdir()] == ["manifest.json"]


def make(out, text, on_existing: OnExisting = "fail", during=None):
    with atomic_folder(out, on_existing, "marker", "thing") as folder:
        (folder / "marker").write_text(text)
        folder.chmod(0o700)  # as a folder that is copied into it leaves it
        if during is not None:
            during()


def test_a_folder_appears_whole_replaces_its_like_and_can_be_read_by_others(tmp_path):
    out = tmp_path / "out"
    make(out, "old")
    make(out, "new", "replace", lambda: None)
    assert (out / "marker").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~umask()
    with pytest.raises(FolderInUseError, match="or --on-existing replace where it holds a thing"):
        make(out, "other")


def test_of_two_that_write_a_folder_at_once_the_second_is_told(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FolderInUseError, match="another command has written it meanwhile"):
        make(out, "second", during=lambda: make(out, "first"))
    assert (out / "marker").read_text() == "first" and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new(tmp_path, monkeypatch, exchanges):
    out, seen = tmp_path / "out", []
    make(out, "old")
    if not exchanges:
        monkeypatch.setattr(folders.ctypes, "CDLL", lambda _: None)
    else:
        monkeypatch.setattr(folders.Path, "rename", lambda *_: seen.append("a moment without a folder"))
    make(out, "new", "replace")
    assert (out / "marker").read_text() == "new" and not seen and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_of_killed_commands_are_removed_and_those_of_living_ones_kept(tmp_path):
    out, names = tmp_path / "out", []
    kept = [tmp_path / ".out.tmp", tmp_path / ".out.mine.tmp", tmp_path / ".output.abcd1234.tmp"]
    for path in (*kept, dead := tmp_path / ".out.abcd1234.tmp", tmp_path / ".out.abcd1234.old"):
        path.mkdir()
        os.utime(path, (0, 0))

    def inner():
        [living] = [path for path in tmp_path.iterdir() if path.name.startswith(".out.") and path not in kept]
        os.utime(living, (0, 0))
        make(tmp_path / "beside" / ".." / "out", "first")
        names.extend(path.name for path in tmp_path.iterdir())
        assert living.exists()

    (tmp_path / "beside").mkdir()
    with pytest.raises(FolderInUseError, match="meanwhile"):
        make(out, "second", during=inner)
    assert dead.name not in names and set(names) >= {path.name for path in kept}
