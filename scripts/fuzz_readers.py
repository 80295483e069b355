"""The readers that `fuzz.py` feeds, and valid files of each to begin with."""

import gzip
import io
import json
import lzma
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--env-option", "difficulty=tiny", "--workers", "1"]
MODEL = str(ROOT / "src/gradprism/data/alfworld-tiny")
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
_TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": _SCHEMA}}
_CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Chur"}'}}
_ASK, _ANSWER = {"role": "user", "content": "when?"}, {"role": "assistant", "content": "09:12"}
_TOLD = {"role": "tool", "content": "no", "name": "find", "tool_call_id": "c1"}
_PARTS = [
    {"type": "thinking", "thinking": "b"},
    {"type": "text", "text": "a"},
    {"type": "tool_use", "id": "c1", "name": "find", "input": {"city": "Chur"}},
]
# A record of each format, in the spellings that it has.
RECORDS: list[dict[str, Any]] = [
    {"id": "a", "messages": [_ASK, {"role": "assistant", "content": None, "tool_calls": [_CALL]}, _TOLD, _ANSWER], "tools": [_TOOL]},
    {"id": 3, "messages": [{"role": "system", "content": "s"}, _ASK, {**_ANSWER, "train": False}, _ASK, {**_ANSWER, "weight": 0.5}],
     "task": {"env": "alfworld", "id": "x", "reward": 1}},
    {"messages": json.dumps([_ASK, _ANSWER]), "reward": 1.0},
    {"messages": [_ASK, {"role": "assistant", "content": _PARTS, "reasoning_details": [{"text": "b"}], "train_detail": [{"train": True}]}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": json.dumps(_CALL["function"])},
                       {"from": "observation", "value": "c"}, {"from": "gpt", "value": "d", "loss": True}],
     "system": "s", "tools": json.dumps([_TOOL])},
    {"item_id": "i", "conversations": [{"from": "human", "loss": None, "value": "a"}, {"from": "gpt", "loss": True, "value": "b"}]},
    {"game_file": "g", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"prompt": [_ASK], "completion": [_ANSWER], "label": True},
    {"prompt": "a", "completion": "b"},
    {"instruction": "when", "input": "x", "output": "y", "history": [["a", "b"]], "system": "s"},
    {"query": "q", "answers": json.dumps([{"name": "find", "arguments": {"city": "Chur"}}]), "tools": json.dumps([_TOOL["function"]])},
    {"traj": [_ASK, _ANSWER], "reward": 0.0, "task_id": 4},
    {"trajectory": [{"role": "user", "text": "a", "mask": False}, {"role": "ai", "text": "b", "is_demo": True},
                    {"role": "ai", "text": "c"}]},
    {"schema_version": "ATIF-v1.4", "session_id": "s", "agent": {"name": "x", "tool_definitions": [_TOOL]}, "steps": [
        {"step_id": 1, "source": "user", "message": "a"},
        {"step_id": 2, "source": "agent", "message": "", "reasoning_content": "r",
         "tool_calls": [{"tool_call_id": "c1", "function_name": "find", "arguments": {"city": "Chur"}}],
         "observation": {"results": [{"source_call_id": "c1", "content": "b"}]}},
        {"step_id": 3, "source": "agent", "message": "c", "is_copied_context": True}, {"step_id": 4, "source": "agent", "message": "d"}]},
    {"id": "d", "content": [{"class_": "text_observation", "content": "a", "source": "user"},
                            {"class_": "api_action", "function": "find", "kwargs": {"city": "Chur"}, "description": "I ask."},
                            {"class_": "text_observation", "content": "no", "source": "environment"},
                            {"class_": "code_action", "language": "bash", "content": "date"}, {"class_": "message_action", "content": "e"}],
     "details": {"reward": "1"}},
    {"id": 7, "epoch": 1, "target": "t", "scores": {"match": {"value": "C"}}, "attachments": {"abc": "when?"}, "messages": [
        {"id": "m1", "role": "user", "content": "attachment://abc"}, {"id": "m2", "role": "assistant", "content": _PARTS},
        {"role": "tool", "content": "", "tool_call_id": "c1", "error": {"type": "x", "message": "no"}}, _ANSWER]},
]  # fmt: skip
_ITEM = {"name": "Oak Console Table", "asin": "A1", "full_description": "Oak.", "pricing": "$49.95", "product_category": "Home › Tables",
         "small_description": ["Easy", "Hand made"], "customization_options": {"Color": [{"value": "Light/Dark Brown"}, {"value": "navy"}],
         "size": None}, "category": "garden", "query": "Tables "}  # fmt: skip
