"""Runs, trainings and evaluations as their pages show them, while they are being written too."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from gradprism.evaluation.summary import summarise
from gradprism.experiments.results import Cost
from gradprism.experiments.schedule import RUNNING
from gradprism.experiments.stage import Record
from gradprism.probing.folder import WHOLE, ProbeFolder
from gradprism.probing.plan import item_of
from gradprism.rollouts.episode import Episode
from gradprism.runtime.errors import DataError, GradprismError, MissingFileError
from gradprism.runtime.files import read_json, read_jsonl
from gradprism.runtime.folders import MANIFEST
from gradprism.studio.folders import STAGES, Folder, is_locked
from gradprism.training.doctor import SEEN, Doctor

# What is made of a folder, by kind, once for each of its versions: `Resources.once`.
Once = Callable[[str, Folder, Callable[[], dict[str, Any]]], dict[str, Any]]
_LOCKS = {"run": ".experiment.tmp", "evaluation": ".evaluation.tmp", "training": ".training.tmp"}
_COSTS = tuple(Cost.model_fields)
# Figures of a log that say how fast and not how well it goes come last.
_FIRST = ("loss", *SEEN, "reward", "score", "grad_norm", "learning_rate", "eval_loss")


def is_running(folder: Folder) -> bool:
    """Whether a command writes into the folder at this moment."""
    return folder.kind in _LOCKS and is_locked(folder.path, _LOCKS[folder.kind])


@dataclass(frozen=True)
class Parts:
    """The folders within a run, or the one folder of a training or evaluation by itself."""

    run: Folder
    within: Sequence[Folder]

    def of(self, kind: str) -> list[Folder]:
        """Those of a kind, in order."""
        return [folder for folder in (self.run, *self.within) if folder.kind == kind]

    def one(self, kind: str, id: str) -> Folder:
        """That of an id; raises `MissingFileError`."""
        found = next((folder for folder in self.of(kind) if folder.id == id), None)
        if found is None:
            raise MissingFileError(f"{self.run.shown}: has no {kind} {id[:40]!r}; load the page again")
        return found


def run_view(parts: Parts, corpora: Sequence[Folder], results: bool, once: Once) -> dict[str, Any]:
    """`RunView` of `web/src/api.ts`; raises `DataError` for files that are broken.

    A live run is asked for again and again, so what is told of its trainings and evaluations is made `once` for each of their versions.
    """
    run = parts.run
    records = _records(run)
    trainings = [once("training", folder, partial(_training, folder)) for folder in parts.of("training")]
    evaluations = []
    for folder in parts.of("evaluation"):
        record = records.get(folder.path.parent.name)  # it comes when the stage ends, and says what was evaluated
        kind = "evaluation" if record is None else "evaluation of a stage"
        evaluations.append(once(kind, folder, partial(_evaluation, folder, record)))
    running = _running_stages(parts) if run.kind == "run" else []
    stages = [*(_stage(record) for record in sorted(records.values(), key=lambda record: record.started)), *running]
    found = [warning for training in trainings for warning in training["warnings"]]
    warnings = [*found, *(str(line) for record in records.values() for line in _warnings(record) if line not in found)]
    config = run.path / "config.json" if run.kind == "run" else run.path / MANIFEST
    active = is_running(run) or any(stage["state"] == "running" for stage in running)
    return {
        "id": run.id,
        "version": run.version(),
        "name": run.name,
        "path": run.shown,
        "state": "running" if active else "finished" if _is_finished(run) else "unfinished",
        "stages": stages,
        "trainings": trainings,
        "evaluations": evaluations,
        "corpora": [{"id": folder.id, "name": folder.name} for folder in corpora],
        "results": run.id if results else None,
        "config": read_json(config) if config.is_file() else None,
        "warnings": list(dict.fromkeys(warnings)),
    }


def _is_finished(run: Folder) -> bool:
    last = {"run": "results.json", "training": "summary.json", "evaluation": "summary.json"}
    return run.kind in last and (run.path / last[run.kind]).is_file()


def _records(run: Folder) -> dict[str, Record]:
    """The records of the stages that are done, by their names."""
    found = {}
    for path in sorted(run.path.glob(f"{STAGES}/*/stage.json")):
        with _broken(path, "delete the stage's folder and run again"):
            found[path.parent.name] = Record.model_validate(read_json(run.below(*path.relative_to(run.path).parts)))
    return found


@contextlib.contextmanager
def _broken(path: Path, remedy: str) -> Any:
    """Turns whatever a file of another form raises in the block into a `DataError`."""
    try:
        yield
    except GradprismError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: is of another version or broken ({type(error).__name__}: {why}); {remedy}") from None


def _warnings(record: Record) -> Iterable[Any]:
    return record.found.get("warnings", []) if isinstance(record.found, dict) else []  # pyright: ignore[reportReturnType]


def _stage(record: Record) -> dict[str, Any]:
    about = {"name": f"{record.kind}-{record.key}", "kind": record.kind, "state": "done", "started": record.started}
    return {**about, "headline": record.headline, "progress": None, **record.cost.model_dump()}


def _running_stages(parts: Parts) -> list[dict[str, Any]]:
    """Those that a process has marked, and those that a killed one has left."""
    run, told = parts.run, []
    for path in sorted(run.path.glob(f"{RUNNING}/*.json")):
        name = path.stem
        with contextlib.suppress(GradprismError, KeyError, TypeError):  # it has ended meanwhile
            marker = read_json(path)
            alive = False
            with contextlib.suppress(psutil.Error, ValueError, OverflowError):  # the last: no number of a process
                alive = psutil.Process(marker["pid"]).create_time() == marker["created"]
            inside = [folder for folder in parts.within if folder.path.is_relative_to(run.path / STAGES / name)]
            state = "running" if alive else "stopped"
            about = {"name": name, "kind": name.rpartition("-")[0], "state": state, "started": None, "headline": ""}
            told.append({**about, "progress": _progress(inside), **dict.fromkeys(_COSTS)})
    return told


def _progress(folders: Sequence[Folder]) -> dict[str, Any] | None:
    """How far the first of the folders is that tells it."""
    for folder in folders:
        with contextlib.suppress(GradprismError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
            if folder.kind == "probe":
                probe = ProbeFolder(folder.path)
                done = int((item_of(probe.finished(set_aside=False))[1] == WHOLE).sum())
                return {"done": done, "total": probe.manifest.n_trajectories, "unit": "trajectories"}
            if folder.kind == "training":
                rows = read_jsonl(folder.path / "log.jsonl")
                return {"done": int(_last(rows, "step") or 0), "total": _total_steps(folder), "unit": "steps"}
            if folder.kind == "evaluation":
                done = len(read_jsonl(folder.path / "episodes.jsonl"))
                return {"done": done, "total": _total_episodes(folder), "unit": "episodes"}
    return None


# --- trainings


def _training(folder: Folder) -> dict[str, Any]:
    manifest, rows = read_json(folder.below(MANIFEST)), _rows(folder)
    summary = read_json(folder.below("summary.json")) if (folder.path / "summary.json").is_file() else {}
    with _broken(folder.path, "train anew with --on-existing replace"):
        kind = manifest["command"]
        doctor = Doctor.of(rows if kind == "rl" else [])
        raised = doctor.alarms()
        warnings = [line for line in summary.get("warnings", []) if not any(line.endswith(str(alarm)) for alarm in raised)]
        figures = dict.fromkeys(name for row in rows for name in row)
        order = [*(name for name in _FIRST if name in figures), *(name for name in figures if name not in (*_FIRST, "step"))]
        return {
            "id": folder.id,
            "name": folder.path.name,
            "kind": kind,
            "steps": int(_last(rows, "step") or 0),
            "total_steps": summary.get("steps") or _total_steps(folder),
            "alarms": [{**asdict(alarm), "round": doctor.raised[alarm.name]} for alarm in raised],
            "warnings": warnings,  # those that are no alarm
            "figures": order,
        }


def _rows(folder: Folder) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(folder.below("log.jsonl")) if isinstance(row, dict)]


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    return next((row[name] for row in reversed(rows) if name in row), None)


def _total_steps(folder: Folder) -> int | None:
    """Of RL the rounds' steps; of SFT they depend on the data, and are known when it ends."""
    config = read_json(folder.path / MANIFEST).get("config", {})
    if steps := config.get("max_steps") if "rounds" not in config else None:
        return int(steps)
    each = config.get("updates_per_round", 1) * config.get("epochs_per_round", 1)
    return int(config["rounds"] * each) if "rounds" in config else None


