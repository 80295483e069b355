"""A graph of stages, each in a folder named by the hash of everything it depends on.

A stage is done when its folder holds `stage.json`, which is written last. Asked for again, a done stage is reused; one that was
cut short is run again, after its folder was emptied unless the stage says that it resumes. A changed value changes the keys of the stages
that read it and of those after them, and of no others.
"""

import platform
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradprism import __version__
from gradprism.runtime.files import append_jsonl, read_json, sha256_json, write_json
from gradprism.runtime.memory import gpu_name, peak_gpu_memory_mib, peak_memory_mib, reset_peak_gpu_memory, reset_peak_memory
from gradprism.runtime.progress import say

# What a stage's summary may say about its cost, beside the clock and the memory that the graph measures itself.
RECORD = "stage.json"
COUNTS = ("tokens_forward", "tokens_backward", "tokens_generated", "environment_steps")


# (what a run is configured to do, the stage's own folder, the folders that it needs by role) -> summary
Step = Callable[[Any, Path, dict[str, Path]], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One node. `run(folder, inputs)` writes into `folder`, reads the folders of `needs` and returns a JSON-serialisable summary.

    `needs` says which stage plays which role. `reads` is what the result depends on besides: configuration values and fingerprints of
    files. Stages of one `kind` (by default the name) that read the same are the same, whatever they are called. A process of its own
    imports `imports` before the stage's clock starts.
    """

    name: str
    run: Callable[[Path, dict[str, Path]], dict[str, Any]]
    reads: dict[str, Any] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    resumes: bool = False
    kind: str = ""
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """A finished stage."""

    name: str
    key: str
    folder: Path
    reused: bool
    summary: dict[str, Any]
    cost: dict[str, float]
    machine: dict[str, Any]


class StageGraph:
    """Stages in the order in which they run; `folder` is the run folder that keeps them all."""

    def __init__(self, folder: Path, stages: list[Stage]) -> None:
        self.folder, self.stages = folder, stages
        self.keys: dict[str, str] = {}
        for stage in stages:
            self.keys[stage.name] = stage_key(stage, self.keys)
        self.kinds = {stage.name: stage.kind or stage.name for stage in stages}

    def path(self, name: str) -> Path:
        """The folder of a stage."""
        return self.folder / "stages" / f"{self.kinds[name]}-{self.keys[name]}"

    def is_done(self, name: str) -> bool:
        """Whether the stage can be reused."""
        return (self.path(name) / RECORD).is_file()

    def run(self) -> dict[str, Record]:
        """Runs what is not done and returns a record of every stage."""
        records = {}
        for number, stage in enumerate(self.stages, 1):
            title = f"[{number}/{len(self.stages)}] {stage.name}"
            if self.is_done(stage.name):
                say(f"{title}: reused")
                records[stage.name] = self.record(stage.name, reused=True)
                continue
            say(f"{title} …")
            self.run_stage(stage)
            records[stage.name] = record = self.record(stage.name, reused=False)
            said = record.summary.get("headline", "")
            say(f"{title}: {record.cost['wall_seconds']:.1f} s{' · ' + said if said else ''}")
        return records

    def run_stage(self, stage: Stage) -> None:
        """Runs one stage, whose needs are done; its folder and the ledger tell of it once it has ended."""
        folder = self.path(stage.name)
        if folder.exists() and not stage.resumes:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        reset_peak_memory()
        reset_peak_gpu_memory()
        started, wall, cpu = datetime.now(UTC), time.perf_counter(), _cpu_seconds()
        summary = stage.run(folder, {role: self.path(name) for role, name in stage.needs.items()})
        on_gpu = peak_gpu_memory_mib()
        cost = {
            "wall_seconds": time.perf_counter() - wall,
            "cpu_seconds": _cpu_seconds() - cpu,
            "peak_memory_mib": peak_memory_mib(),
            "peak_gpu_memory_mib": on_gpu or 0.0,
            **{name: summary.pop(name, 0) for name in COUNTS},
        }
        # What attempts that were cut short have cost a stage that resumes.
        for name, value in summary.pop("earlier_cost", {}).items():
            cost[name] += value
        # A stage is one process and holds one GPU from its first second to its last, busy or not: that is what is paid for.
        cost["gpu_seconds"] = 0.0 if on_gpu is None else cost["wall_seconds"]
        key = self.keys[stage.name]
        record = {
            "name": stage.name,
            "key": key,
            "reads": stage.reads,
            "needs": {role: self.keys[name] for role, name in stage.needs.items()},
            "started": started.isoformat(timespec="seconds"),
            "machine": {**machine(), "versions": versions()},
            "summary": summary,
            "cost": cost,
        }
        write_json(folder / RECORD, record)
        append_jsonl(self.folder / "ledger.jsonl", {"stage": stage.name, "key": key, "started": record["started"], **cost})

    def record(self, name: str, reused: bool = True) -> Record:
        """The record of a stage that is done."""
        folder = self.path(name)
        stored = read_json(folder / RECORD)
        return Record(name, self.keys[name], folder, reused, stored["summary"], stored["cost"], stored.get("machine", {}))


def stage_key(stage: Stage, keys: Mapping[str, str]) -> str:
    """What names a stage's folder: the hash of its kind, of what it reads, and of the keys of the stages that it needs."""
    needs = {role: keys[name] for role, name in stage.needs.items()}
    return sha256_json({"stage": stage.kind or stage.name, "reads": stage.reads, "needs": needs, "version": __version__})[:16]


def versions() -> dict[str, str]:
    """Those of this package and of the libraries that figures depend on."""
    from importlib.metadata import version

    return {"gradprism": __version__, **{name: version(name) for name in ("torch", "transformers", "trl", "numpy")}}


def machine() -> dict[str, Any]:
    """What the figures were measured on; the GPU where this process uses one."""
    import psutil

    names = [line.split(":", 1)[1].strip() for line in _cpu_info() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(psutil.Process().cpu_affinity() or []),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        **({"gpu": gpu} if (gpu := gpu_name()) else {}),
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _cpu_seconds() -> float:
    """CPU time of this process and of its finished children (a pool's workers end with their stage)."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