_ITEMS = [_ITEM, {**_ITEM, "asin": "A2", "pricing": "$3.5 to $7.5", "customization_options": "", "small_description": "Crisp"}]
_WANTED = {"A1": {"attributes": ["solid wood"], "instruction": "Find a table", "instruction_attributes": ["solid wood"]},
           "A2": {"attributes": ["gluten free"], "instruction": "Find it", "instruction_attributes": ["gluten free"]}}  # fmt: skip
_HUMAN = {"A1": [{"instruction": "a table.", "instruction_attributes": ["solid wood"], "instruction_options": ["navy"]}]}
_MAP = b'turns = "dialog"\nspeaker = "who"\ntext = "said"\n[role]\nagent = "assistant"\n'
_EPISODES = b"".join(json.dumps({"id": name, "success": name == "a", "turns": []}).encode() + b"\n" for name in ("a", "b"))


@dataclass(frozen=True)
class Reader:
    """What is read: the file `file` in a folder that is else a copy of the seeds' folder `base` (none: an empty one), by `read`."""

    name: str
    file: str
    read: Callable[[Path], object]
    base: str = ""

    def prepare(self, seeds: Path, folder: Path) -> None:
        """Makes the folder."""
        if self.base:
            shutil.copytree(seeds / self.base, folder)
        (folder / self.file).parent.mkdir(parents=True, exist_ok=True)

    def place(self, folder: Path, data: bytes) -> None:
        """Puts an input where it is read."""
        (folder / self.file).write_bytes(data)


def _corpus(folder: Path) -> None:
    """Both ways to read, and what was read is written and read back."""
    from gradprism.runtime.errors import GradprismError
    from gradprism.trajectories.corpus import load_corpus, write_messages_jsonl

    path = folder / "corpus.jsonl"
    kept = list(load_corpus(path, on_bad="skip"))
    write_messages_jsonl(folder / "again.jsonl", kept)
    assert not kept or list(load_corpus(folder / "again.jsonl")) == kept, "not the same when read back"
    error: GradprismError | None = None
    try:
        assert len(list(load_corpus(path))) == len(kept), "another number with on_bad skip"
    except GradprismError as refused:
        error = refused
    if error is not None:
        raise error


def _map(folder: Path) -> None:
    from gradprism.trajectories.corpus import load_corpus
    from gradprism.trajectories.mapping import read_settings

    record = {"dialog": [{"who": "user", "said": "a"}, {"who": "agent", "said": "b"}]}
    list(load_corpus([record], mapping=read_settings([str(folder / "map.toml")])))


