"""Stages: each a frozen dataclass of everything that its result depends on, in a folder named by the hash of that.

A stage is done when its folder holds `stage.json`, which is written last. Asked for again, a done stage is reused; one that was cut short
is run again, after its folder was emptied unless it resumes. A changed value changes the keys of the stages that have it and of those
built on them, and of no others.
"""

import contextlib
import platform
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import psutil
from pydantic import BaseModel, JsonValue, ValidationError

import gradprism
from gradprism.experiments.results import Cost, Machine, Part, Seconds
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import append_jsonl, read_json, sha256_file, sha256_json, write_json
from gradprism.runtime.memory import gpu_name, peak_gpu_memory_mib, peak_memory_mib, reset_peak_gpu_memory, reset_peak_memory
from gradprism.runtime.settings import wrong_value
from gradprism.runtime.usage import Usage

RECORD, LEDGER, STAGES = "stage.json", "ledger.jsonl", "stages"
# Settings that say how a training is watched and kept, and change nothing that it ends with.
NO_CAUSE = frozenset({"track", "save_steps", "save_every", "keep_checkpoints"})
# What keys say of a setting that follows from the device where none is given: its default once, so that results from then are found.
_BY_DEVICE: dict[str, JsonValue] = {"micro_batch_tokens": 8192}
F = TypeVar("F", bound=Part, covariant=True)
G = TypeVar("G", bound=Part)
_NONE = Usage()
_AGAIN = "delete its folder, it is made again"


@dataclass(frozen=True)
class Outcome(Generic[F]):
    """The end of a stage: what was `found`, in a line (`headline`), and what it used.

    `usage` counts tokens and environment steps of all attempts, `earlier` the seconds of those that were cut short.
    """

    found: F
    headline: str = ""
    usage: Usage = _NONE
    earlier: Usage = _NONE
    evaluation_seconds: float = 0.0


class Record(Part):
    """A stage that is done: what it depended on, which code made it on which machine, its cost and what it found."""

    kind: str
    key: str
    causes: JsonValue
    version: str
    code: str
    started: str
    machine: Machine
    cost: Cost
    evaluation_seconds: Seconds
    headline: str
    found: JsonValue
    work: float = 1.0


