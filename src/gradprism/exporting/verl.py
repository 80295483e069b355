"""A route as verl and verl-agent read it: the SFT set and the RL prompts in Parquet, and the tasks that RL may draw.

verl-agent takes from the Parquet file only how many episodes there are per step; its environments draw games and goals by themselves.
So the routed tasks are also written as a list, which a few changed lines of verl-agent read. docs/verl.md says which, and what verl reads.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from gradprism.environments.webshop.goals import SHUFFLE_SEED, TEST
from gradprism.exporting.chats import CHAT
from gradprism.exporting.rl_rows import empty_sides
from gradprism.exporting.tables import Kind, json_text, write_parquet
from gradprism.exporting.verl_sft import MESSAGE, write_verl_sft
from gradprism.exporting.verl_tasks import COLUMNS, VerlTask, file_name, read_tasks
from gradprism.routing.routes import Routes
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.runtime.files import write_json


def export_verl(routes: Routes, folder: Path, *, data_dir: Path | str | None = None) -> list[str]:
    """Writes `sft.parquet`, and `rl-<environment>.parquet` and `tasks-<environment>.json` of each environment; returns warnings.

    Beside `sft.parquet` stands `gradprism_verl.py` where verl needs it. `data_dir` holds WebShop's official files, from which products
    and options are written beside the goals' numbers. Raises `DataError` naming the file and line for a task that cannot be named,
    `ConfigError` for `data_dir` of another catalogue.
    """
    tasks = read_tasks(routes.sets.rl())
    lists = {env: _task_list(env, some, data_dir) for env, some in tasks.items()}
    if data_dir is not None and not any("goals" in value for value in lists.values()):
        raise ConfigError(f"--data-dir {data_dir}: no RL task is a goal of WebShop's official files; leave it out")
    warnings = list(write_verl_sft(routes, folder))
    for env, some in tasks.items():
        name = file_name(env)
        warnings += _write_rl(some, folder / f"rl-{name}.parquet")
        write_json(folder / f"tasks-{name}.json", lists[env])
        warnings += _task_warnings(env, some, lists[env])
    return warnings + empty_sides(routes)


def _task_list(env: str, tasks: list[VerlTask], data_dir: Path | str | None) -> dict[str, object]:
    """The tasks that verl-agent's environment may draw. Empty lists are left out: who reads one that is not there finds out."""
    known, unknown = [task for task in tasks if task.counterpart is not None], [t.id for t in tasks if t.counterpart is None]
    value: dict[str, object] = {"environment": env}
    if known and env == "alfworld":
        value["game_files"] = [task.counterpart for task in known]
    elif known and env == "webshop":
        value |= _goal_list(known, data_dir)
    if unknown:
        value["no_counterpart"] = unknown
    return value


def _goal_list(tasks: list[VerlTask], data_dir: Path | str | None) -> dict[str, object]:
    catalogue, kind, _ = tasks[0].id.split("/")
    for task in tasks:
        if not task.id.startswith(f"{catalogue}/{kind}/"):
            raise DataError(
                f"{task.place}: goal {task.id!r} is not of {catalogue}/{kind}, as those before it; verl-agent plays one catalogue: "
                "route them apart"
            )
    indices = [task.counterpart for task in tasks]
    value: dict[str, object] = {
        "catalogue": catalogue,
        "human_goals": kind == "human",
        "shuffle_seed": SHUFFLE_SEED,
        "goal_indices": indices,
    }
    if data_dir is not None:
        from gradprism.environments.webshop.environment import WebshopEnvironment  # needs the extra `webshop`

        store = WebshopEnvironment(data_dir=str(data_dir), goals=kind).store
        value["goals"] = [
            {
                "index": index,
                "asin": goal.asin,
                "options": dict(goal.options) if isinstance(goal.options, Mapping) else list(goal.options),
                "instruction": goal.text,
            }
            for index, goal in zip(indices, [store.goals[store.number(task.id)] for task in tasks], strict=True)
        ]
    return value


def _task_warnings(env: str, tasks: list[VerlTask], value: Mapping[str, object]) -> Iterator[str]:
    known = [task for task in tasks if task.counterpart is not None]
    if len(known) < len(tasks):
        yield (
            f"{len(tasks) - len(known)} of {len(tasks)} {env} tasks are not of the data that verl-agent plays (generated, or another "
            "environment's): their ids are under no_counterpart, and verl-agent cannot draw them"
        )
    if env == "alfworld" and (elsewhere := sorted({task.split for task in known} - {"train"})):
        yield f"some ALFWorld games are of {', '.join(elsewhere)}; verl-agent trains on those of train only"
    if env == "webshop" and known:
        yield (
            f"goal_indices count in the shuffle of seed {SHUFFLE_SEED}; verl-agent shuffles in each worker with that worker's seed, so "
            "give all workers this one (docs/verl.md), or they name other goals"
        )
        if tested := sum(task.counterpart in range(TEST) for task in known):
            yield f"{tested} WebShop goals are among the {TEST} on which verl-agent validates"
        if "goals" not in value:
            yield "give --data-dir to have product, options and instruction beside each of WebShop's goal indices"


def _write_rl(tasks: list[VerlTask], path: Path) -> list[str]:
    """One row per task; all rows of a file have one environment, so `env_kwargs` has one form. Gives warnings.

    Prompts of plain text are lists of role and content; others are columns of free JSON, which the loader's datasets decodes.
    """
    column = COLUMNS.get(tasks[0].env, {})
    rich = any(message.keys() - {"role", "content"} for task in tasks for message in task.rl.prompt)
    n_tools = sum(bool(task.rl.tools) for task in tasks)
    extra = [("index", pa.int64()), *((name, pa.string()) for name in ("split", "id", "task", *(["tools"] if n_tools else [])))]
    columns: dict[str, Kind] = {
        "data_source": pa.string(),
        "prompt": CHAT if rich else pa.list_(pa.struct(MESSAGE)),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct(extra),
        "env_kwargs": pa.struct({"task_id": pa.string(), **column}),
    }
    rows = (
        {
            "data_source": task.env,
            "prompt": task.rl.prompt,
            "ability": "agent",
            # The environment rewards; the task stands where verl's own reward functions expect an answer.
            "reward_model": {"style": "rule", "ground_truth": task.id},
            "extra_info": {"index": index, "split": task.split, "id": task.rl.id, "task": _json(task.rl.task), **_tools(task)},
            "env_kwargs": {"task_id": task.id, **dict.fromkeys(column, task.counterpart)},
        }
        for index, task in enumerate(tasks)
    )
    write_parquet(path, columns, rows)
    tools = (
        f"{n_tools} {tasks[0].env} tasks have tools, which verl takes from its own configuration: extra_info.tools has them as JSON"
    )
    return [tools] if n_tools else []


def _tools(task: VerlTask) -> dict[str, str]:
    return {"tools": json_text(task.rl.tools)} if task.rl.tools else {}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
