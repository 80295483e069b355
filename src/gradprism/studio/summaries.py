"""A folder in a few words, for the list of all."""

from pathlib import Path

from gradprism.experiments.results import read_results
from gradprism.probing.folder import ProbeFolder
from gradprism.routing.routes import Routes
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import read_json, read_jsonl
from gradprism.runtime.folders import MANIFEST
from gradprism.studio.folders import STAGES, Folder


def summary(folder: Folder) -> str:
    """`564 trajectories, 28 matrices of alfworld-tiny`; raises `DataError` for a folder that cannot be read."""
    try:
        return _SUMMARIES[folder.kind](folder)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder.shown}: is of another version; give the command again that wrote it") from None


def _probe(folder: Folder) -> str:
    manifest = ProbeFolder(folder.path).manifest
    model = Path(manifest.model).name or manifest.model_class
    return f"{manifest.n_trajectories} trajectories, {len(manifest.units)} matrices of {model}"


def _route(folder: Folder) -> str:
    routes = Routes.load(folder.path)
    routes.audit()  # all that the corpus's page needs of it
    return str(routes.routing)


def _run(folder: Folder) -> str:
    records = [read_json(path) for path in sorted(folder.path.glob(f"{STAGES}/*/stage.json"))]
    told = [record for record in records if record["kind"] == "evaluate" and record.get("headline")]
    last = max(told, key=lambda record: record["started"])["headline"] if told else ""
    return f"{len(records)} stages done{f', last {last}' if last else ''}"


def _results(folder: Folder) -> str:
    results = read_results(folder.path)
    arms, seeds = sum(bool(arm.runs) for arm in results.arms), len(results.seeds)
    return f"{arms} arm{'s' * (arms != 1)}, {seeds} seed{'s' * (seeds != 1)}, {results.environment}"


def _training(folder: Folder) -> str:
    manifest, rows = read_json(folder.below(MANIFEST)), read_jsonl(folder.below("log.jsonl"))
    step = next((int(row["step"]) for row in reversed(rows) if "step" in row), 0)
    state = "" if (folder.path / "summary.json").is_file() else " so far"
    return f"{str(manifest['command']).upper()}, {step} steps{state}"


def _evaluation(folder: Folder) -> str:
    if not (folder.path / "summary.json").is_file():
        return f"{len(read_jsonl(folder.below('episodes.jsonl')))} episodes so far"
    rows = [row for row in read_json(folder.below("summary.json"))["rows"] if row["task_type"] == "all"]
    return ", ".join(f"{row['split']} {100 * row['success']:.1f} % of {row['episodes']}" for row in rows)


_SUMMARIES = {
    "probe": _probe,
    "route": _route,
    "run": _run,
    "results": _results,
    "training": _training,
    "evaluation": _evaluation,
}
