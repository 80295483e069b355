"""The door: `probe` takes a model and trajectories and gives a `Probe`, wherever the work is done."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gradprism.models import ModelSpec, check_context_length
from gradprism.probing.executors import spec as old
from gradprism.probing.executors.anywhere import Where, probe_anywhere
from gradprism.probing.executors.cluster import Cluster as Ray
from gradprism.probing.executors.flow import probe_corpus
from gradprism.probing.executors.local import InProcess
from gradprism.probing.manifest import Options
from gradprism.probing.result import Probe, ProbeRun
from gradprism.probing.store import ProbeStore
from gradprism.probing.units import ExpertUnits, find_units
from gradprism.runtime.folders import OnExisting
from gradprism.runtime.usage import Usage
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import load_tokenizer

Launcher = Literal["auto", "here"] | Ray


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How a corpus is probed, whoever does it: see `probe`."""

    context_length: int | None = None
    batch_tokens: int | None = None
    per_turn: bool = False
    units: tuple[str, ...] | None = None
    experts: ExpertUnits = "joined"
    checkpoint_activations: bool = False
    limit: int | None = None


def probe(
    model: Any,
    tokenizer: Any,
    trajectories: Iterable[Trajectory],
    *,
    out: str | Path | None = None,
    context_length: int | None = None,
    batch_tokens: int | None = None,
    per_turn: bool = False,
    units: Sequence[str] | None = None,
    experts: ExpertUnits = "joined",
    checkpoint_activations: bool = False,
    on_existing: OnExisting = "resume",
    launcher: Launcher = "auto",
) -> Probe:
    """The norm of each trajectory's gradient with respect to each weight matrix of the frozen model: one backward pass per trajectory.

    `model`: a `PreTrainedModel`, a model folder or hub id, or a `ModelSpec`. `tokenizer`: a fast tokenizer, or None for the model's own.
    `trajectories` are gone through once.
    """
    options = Options(context_length, batch_tokens, per_turn, on_existing)
    temporary = tempfile.TemporaryDirectory(prefix="gradprism-") if out is None else None
    folder = Path(temporary.name if temporary else out)  # pyright: ignore[reportArgumentType]
    if isinstance(model, str | Path):
        model = ModelSpec(str(model))
    if isinstance(model, ModelSpec) and tokenizer is None:
        spec = old.ModelSpec(
            model.path, model.dtype, model.quantise, None if units is None else tuple(units), experts, checkpoint_activations
        )
        where = Where(model.device) if isinstance(launcher, str) else Where(model.device, "ray", launcher)
        summary = probe_anywhere(spec, where, lambda: trajectories, folder, options)
    else:
        loaded = model.load() if isinstance(model, ModelSpec) else model
        tokenizer = tokenizer or load_tokenizer(loaded.name_or_path)
        options = replace(options, context_length=check_context_length(loaded, context_length))
        executor = InProcess(loaded, find_units(loaded, units, experts), checkpoint_activations=checkpoint_activations)
        summary = probe_corpus(executor, tokenizer, trajectories, folder, options)
    return Probe(ProbeStore(folder), temporary, None if summary is None else _run(summary))


def _run(summary: dict[str, Any]) -> ProbeRun:
    earlier = summary["earlier"]
    return ProbeRun(
        summary["probed"],
        summary["kept"],
        summary["probed_turns"],
        summary["kept_turns"],
        summary["batch_tokens"],
        summary["padding_share"],
        summary["probing_seconds"],
        Usage(summary["tokens_forward"], summary["tokens_backward"], wall_seconds=summary["seconds"]),
        Usage(earlier["tokens"], earlier["tokens"], wall_seconds=earlier["wall_seconds"], cpu_seconds=earlier["cpu_seconds"]),
    )