@dataclass(frozen=True)
class Stage(Generic[F]):
    """A node of the graph: fields that are stages, or tuples of them, are what it needs.

    Fields with `compare=False` (where a file lies, how many processes work) are no causes and have no part in the key.

    A subclass has the fields, `Found` (what it leaves to results and later stages, if anything) and `runner`, the function that does the
    work, as `module:function`; a process of its own imports the module before the stage's clock starts. `resumes`: it goes on from what a
    killed attempt left in its folder.
    """

    kind: ClassVar[str]
    Found: ClassVar[type[Part]] = Part
    runner: ClassVar[str]
    resumes: ClassVar[bool] = False

    @cached_property
    def key(self) -> str:
        """Hash of the kind and of all causes, those of the stages that it needs among them."""
        return sha256_json({"kind": self.kind, **self.causes})[:16]

    @property
    def name(self) -> str:
        """Its name in records and results."""
        return f"{self.kind}-{self.key}"

    @property
    def causes(self) -> dict[str, JsonValue]:
        """The fields as JSON; a stage stands for itself by its name."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.compare}

    @cached_property
    def needs(self) -> tuple["Stage[Part]", ...]:
        """The stages among its fields."""
        return tuple(_stages([getattr(self, f.name) for f in fields(self)]))

    @property
    def work(self) -> float:
        """Units of work, by which the time of a stage is told from others of its kind."""
        return 1.0

    def run(self, folder: Path, store: "Store") -> Outcome[F]:
        """Writes the result into `folder`; `store` has the folders of the stages that it needs."""
        module, _, function = self.runner.partition(":")
        return getattr(import_module(module), function)(self, folder, store)


AnyStage = Stage[Part]


def _plain(value: object) -> JsonValue:
    if isinstance(value, Stage):
        return value.name
    if isinstance(value, BaseModel):
        said = {key: v for key, v in value.model_dump(mode="json").items() if key not in NO_CAUSE and not _is_absent(value, key)}
        return {key: _BY_DEVICE.get(key) if v is None else v for key, v in said.items()}
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.compare}
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    assert value is None or isinstance(value, str | int | float | bool), f"{value!r} is no cause"
    return value


def _is_absent(model: BaseModel, key: str) -> bool:
    """Whether a setting that came later has its default, under which results from before it were made: their keys stay as they are."""
    return key in getattr(model, "added", ()) and getattr(model, key) == type(model).model_fields[key].default


def _stages(values: Sequence[object]) -> Iterator[AnyStage]:
    for value in values:
        if isinstance(value, Stage):
            yield value
        elif isinstance(value, tuple):
            yield from _stages(value)


def with_needs(wanted: Sequence[AnyStage], but: Callable[[AnyStage], bool] = lambda _: False) -> dict[str, AnyStage]:
    """The stages and all that they need, each once by name, needs first; those that `but` names and what only they need are left out."""
    found: dict[str, AnyStage] = {}
    for stage in wanted:
        if stage.name not in found and not but(stage):
            found |= {name: need for name, need in with_needs(stage.needs, but).items() if name not in found}
            found[stage.name] = stage
    return found


class Store:
    """The run folder: `stages/`, a folder per stage, and `ledger.jsonl`, a line per stage that was run.

    With `fresh`, a result that other code made counts as not done.
    """

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self.folder, self.fresh = folder, fresh

    def path(self, stage: AnyStage) -> Path:
        """The folder of a stage."""
        return self.folder / STAGES / stage.name

    def record(self, stage: AnyStage) -> Record:
        """The record of a stage that is done; raises `DataError` where it is broken."""
        return read_part(Record, self.path(stage) / RECORD, _AGAIN)

    def records(self) -> list[Record]:
        """The records of all stages that were ever done here, whatever their settings; broken ones are left out."""
        found = []
        for path in sorted(self.folder.glob(f"{STAGES}/*/{RECORD}")):
            with contextlib.suppress(DataError):
                found.append(read_part(Record, path, _AGAIN))
        return found

    def found(self, stage: Stage[G]) -> G:
        """The result of a stage that is done; raises `DataError` where its record is broken."""
        return as_part(stage.Found, self.record(stage).found, self.path(stage) / RECORD, _AGAIN)  # pyright: ignore[reportReturnType] # `Found` is G

    def is_done(self, stage: AnyStage) -> bool:
        """Whether the stage can be reused."""
        done = (self.path(stage) / RECORD).is_file()
        return done and not (self.fresh and (self.is_of_other_code(stage) or not all(map(self.is_done, stage.needs))))

    def is_of_other_code(self, stage: AnyStage) -> bool:
        """Whether a stage that is done was made by another state of this package's source."""
        return self.record(stage).code != code_sha256()

    def pending(self, wanted: Sequence[AnyStage]) -> list[AnyStage]:
        """The wanted stages that are not done, and all that they need and is not done, needs first."""
        return list(with_needs(wanted, self.is_done).values())

    def run(self, stage: AnyStage) -> Record:
        """Runs a stage whose needs are done; its folder and the ledger tell of it once it has ended."""
        folder = self.path(stage)
        if folder.exists() and (not stage.resumes or (folder / RECORD).is_file()):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        reset_peak_memory()
        reset_peak_gpu_memory()
        started, wall, cpu = datetime.now(UTC), time.perf_counter(), _cpu_seconds()
        outcome = stage.run(folder, self)
        on_gpu = peak_gpu_memory_mib()
        seconds = time.perf_counter() - wall + outcome.earlier.wall_seconds
        times = {"wall_seconds": seconds, "cpu_seconds": _cpu_seconds() - cpu + outcome.earlier.cpu_seconds}
        # A stage is one process and holds one GPU from its first second to its last, busy or not: that is what is paid for.
        times["gpu_seconds"] = 0.0 if on_gpu is None else seconds
        peaks = {"peak_memory_mib": peak_memory_mib() or 0.0, "peak_gpu_memory_mib": on_gpu or 0.0}
        cost = Cost(**(outcome.usage.to_json() | times | peaks))
        record = Record(
            kind=stage.kind,
            key=stage.key,
            causes=stage.causes,
            version=gradprism.__version__,
            code=code_sha256(),
            started=started.isoformat(timespec="seconds"),
            machine=machine(),
            cost=cost,
            evaluation_seconds=outcome.evaluation_seconds,
            headline=outcome.headline,
            found=outcome.found.model_dump(mode="json"),
            work=stage.work,
        )
        write_json(folder / RECORD, record.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
        line = {"stage": stage.kind, "key": stage.key, "started": record.started, **cost.model_dump()}
        append_jsonl(self.folder / LEDGER, line)
        return record


def read_part(kind: type[G], path: Path, advice: str) -> G:
    """What a file of the run folder tells; raises `DataError` with the advice for one that is broken."""
    try:
        told = read_json(path)
    except DataError as error:
        raise DataError(f"{error}; {advice}") from None
    return as_part(kind, told, path, advice)


def as_part(kind: type[G], told: object, path: Path, advice: str) -> G:
    """The part that a file has told; raises `DataError` with its path and the advice where it is none."""
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        raise DataError(f"{path}: {wrong_value(error)}; {advice}") from None


@cache
def code_sha256() -> str:
    """Hash of this package's source."""
    root = Path(gradprism.__file__).parent
    return sha256_json([[p.relative_to(root).as_posix(), sha256_file(p)] for p in sorted(root.rglob("*.py"))])[:16]


def machine() -> Machine:
    """The machine of this process, and the GPU where it uses one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    libraries = ("torch", "transformers", "trl", "numpy")
    return Machine(
        cpu=names[0] if names else platform.processor() or platform.machine(),
        cores=len(psutil.Process().cpu_affinity() or []),
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        python=platform.python_version(),
        gpu=gpu_name(),
        versions={"gradprism": gradprism.__version__, **{name: version(name) for name in libraries}},
    )


def _cpu_seconds() -> float:
    """CPU time of this process and of its finished children (a pool's workers end with their stage)."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
