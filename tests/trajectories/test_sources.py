"""Folders, globs and data sets as corpora; own names of fields; what is left out, and what nothing uses."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gradprism.runtime import progress
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError
from gradprism.runtime.files import write_jsonl
from gradprism.trajectories.corpus import load_corpus
from gradprism.trajectories.corpus_paths import expand, stems
from gradprism.trajectories.mapping import FieldMap, read_settings
from gradprism.trajectories.record import Message, ToolCall, Trajectory
from helpers.tiny import sample_trajectories

TURNS = [{"role": "user", "content": "when?"}, {"role": "assistant", "content": "09:12"}]
EXPECTED = (Message("user", "when?"), Message("assistant", "09:12"))


@pytest.fixture(autouse=True)
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Status lines are printed, whatever an earlier command with --json has asked for."""
    monkeypatch.setattr(progress, "_quiet", False)


def rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": str(start + i), "messages": TURNS} for i in range(n)]


# Where records come from


def test_a_folder_stands_for_its_files_and_a_glob_for_those_it_matches(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "b/.git").mkdir(parents=True)
    write_jsonl(tmp_path / "b/two.jsonl", rows(2))
    write_jsonl(tmp_path / "a.jsonl", rows(1, 2))
    write_jsonl(tmp_path / "b/.git/x.jsonl", rows(1))
    (tmp_path / "README.md").write_text("about")
    assert [t.id for t in load_corpus(tmp_path)] == ["2", "0", "1"]
    assert "2 files; left out: README.md" in capsys.readouterr().err
    assert [t.id for t in load_corpus(str(tmp_path / "**/*.jsonl"))] == ["2", "0", "1"]
    assert [t.id for t in load_corpus([tmp_path / "b", tmp_path / "a.jsonl"])] == ["0", "1", "2"]
    for missing in ("none*.jsonl", "none.jsonl"):
        with pytest.raises(MissingFileError, match="no"):
            load_corpus(tmp_path / missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="without a corpus"):
        load_corpus(tmp_path / "empty")


