"""A route folder as verl and verl-agent read it: the SFT set and the RL prompts in Parquet, and the tasks that RL may draw.

verl-agent takes from the Parquet file only how many episodes a step has; its environments draw games and goals by themselves. So the
routed tasks are also written as a list, which a few changed lines of verl-agent read. docs/verl.md tells which, and what verl reads.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradprism import __version__
from gradprism.environments.alfworld import official
from gradprism.environments.registry import make_environment
from gradprism.environments.webshop.goals import SHUFFLE_SEED, TEST
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError
from gradprism.runtime.files import atomic_write, read_json, sha256_file, write_json
from gradprism.runtime.folders import OnExisting, atomic_folder, check_choice
from gradprism.trajectories.readers import iter_trajectories
from gradprism.trajectories.record import Trajectory

MARKER = "export.json"
# Under this name alfworld-download lays out the games, and verl-agent's configuration looks for them.
ALFWORLD_LAYOUT = "json_2.1.1"
ROUTE_FILES = ("routing.json", "sft.jsonl", "rl.jsonl")
ROUTING_KEYS = ("policy", "metric", "normalise", "threshold_rule", "threshold", "rl_share", "seed", "n_sft", "n_rl", "probe")
ROWS = 1000  # rows of a row group, and of what is in memory at once
_GAME_FILE = re.compile(rf"([^/]+)/([^/]+)/([^/]+)/{re.escape(official.GAME_FILE)}")
_GOAL = re.compile(r"((official|generated)-\d+-[0-9a-f]{8})/(synthetic|human)/(\d{1,9})", re.ASCII)
_MESSAGE = [("role", pa.string()), ("content", pa.string())]


@dataclass(frozen=True, slots=True)
class RlTask:
    """A task of `rl.jsonl`. `counterpart` names it in the official data of verl-agent's environment: None there for what it has not."""

    env: str
    id: str
    split: str
    counterpart: dict[str, Any]
    trajectory: str
    prompt: list[dict[str, str]]
    reference: dict[str, Any]
    place: str

    @property
    def official(self) -> bool:
        """Whether verl-agent's environment has the task."""
        return any(value is not None for value in self.counterpart.values())


def export_verl(route: Path, out: Path, *, data_dir: Path | None = None, on_existing: OnExisting = "fail") -> dict[str, Any]:
    """Writes a route folder for verl and verl-agent, whole or not at all, and returns the contents of its `export.json`.

    `data_dir` holds WebShop's official files, from which products and options are written beside the goals' numbers. Raises
    `MissingFileError` or `DataError` naming the file and line for a folder that is no whole route folder or a task that cannot be
    named, `ConfigError` for `data_dir` of another catalogue, and `FolderInUseError`.
    """
    check_choice(on_existing, ("replace", "fail"))
    routing = _read_routing(route)
    tasks, n_rl = _read_tasks(route / "rl.jsonl")
    if n_rl != routing["n_rl"]:
        raise DataError(f"{route / 'rl.jsonl'}: holds {n_rl} lines, routing.json says {routing['n_rl']}; route again")
    lists = {env: _task_list(env, some, data_dir) for env, some in tasks.items()}
    if data_dir is not None and not any("goals" in value for value in lists.values()):
        raise ConfigError(f"--data-dir {data_dir}: no RL task is a goal of WebShop's official files; leave it out")
    warnings = [warning for env, some in tasks.items() for warning in _task_warnings(env, some, lists[env])]
    with atomic_folder(out, on_existing, MARKER, "verl export") as folder:
        files: dict[str, dict[str, Any]] = {}
        sft = {"trajectories": 0, "turns_not_learnt": 0}
        if (route / "sft.jsonl").stat().st_size:
            sft = _write_sft(route / "sft.jsonl", folder / "sft.parquet")
            files["sft.parquet"] = {"rows": sft["trajectories"]}
        if sft["trajectories"] != routing["n_sft"]:
            raise DataError(
                f"{route / 'sft.jsonl'}: holds {sft['trajectories']} trajectories, routing.json says {routing['n_sft']}; route again"
            )
        for env, some in tasks.items():
            rl, allowed = f"rl-{_file_name(env)}.parquet", f"tasks-{_file_name(env)}.json"
            _write_rl(some, folder / rl)
            write_json(folder / allowed, lists[env])
            files |= {rl: {"rows": len(some)}, allowed: {"tasks": sum(task.official for task in some)}}
        for name, about in files.items():
            about["sha256"] = sha256_file(folder / name)
        if sft["turns_not_learnt"]:
            warnings.insert(
                0,
                f"{sft['turns_not_learnt']} assistant turns are not to be learnt (loss_mask 0), but verl learns every assistant turn "
                "unless it is changed (docs/verl.md)",
            )
        for what, n in (("SFT", routing["n_sft"]), ("RL", routing["n_rl"])):
            if n == 0:
                warnings.append(f"the route sends nothing to {what}, so there is no file for it")
        export = {
            "format": "verl",
            "source": {
                "folder": str(route),
                "routing": {key: routing.get(key) for key in ROUTING_KEYS},
                "sha256": {name: sha256_file(route / name) for name in ROUTE_FILES},
            },
            "sft": sft,
            "rl": {
                env: {
                    "tasks": len(some),
                    "official": sum(task.official for task in some),
                    "no_counterpart": sum(not task.official for task in some),
                }
                for env, some in tasks.items()
            },
            "rl_trajectories": n_rl,
            "files": files,
            "warnings": warnings,
            "versions": {"gradprism": __version__, "pyarrow": pa.__version__},
        }
        write_json(folder / MARKER, export)
    return export