def _config(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        from gradprism.cli.config_file import defaults
        from gradprism.experiments.config import load_config

        load_config(folder / name, ["rl.rounds=2", "model.dtype=float32"]).portable(folder)
        for section in ("probe", "sft", "rl"):
            defaults(section, folder / name, [])

    return read


def _probe(folder: Path) -> None:
    import gradprism as gp

    probe = gp.Probe.load(folder)
    _ = probe.manifest.fingerprint, probe.ids, probe.norms, list(probe.trajectories)


def _folder(folder: Path) -> None:
    from gradprism.probing.folder import ProbeFolder

    ProbeFolder(folder).finished(set_aside=False)


def _prepared(folder: Path) -> None:
    from gradprism.models import ModelSpec
    from gradprism.probing.folder import ProbeFolder
    from gradprism.probing.prepared import Prepared, prepare
    from gradprism.probing.work import make_renderer
    from gradprism.trajectories.corpus import load_corpus

    manifest = ProbeFolder(folder).manifest
    prepare(folder, manifest, load_corpus(folder.parent.parent / "seeds/corpus.jsonl"), make_renderer(ModelSpec(MODEL), None, 512))
    Prepared(folder).items(per_turn=True)


def _routes(folder: Path) -> None:
    import gradprism as gp

    routes = gp.Routes.load(folder)
    _ = routes.frame, routes.sft, routes.rl, str(routes.audit()), repr(routes)


def _results(folder: Path) -> None:
    from rich.console import Console

    from gradprism.reporting.pages import print_tables
    from gradprism.studio.api import write_report

    write_report(folder, folder / "report.html")
    print_tables(folder, Console(file=io.StringIO()))


def _game(folder: Path) -> None:
    from gradprism.environments.alfworld.official import _index, games_folder, list_official, load_official

    _index.cache_clear()
    root = games_folder(str(folder))
    for name in list_official(root, "train"):
        load_official(root, name)


def _game_cache(folder: Path) -> None:
    """The game's own file is whole; what is kept of it in the cache is not."""
    from gradprism.environments.alfworld.official import _index, games_folder, list_official
    from gradprism.runtime.files import cache_folder

    _index.cache_clear()
    root = games_folder(str(folder))
    if not list((cache_folder() / "alfworld").glob("games-*.json")):
        list_official(root, "train")
        _index.cache_clear()
    for path in (cache_folder() / "alfworld").glob("games-*.json"):
        path.write_bytes((folder / "index.json").read_bytes())
    assert len(list_official(root, "train")) == 1, "a game less"


def _catalogue(folder: Path) -> None:
    from gradprism.environments.webshop.catalogue import read_catalogue
    from gradprism.environments.webshop.goals import make_goals

    catalogue = read_catalogue(folder)
    for human in (False, True):
        make_goals(catalogue, human)


def _episodes(folder: Path) -> None:
    from gradprism.routing.tasks import PassRates

    PassRates.of(folder / "episodes.jsonl")


def _tasks(folder: Path) -> None:
    from gradprism.environments.registry import make_environment
    from gradprism.training.tasks import read_tasks

    read_tasks(folder / "rl.jsonl", make_environment("alfworld", difficulty="tiny"))


def _training(folder: Path) -> None:
    from gradprism.training.folder import TRAINING, finished_training, read_log

    TRAINING.check(folder, "resume")
    read_log(folder)
    finished_training(folder)


READERS = (
    Reader("corpus", "corpus.jsonl", _corpus),
    Reader("map", "map.toml", _map),
    Reader("toml", "config.toml", _config("config.toml")),
    Reader("json config", "config.json", _config("config.json")),
    Reader("manifest", "manifest.json", _probe, "probe"),
    Reader("probed corpus", "corpus.jsonl", _probe, "probe"),
    Reader("shard", "norms-0.parquet", _folder, "probe"),
    Reader("rendered", "rendered.arrow", _prepared, "probe"),
    Reader("rendered note", "rendered.json", _prepared, "probe"),
    Reader("routing", "routing.json", _routes, "route"),
    Reader("routes", "routes.parquet", _routes, "route"),
    Reader("audit", "audit.json", _routes, "route"),
    Reader("sft set", "sft.jsonl", _routes, "route"),
    Reader("rl set", "rl.jsonl", _routes, "route"),
    Reader("results", "results.json", _results),
    Reader("game", "json_2.1.1/train/pick_and_place_simple-A-None-B-1/trial_1/game.tw-pddl", _game),
    Reader("game cache", "index.json", _game_cache, "games"),
    Reader("items", "items_shuffle_1000.json", _catalogue, "shop"),
    Reader("packed items", "items_shuffle_1000.json.xz", _catalogue, "packed shop"),
    Reader("instructions", "items_ins_v2_1000.json", _catalogue, "shop"),
    Reader("human", "items_human_ins.json", _catalogue, "shop"),
    Reader("episodes", "episodes.jsonl", _episodes),
    Reader("tasks", "rl.jsonl", _tasks),
    Reader("summary", "summary.json", _training, "training"),
    Reader("training", "manifest.json", _training, "training"),
    Reader("log", "log.jsonl", _training, "training"),
)


def make_seeds(folder: Path) -> dict[str, list[bytes]]:
    """Makes the folders that readers need in `folder`, by the commands that write them; gives valid files by the readers' names."""
    folder.mkdir(parents=True)
    corpus, probe, route = folder / "corpus.jsonl", folder / "probe", folder / "route"
    _command(["collect", *TINY, "--count", "4", "--out", str(corpus)])
    _command(["probe", "--model", MODEL, "--data", str(corpus), "--context-length", "512", "--threads", "1", "--out", str(probe)])
    _command(["route", str(probe), "--out", str(route)])
    training = ["sft", "--model", MODEL, "--data", str(corpus), "--context-length", "512", "--max-steps", "1"]
    _command([*training, "--out", str(folder / "training")])
    results = _small(json.loads((ROOT / "results/alfworld-mini/results.json").read_bytes()))
    game = _game_seed(folder / "games")
    for name, packed in (("shop", False), ("packed shop", True)):
        (folder / name).mkdir()
        (folder / name / "items_ins_v2_1000.json").write_text(json.dumps(_WANTED))
        (folder / name / "items_human_ins.json").write_text(json.dumps(_HUMAN))
        if not packed:
            (folder / name / "items_shuffle_1000.json").write_text(json.dumps(_ITEMS))
    shard = next(probe.glob("norms-*.parquet"))
    shard.rename(shard.with_name("norms-0.parquet"))
    config = (ROOT / "configs/quickstart.toml").read_bytes()
    mini = (ROOT / "configs/alfworld-mini.toml").read_bytes()
    values = {"name": "x", "seed": 0, "model": {"path": "m"}, "corpus": {"files": ["a"], "map": {"turns": "t"}}, "seeds": [0, 1],
              "rl": {"rounds": 1, "prompt": {}}, "arms": [{"name": "base", "sft": "none", "rl": "none"}, {"name": "sft"}],
              "environment": {"options": {"difficulty": "tiny"}}, "sweeps": [], "claims": []}  # fmt: skip
    stamps = [1, 2, True, "ab"]
    lines = [json.dumps(record).encode() for record in RECORDS]
    made = {
        "corpus": [*(line + b"\n" for line in lines), *_containers(lines[:3])],
        "map": [_MAP],
        "toml": [config, mini],
        "json config": [json.dumps(values).encode()],
        "results": [results],
        "game": [game],
        "game cache": [json.dumps({"pick_and_place_simple-A-None-B-1/trial_1": stamps}).encode()],
        "packed items": [lzma.compress(json.dumps(_ITEMS).encode())],
        "episodes": [_EPISODES],
        "tasks": [(route / "rl.jsonl").read_bytes()],
    }
    for reader in READERS:
        if reader.name not in made:
            made[reader.name] = [(folder / reader.base / reader.file).read_bytes()]
    return made


def _containers(lines: list[bytes]) -> list[bytes]:
    """The same records in other files: a list, gzip, xz, Parquet, Arrow, inspect_ai's log."""
    import pyarrow
    import pyarrow.parquet

    text, rows, log = b"\n".join(lines), io.BytesIO(), io.BytesIO()
    table = pyarrow.table({"messages": [[_ASK, _ANSWER]], "id": ["a"]})
    pyarrow.parquet.write_table(table, rows)
    stream = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    with zipfile.ZipFile(log, "w") as archive:
        archive.writestr("header.json", json.dumps({"eval": {"task": "t", "model": "m"}}))
        archive.writestr("samples/1_epoch_1.json", json.dumps(RECORDS[-1]))
    document = b"[\n" + b",\n".join(lines) + b"]"
    return [
        document,
        gzip.compress(text, mtime=0),
        lzma.compress(text),
        rows.getvalue(),
        stream.getvalue().to_pybytes(),
        log.getvalue(),
    ]


def _small(results: dict[str, Any], tasks: int = 8) -> bytes:
    """Results of few tasks: tables of many take seconds."""
    results["tasks"] = {split: rows[:tasks] for split, rows in results["tasks"].items()}
    for run in (run for arm in results["arms"] for run in arm.get("runs", [])):
        for key in ("success", "score"):
            run[key] = {split: values[:tasks] for split, values in run.get(key, {}).items()}
        for sampling in results["evaluations"]:
            if sampled := run.get("sampled", {}).get(sampling["name"]):
                for key, each in (("success", sampling.get("attempts", 1)), ("score", 1)):
                    sampled[key] = {split: values[: tasks * each] for split, values in sampled[key].items()}
    return json.dumps(results).encode()


def _game_seed(folder: Path) -> bytes:
    from gradprism.environments.alfworld.generator import generate

    game = generate("tiny/train/pick_and_place_simple/0")
    content = {
        "pddl_domain": "x",
        "grammar": f'"Your task is to: {game.goal}"',
        "pddl_problem": game.pddl_problem,
        "solvable": True,
    }
    path = folder / next(reader.file for reader in READERS if reader.name == "game")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path.read_bytes()


def _command(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "gradprism", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"gradprism {' '.join(arguments)}: {done.stderr}")