def test_records_without_ids_of_files_with_one_name_are_told_apart(tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        write_jsonl(tmp_path / part / "run.jsonl", [{"messages": TURNS}])
    assert [t.id for t in load_corpus(tmp_path)] == ["a/run-1", "b/run-1"]
    assert stems([Path("x/a/run.json"), Path("y/a/run.json")]) == ["run-1", "run-2"]


def test_a_data_set_on_disk_and_arrow_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    call = {"function": {"name": "find", "arguments": {"city": "Chur"}}}
    other = {"function": {"name": "look", "arguments": {"at": "desk"}}}  # Arrow pads each call with the other's arguments
    messages = [TURNS[0], *({"role": "assistant", "content": "", "tool_calls": [one]} for one in (call, other)), TURNS[1]]
    data_set = datasets.Dataset.from_list([{"id": str(i), "messages": messages} for i in range(5)])
    data_set.save_to_disk(tmp_path / "set", num_shards=2)
    calls = (ToolCall("find", {"city": "Chur"}), ToolCall("look", {"at": "desk"}))
    for source in (tmp_path / "set", data_set):
        read = list(load_corpus(source))
        assert [t.id for t in read] == ["0", "1", "2", "3", "4"]
        assert [c for m in read[0].messages for c in m.tool_calls] == list(calls)
    assert len(load_corpus(tmp_path / "set").files) == 2
    datasets.DatasetDict({"train": data_set, "test": data_set}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="the splits test, train; name one"):
        load_corpus(tmp_path / "splits")
    with pa.ipc.new_file(tmp_path / "x.arrow", pa.table({"id": ["7"], "messages": [json.dumps(TURNS)]}).schema) as file:
        file.write_table(pa.table({"id": ["7"], "messages": [json.dumps(TURNS)]}))
    assert [t.id for t in load_corpus(tmp_path / "x.arrow")] == ["7"]
    (tmp_path / "torn.arrow").write_bytes((tmp_path / "x.arrow").read_bytes()[:40])
    with pytest.raises(DataError, match=r"torn\.arrow: not a readable Arrow file"):
        list(load_corpus(tmp_path / "torn.arrow"))


def test_logs_of_inspect_and_simulations_of_tau2(tmp_path: Path) -> None:
    sample = {"id": 1, "epoch": 1, "target": "", "messages": TURNS, "scores": {"s": {"value": "I"}}}
    about = {"task": "trains", "model": "m"}
    (tmp_path / "log.json").write_text(json.dumps({"version": 2, "eval": about, "samples": [sample, {**sample, "epoch": 2}]}))
    with zipfile.ZipFile(tmp_path / "log.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"eval": about}))
        for epoch in (1, 2):
            archive.writestr(f"samples/1_epoch_{epoch}.json", json.dumps({**sample, "epoch": epoch}))
    task = {"epoch": 1, "eval_task": "trains", "eval_model": "m", "sample": "1", "score": 0.0}
    for name in ("log.json", "log.eval"):
        read = list(load_corpus(tmp_path / name))
        assert [(t.messages, t.task) for t in read] == [(EXPECTED, task), (EXPECTED, {**task, "epoch": 2})]
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(DataError, match="a zip file and no log"):
        list(load_corpus(tmp_path / "other.zip"))
    tau = {"simulations": [{"id": "s", "messages": TURNS, "reward_info": {"reward": 0.0}}]}
    assert list(load_corpus(write(tmp_path / "tau.json", tau))) == [Trajectory("s", EXPECTED, {"reward": 0.0})]
    served = {"rows": [{"row_idx": 0, "row": {"id": "r", "messages": TURNS}}]}
    assert list(load_corpus(write(tmp_path / "rows.json", served))) == [Trajectory("r", EXPECTED)]


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


# Own names


def test_own_names_of_fields_and_roles(tmp_path: Path) -> None:
    turns = [{"who": "boss", "said": "when?"}, {"who": "agent", "said": "09:12", "why": "table", "use": 0.5, "content": {"raw": 1}}]
    record = {"key": 5, "data": {"dialog": turns, "kit": [{"name": "find"}]}}
    settings = [
        *("turns=data.dialog", "speaker=who", "text=said", "role.boss=user", "role.agent=assistant", "reasoning=why", "weight=use"),
        *("id=key", "tools=data.kit"),
    ]
    (tmp_path / "map.toml").write_text(
        'turns = "data.dialog"\nspeaker = "who"\ntext = "said"\nreasoning = "why"\nweight = "use"\nid = "key"\n'
        'tools = "data.kit"\n[role]\nboss = "user"\nagent = "assistant"\n'
    )
    expected = (Message("user", "when?"), Message("assistant", "09:12", 0.5, reasoning="table"))
    for names in (read_settings(settings), read_settings([str(tmp_path / "map.toml")])):
        corpus = load_corpus([record], mapping=names)
        (made,) = corpus
        assert (made.id, made.messages, made.tools[0]["function"]["name"]) == ("5", expected, "find")
        assert corpus.account.notes.turn_keys == {"content (beside said)": 1}
    with pytest.raises(DataError, match=r"record 1: no 'dialog', which the map names as the turns; keys seen: key, data"):
        list(load_corpus([record], mapping={"turns": "dialog"}))
    assert read_settings(None) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"turn": "a"}, "map turn: unknown; choose one of turns"),
        ({"role.a": "robot"}, "'robot' is no role; choose one of system, user"),
        ({"turns": ""}, "no name"),
    ],
)
def test_wrong_names_are_refused(names: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FieldMap.of(names)
    with pytest.raises(ConfigError, match=words):
        load_corpus([], mapping=names)


def test_the_map_of_a_role_works_without_one_of_the_turns() -> None:
    record = {"conversations": json.dumps([{"from": "human", "value": "a"}, {"from": "robot", "value": "b"}])}
    assert [m.role for m in next(iter(load_corpus([record], mapping={"role.robot": "assistant"}))).messages] == [
        "user",
        "assistant",
    ]
    with pytest.raises(MissingFileError, match="no such file"):
        read_settings(["none.toml"])


# What is left out, and what nothing uses


def test_bad_records_are_left_out_with_their_reasons_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row) for row in rows(2)]
    bad = ['{"id": "broken', json.dumps({"id": "x", "messages": TURNS[:1]}), '{"id": "\\ud800"}', lines[0], "3"]
    path.write_text("\n".join([bad[0], lines[0], *bad[1:], lines[1]]) + "\n")
    corpus = load_corpus(path, on_bad="skip")
    for _ in range(2):  # each pass anew
        assert [t.id for t in corpus] == ["0", "1"]
        assert [(one.id, one.source.rpartition(":")[2], one.reason.split(";")[0][:22]) for one in corpus.account.skipped] == [
            ("", "1", "broken JSON (Untermina"),
            ("x", "3", "no assistant turn, so "),
            ("", "4", "a \\ud8xx escape withou"),
            ("0", "5", "id '0' is taken by " + str(path)[:3]),
            ("", "6", "expected a JSON object"),
        ]
    with pytest.raises(DataError, match=r"a\.jsonl:1: broken JSON"):
        list(load_corpus(path))
    with pytest.raises(ConfigError, match="choose fail or skip"):
        load_corpus(path, on_bad="ignore")  # pyright: ignore[reportArgumentType]
    assert load_corpus(path, on_bad="skip").read_as() == {"format": None, "limit": None, "on_bad": "skip"}
    assert load_corpus(path, mapping={"turns": "a"}).read_as() == {"format": None, "limit": None, "mapping": {"turns": "a"}}


def test_what_nothing_uses_is_said_once_by_name_and_count(capsys: pytest.CaptureFixture) -> None:
    turn = {**TURNS[1], "mood": "calm", "when": 3, "nothing": None, "empty": []}
    corpus = load_corpus([{"messages": [TURNS[0], turn, turn], "info": {"a": 1}, "stars": 5, "none": None}])
    assert [t.task for t in corpus] == [{"stars": 5}]
    assert list(corpus)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "keys of a record that nothing uses (times): 'info' (1)",
        "keys of a turn that nothing uses (times): 'mood' (2), 'when' (2)",
    ]
    plain = load_corpus(sample_trajectories(2))
    assert [list(plain), capsys.readouterr().err][1] == ""


def test_paths_are_expanded_in_their_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write_jsonl(tmp_path / name, rows(1))
    assert [p.name for p in expand([tmp_path / "b.jsonl", tmp_path])] == ["b.jsonl", "a.jsonl", "b.jsonl"]