def _read_routing(route: Path) -> dict[str, Any]:
    if not route.is_dir():
        raise MissingFileError(f"{route}: no such folder; give the --out of `gradprism route`")
    for name in ROUTE_FILES:
        if not (route / name).is_file():
            raise MissingFileError(f"{route}: is no route folder (no {name}); give the --out of `gradprism route`")
    routing = read_json(route / "routing.json")
    if not isinstance(routing, dict) or any(type(routing.get(key)) is not int for key in ("n_sft", "n_rl")):
        raise DataError(f"{route / 'routing.json'}: has no numbers n_sft and n_rl, so it is not of a route folder; route again")
    return routing


def _read_tasks(path: Path) -> tuple[dict[str, list[RlTask]], int]:
    """The tasks by environment, each once, in the order of their first lines; and the number of lines."""
    tasks: dict[tuple[str, str], RlTask] = {}
    number = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            task = _parse(line, f"{path}:{number}")
            tasks.setdefault((task.env, task.id), task)
    by_env: dict[str, list[RlTask]] = {}
    for task in tasks.values():
        by_env.setdefault(task.env, []).append(task)
    if len({_file_name(env) for env in by_env}) < len(by_env):
        raise DataError(
            f"{path}: environments {sorted(by_env)} would share a file; give them names that differ in letters or digits"
        )
    return by_env, number


def _parse(line: bytes, place: str) -> RlTask:
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # what Parquet cannot hold: half characters
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}); route again") from None
    value = value if isinstance(value, dict) else {}
    reference, prompt, identifier = value.get("task"), value.get("prompt"), value.get("id")
    if not isinstance(reference, dict) or not isinstance(env := reference.get("env"), str) or not env:
        raise DataError(
            f"{place}: names no task of an environment, so none can set it up; give the corpus tasks, or route without it"
        )
    if not isinstance(identifier, str | int) or isinstance(identifier, bool):
        raise DataError(f"{place}: has no 'id'; route again")
    if (
        not isinstance(prompt, list)
        or not prompt
        or not all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt)
    ):
        raise DataError(
            f"{place}: 'prompt' is no list of messages with a role and a text; a trajectory must begin with an observation"
        )
    messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
    try:
        name, split, counterpart = _NAMED.get(env, _other)(reference)
    except ConfigError as error:
        raise DataError(f"{place}: {error}") from None
    return RlTask(env, name, split, counterpart, str(identifier), messages, reference, place)