def log_view(folder: Folder) -> dict[str, Any]:
    """`Log` of `web/src/api.ts`."""
    rows = _rows(folder)
    names = dict.fromkeys(["step", *(name for row in rows for name in row)])
    return {"version": folder.version(), "columns": {name: [_number(row.get(name)) for row in rows] for name in names}}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else None


# --- evaluations


def _episodes(folder: Folder) -> list[Episode]:
    path = folder.below("episodes.jsonl")
    with _broken(path, "evaluate again with --on-existing replace"):
        return [Episode.from_json(line) for line in read_jsonl(path)]


def _total_episodes(folder: Folder) -> int | None:
    config = read_json(folder.path / MANIFEST).get("config", {})
    counts = list(config.get("splits", {}).values())
    return None if not counts or None in counts else sum(counts) * config.get("attempts", 1)


def _evaluation(folder: Folder, record: Record | None) -> dict[str, Any]:
    episodes, manifest = _episodes(folder), read_json(folder.below(MANIFEST))
    summary = read_json(folder.below("summary.json")) if (folder.path / "summary.json").is_file() else {}
    with _broken(folder.path, "evaluate again with --on-existing replace"):
        return _evaluated(folder, record, episodes, manifest, summary)


def _evaluated(folder: Folder, record: Record | None, episodes: Sequence[Episode], manifest: Any, summary: Any) -> dict[str, Any]:
    causes = record.causes if record else None
    model = causes.get("model") if isinstance(causes, dict) else None
    agent = str(model or "base") if record else str(manifest.get("agent", {}).get("kind", ""))
    return {
        "id": folder.id,
        "name": folder.path.parent.name if record else folder.path.name,
        "agent": agent,
        "rows": [asdict(row) for row in summarise(episodes)] if episodes else [],
        "episodes": len(episodes),
        "total": _total_episodes(folder),
        "remarks": list(summary.get("remarks", [])),
    }


def episode_list(folder: Folder) -> dict[str, Any]:
    """`EpisodeList` of `web/src/api.ts`."""
    episodes = _episodes(folder)
    columns = {
        "id": [episode.task.id for episode in episodes],
        "task_type": [episode.task.task_type for episode in episodes],
        "split": [episode.task.split for episode in episodes],
        "success": [episode.success for episode in episodes],
        "score": [episode.score for episode in episodes],
        "reward": [episode.reward for episode in episodes],
        "steps": [len(episode.turns) for episode in episodes],
        "invalid": [sum(not turn.valid for turn in episode.turns) for episode in episodes],
        "tokens": [line.get("tokens", 0) for line in read_jsonl(folder.path / "episodes.jsonl")],
        "stop_reason": [episode.stop_reason.value for episode in episodes],
    }
    return {"version": folder.version(), "n": len(episodes), "columns": columns}


def episode_views(folder: Folder) -> list[dict[str, Any]]:
    """Every `Episode` of `web/src/api.ts`."""
    return [_episode(number, episode) for number, episode in enumerate(_episodes(folder))]


def episode_view(folder: Folder, number: int) -> dict[str, Any]:
    """One of them; raises `MissingFileError`."""
    episodes = _episodes(folder)
    if not 0 <= number < len(episodes):
        raise MissingFileError(f"{folder.shown}: has no episode {number}, only {len(episodes)}; go back to the list")
    return _episode(number, episodes[number])


def _episode(number: int, episode: Episode) -> dict[str, Any]:
    steps = [
        {"observation": turn.observation, "action": turn.action, "valid": turn.valid, "reward": turn.reward}
        for turn in episode.turns
    ]
    numbers = {key: told for key, value in {**episode.parts, **episode.details}.items() if (told := _number(value)) is not None}
    return {
        "n": number,
        "id": episode.task.id,
        "task_type": episode.task.task_type,
        "split": episode.task.split,
        "success": episode.success,
        "score": episode.score,
        "reward": episode.reward,
        "stop_reason": episode.stop_reason.value,
        "failure": episode.failure,
        "steps": steps,
        "observation": episode.observation,
        "parts": numbers,
        "details": dict(episode.details),
    }