def _alfworld(reference: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """A game by its id or, in older corpora, by its file."""
    name, game_file = reference.get("id"), reference.get("game_file")
    if not isinstance(name, str) and isinstance(game_file, str):
        match = _GAME_FILE.search(game_file)
        if match is None:
            raise ConfigError(f"game_file {game_file!r}: expected …/SPLIT/TASK/TRIAL/{official.GAME_FILE}")
        name = "/".join((official.PREFIX, *match.groups()))
    task = make_environment("alfworld").task({"env": "alfworld", "id": name})
    if not task.id.startswith(f"{official.PREFIX}/"):
        return task.id, task.split, {"game_file": None}
    if task.split not in official.SPLITS:
        raise ConfigError(f"game {task.id!r}: split {task.split!r} is none of {list(official.SPLITS)}")
    return task.id, task.split, {"game_file": f"{ALFWORLD_LAYOUT}/{task.id.partition('/')[2]}/{official.GAME_FILE}"}


def _webshop(reference: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    name = reference.get("id")
    match = _GOAL.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ConfigError(f"task {reference!r}: expected the id of a goal, as official-1000-1a2b3c4d/synthetic/17")
    return match[0], _split(reference), {"goal_index": int(match[4]) if match[2] == "official" else None}


def _other(reference: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    name = reference.get("id")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"task {reference!r}: has no 'id'")
    return name, _split(reference), {}


_NAMED: dict[str, Callable[[dict[str, Any]], tuple[str, str, dict[str, Any]]]] = {"alfworld": _alfworld, "webshop": _webshop}


def _split(reference: dict[str, Any]) -> str:
    split = reference.get("split")
    return split if isinstance(split, str) else ""


def _task_list(env: str, tasks: list[RlTask], data_dir: Path | None) -> dict[str, Any]:
    """What verl-agent's environment may draw. Lists that would be empty are left out: who reads one that is not there finds out."""
    known, unknown = [task for task in tasks if task.official], [task.id for task in tasks if not task.official]
    value: dict[str, Any] = {"environment": env}
    if known and env == "alfworld":
        value["game_files"] = [task.counterpart["game_file"] for task in known]
    elif known and env == "webshop":
        value |= _goal_list(known, data_dir)
    if unknown:
        value["no_counterpart"] = unknown
    return value


def _goal_list(tasks: list[RlTask], data_dir: Path | None) -> dict[str, Any]:
    catalogue, kind, _ = tasks[0].id.split("/")
    for task in tasks:
        if not task.id.startswith(f"{catalogue}/{kind}/"):
            raise DataError(
                f"{task.place}: goal {task.id!r} is not of {catalogue}/{kind}, as those before it; verl-agent plays one catalogue: "
                "route them apart"
            )
    value = {
        "catalogue": catalogue,
        "human_goals": kind == "human",
        "shuffle_seed": SHUFFLE_SEED,
        "goal_indices": [task.counterpart["goal_index"] for task in tasks],
    }
    if data_dir is not None:
        environment: Any = make_environment("webshop", data_dir=str(data_dir), goals=kind)
        goals = [environment.store.goals[environment.store.number(task.id)] for task in tasks]
        value["goals"] = [
            {
                "index": task.counterpart["goal_index"],
                "asin": goal.asin,
                "options": dict(goal.options) if isinstance(goal.options, Mapping) else list(goal.options),
                "instruction": goal.text,
            }
            for task, goal in zip(tasks, goals, strict=True)
        ]
    return value


def _task_warnings(env: str, tasks: list[RlTask], value: dict[str, Any]) -> Iterator[str]:
    if unknown := len(value.get("no_counterpart", ())):
        yield (
            f"{unknown} of {len(tasks)} {env} tasks are not of the data that verl-agent plays (generated, or another environment's): "
            "their ids are under no_counterpart, and verl-agent cannot draw them"
        )
    if env == "alfworld":
        elsewhere = sorted({task.split for task in tasks if task.official and task.split != "train"})
        if elsewhere:
            yield f"some ALFWorld games are of {', '.join(elsewhere)}; verl-agent trains on those of train only"
    if "goal_indices" in value:
        yield (
            f"goal_indices count in the shuffle of seed {SHUFFLE_SEED}; verl-agent shuffles in each worker with that worker's seed, so "
            "give all workers this one (docs/verl.md), or they name other goals"
        )
        if tested := sum(index < TEST for index in value["goal_indices"]):
            yield f"{tested} WebShop goals are among the {TEST} on which verl-agent validates"
        if "goals" not in value:
            yield "give --data-dir to have product, options and instruction beside each of WebShop's goal indices"


def _write_sft(source: Path, path: Path) -> dict[str, int]:
    """One row a trajectory. A message has `loss_mask` only in a set with turns that are not to be learnt; then each has."""
    masked = any(not m.train for t in iter_trajectories([source], "messages") for m in t.messages if m.role == "assistant")
    message = pa.struct([*_MESSAGE, ("loss_mask", pa.int64())] if masked else _MESSAGE)
    schema = pa.schema([("messages", pa.list_(message)), ("id", pa.string()), ("task", pa.string())])
    counts = {"trajectories": 0, "turns_not_learnt": 0}

    def row(trajectory: Trajectory) -> dict[str, Any]:
        counts["trajectories"] += 1
        counts["turns_not_learnt"] += sum(m.role == "assistant" and not m.train for m in trajectory.messages)
        messages = [
            {**m.to_chat(), "loss_mask": int(m.role == "assistant" and m.train)} if masked else m.to_chat()
            for m in trajectory.messages
        ]
        return {"messages": messages, "id": trajectory.id, "task": _json(trajectory.task)}

    _write_parquet(path, schema, map(row, iter_trajectories([source], "messages")))
    return counts


def _write_rl(tasks: list[RlTask], path: Path) -> None:
    """One row a task; all rows of a file have one environment, so `env_kwargs` has one form."""
    types = {"game_file": pa.string(), "goal_index": pa.int64()}
    schema = pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", pa.list_(pa.struct(_MESSAGE))),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            (
                "extra_info",
                pa.struct([("index", pa.int64()), ("split", pa.string()), ("id", pa.string()), ("task", pa.string())]),
            ),
            ("env_kwargs", pa.struct([("task_id", pa.string()), *((key, types[key]) for key in tasks[0].counterpart)])),
        ]
    )
    rows = (
        {
            "data_source": task.env,
            "prompt": task.prompt,
            "ability": "agent",
            # The environment rewards; the task stands where verl's own reward functions expect an answer.
            "reward_model": {"style": "rule", "ground_truth": task.id},
            "extra_info": {"index": index, "split": task.split, "id": task.trajectory, "task": _json(task.reference)},
            "env_kwargs": {"task_id": task.id, **task.counterpart},
        }
        for index, task in enumerate(tasks)
    )
    _write_parquet(path, schema, rows)


def _write_parquet(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        rows = iter(rows)
        while some := list(islice(rows, ROWS)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _file_name(env: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", env).strip("-").lower()
