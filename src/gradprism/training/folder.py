"""A training's folder: what is trained in it, its checkpoints, its log, and the model at the end.

It holds `manifest.json` (what is trained, on what), `log.jsonl`, `attempts.jsonl`, `checkpoints/checkpoint-N/` while the training goes on,
then the model's own files and `adapter/`, and `summary.json`, which is written last. Everything appears by a rename: what is half written
has a temporary's name and is deleted by the next attempt. Several processes must see one folder.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from gradprism.runtime.errors import DataError, FolderInUseError, ModelError, WriteError, one_line
from gradprism.runtime.files import parse_json, read_json, read_jsonl, write_json, write_jsonl, writing
from gradprism.runtime.folders import MANIFEST, FolderKind, Manifest, OnExisting, remove
from gradprism.runtime.libraries import quiet_libraries
from gradprism.training.summary import TrainingSummary
from gradprism.trajectories.chat_options import SAVED
from gradprism.trajectories.corpus import SKIPPED
from gradprism.trajectories.rendering import chat_options

CHECKPOINTS, ADAPTER, SUMMARY, LOG, _ATTEMPTS = "checkpoints", "adapter", "summary.json", "log.jsonl", "attempts.jsonl"
_CONFIG = "config.json"  # a folder without it is no model to anyone, so it comes last
_WHOLE = "whole.json"  # in a checkpoint: names and sizes of its files
_PARTIAL_CHECKPOINT, _PARTIAL_MODEL = ".checkpoint.tmp", ".model.tmp"
_KEEP = 2  # checkpoints, until the training has finished
_MODEL_FILES = (
    _CONFIG,
    "*.safetensors",
    "model.safetensors.index.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
    SAVED,
    "additional_chat_templates",
)
# Settings that change no weight may differ between two attempts at one training; `rounds` says how long to go on, at a rate that does not
# depend on it. A log is begun anew where no checkpoint is left.
_FREE_SETTINGS = ("track", "keep_checkpoints", "save_steps", "save_every", "micro_batch_tokens", "in_flight", "rounds", "stop_when")
TRAINING = FolderKind(
    "training",
    identity="command",
    own=(SUMMARY, *_MODEL_FILES, ADAPTER, CHECKPOINTS, LOG, SKIPPED, _ATTEMPTS),
    free=frozenset({"versions", *(f"config.{name}" for name in _FREE_SETTINGS)}),
)


def claim_training(
    out: Path, manifest: Manifest, on_existing: OnExisting = "resume", steps: int | None = None, stop_when: Sequence[str] = ()
) -> tuple[int, TrainingSummary | None]:
    """Makes `out` the folder of the training that `manifest` describes, which is to take `steps` optimizer steps (None: as many as before),
    or fewer where an alarm of `stop_when` ends it.

    Returns the step of the checkpoint to go on from, 0 for none, and the summary of a training that has finished. One that finished with
    fewer steps goes on from a checkpoint that was kept. Raises `FolderInUseError` where the folder holds another training or anything else
    (`FolderKind.claim`), or has been trained for longer, or has no checkpoint to go on from. What failed before its first step has claimed
    the folder and left nothing in it: it is anyone's.
    """
    if on_existing == "resume" and steps is not None and (out / MANIFEST).is_file():
        _check_length(out, steps, stop_when)
    try:
        TRAINING.claim(out, manifest, on_existing)
    except FolderInUseError:
        if on_existing != "resume" or not _is_bare(out):
            raise
        TRAINING.claim(out, manifest, "replace")
    if (done := finished_training(out)) is not None and steps is not None and _goes_on(done, steps, stop_when):
        (out / SUMMARY).unlink()
    for partial in (out / _PARTIAL_MODEL, partial_checkpoint(out)):
        remove(partial)
    checkpoint = latest_checkpoint(out / CHECKPOINTS)
    step, finished = _step(checkpoint) if checkpoint else 0, finished_training(out)
    if finished is None:
        write_jsonl(out / LOG, [row for row in read_log(out) if row["step"] <= step] if step else [])
    return step, finished


def _is_bare(out: Path) -> bool:
    """Whether no step of the training in `out` is on record, and no model."""
    held = (SUMMARY, _CONFIG, ADAPTER, CHECKPOINTS, _ATTEMPTS)
    return out.is_dir() and not any((out / name).exists() for name in held) and not read_log(out)


def _goes_on(done: TrainingSummary, steps: int, stop_when: Sequence[str]) -> bool:
    return done.steps < steps and (not done.stopped or done.stopped not in stop_when)


def _check_length(out: Path, steps: int, stop_when: Sequence[str]) -> None:
    """Raises `FolderInUseError` where a training cannot be made one of `steps` optimizer steps."""
    checkpoint, finished = latest_checkpoint(out / CHECKPOINTS), finished_training(out)
    done = finished.steps if finished else _step(checkpoint) if checkpoint else 0
    if done > steps:
        raise FolderInUseError(f"{out}: has been trained for {done} steps, which are more than {steps}; choose another --out")
    if finished is not None and _goes_on(finished, steps, stop_when) and checkpoint is None:
        raise FolderInUseError(
            f"{out}: has finished after {done} steps and kept no checkpoint to go on from; train anew with --on-existing replace "
            "(--keep-checkpoints keeps them)"
        )


def read_log(out: Path) -> list[dict[str, float]]:
    """The whole lines of a training's `log.jsonl`."""
    return read_jsonl(out / LOG)


def finished_training(out: Path) -> TrainingSummary | None:
    """The summary of the training in `out` where it has finished and its model is there; all that it used was used earlier."""
    if not ((out / SUMMARY).is_file() and (out / _CONFIG).is_file()):
        return None
    try:
        summary = TrainingSummary.from_json({**read_json(out / SUMMARY), **_rows(out)})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{out / SUMMARY}: is no summary of a training ({error}); train anew with --on-existing replace") from None
    return replace(summary, earlier=summary.usage, reused=True)


def finish_training(out: Path, *, keep_checkpoints: bool = False, **figures: Any) -> TrainingSummary:
    """Writes `summary.json` of these figures, which says that the training is done, and deletes the checkpoints. First process only."""
    summary, rows = TrainingSummary(**figures, **_rows(out)), ("history", "evaluations")
    write_json(out / SUMMARY, {name: value for name, value in summary.to_json().items() if name not in rows})
    if not keep_checkpoints:
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return summary


def _rows(out: Path) -> dict[str, Any]:
    """The rows of the log that tell of steps, and those that tell of evaluations."""
    rows = read_log(out)
    evaluations = (row for row in rows if any(name.startswith(("eval_", "evaluation/")) for name in row))
    return {"history": tuple(row for row in rows if "loss" in row), "evaluations": tuple(evaluations)}


def begin_checkpoint(out: Path) -> Path:
    """An empty folder for the next checkpoint's files. First process only, as are the others below."""
    partial = out / CHECKPOINTS / _PARTIAL_CHECKPOINT
    with writing(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    return partial


def partial_checkpoint(out: Path) -> Path:
    """The folder that `begin_checkpoint` has made."""
    return out / CHECKPOINTS / _PARTIAL_CHECKPOINT


def publish_checkpoint(out: Path, step: int, keep_all: bool) -> None:
    """Makes what was written the checkpoint of `step`, and deletes all but the last two."""
    folder, partial = out / CHECKPOINTS, partial_checkpoint(out)
    checkpoint = checkpoint_path(out, step)
    with writing(checkpoint):
        write_json(partial / _WHOLE, _sizes(partial))
        shutil.rmtree(checkpoint, ignore_errors=True)  # a torn one
        partial.rename(checkpoint)
    for old in [] if keep_all else _checkpoints(folder)[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def checkpoint_path(out: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return out / CHECKPOINTS / f"checkpoint-{step}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The last whole `checkpoint-N` in `folder`; one that lacks a file or a part of one is passed over."""
    return next((path for path in reversed(_checkpoints(folder)) if _is_whole(path)), None)


def save_model(model: Any, tokenizer: Any, out: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes model (safetensors), tokenizer and its options into `out`, where they appear whole; `state` gives other weights.

    Raises `ModelError` for weights that are not finite, and writes nothing.
    """
    check_finite(model.state_dict() if state is None else state)
    if state is not None:
        # Gathered from several processes, tied weights are copies: only the one that they are tied to is written.
        state = {name: value for name, value in state.items() if model.all_tied_weights_keys.get(name) not in state}
    partial = out / _PARTIAL_MODEL
    with writing_weights(out), quiet_libraries():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial, state_dict=state, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        chat_options(tokenizer).save(partial)
        (out / _CONFIG).unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == _CONFIG):
            if (out / path.name).is_dir():
                shutil.rmtree(out / path.name)
            path.rename(out / path.name)
        partial.rmdir()


@contextmanager
def writing_weights(path: Path) -> Iterator[None]:
    """`writing`, also of what safetensors and torch raise where the disk is full."""
    try:
        with writing(path):
            yield
    except (SafetensorError, RuntimeError) as error:
        raise WriteError(
            f"{path}: cannot be written ({one_line(error)}); make room, or name a folder that can be written"
        ) from error


def check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Raises `ModelError` naming a weight that holds NaN or an infinity."""
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            raise ModelError(f"training diverged: {name} is not finite, so no checkpoint is written; lower the learning rate")


def best_weights(out: Path, rank: int) -> Path:
    """The file of a process's part of the weights of the best evaluation so far."""
    return out / CHECKPOINTS / f"best-{rank}.safetensors"


def keep_best(out: Path, rank: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a process's part of the weights of the best evaluation so far; it appears whole."""
    path = best_weights(out, rank)
    partial = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    partial.replace(path)


def copy_best(out: Path, rank: int, checkpoint: Path) -> None:
    """Puts a process's part of the best weights so far, where there are any, beside what a checkpoint keeps: who goes on from there after a
    kill must not end with what later rounds, played no more or otherwise, had found better."""
    path = best_weights(out, rank)
    if path.is_file():
        _link(path, checkpoint / path.name)


def restore_best(out: Path, rank: int, checkpoint: Path) -> None:
    """Makes a process's part of the best weights those of a checkpoint; none where it has none."""
    path = best_weights(out, rank)
    remove(path)  # renaming onto another name of the same file would do nothing, and leave both
    if (checkpoint / path.name).is_file():
        _link(checkpoint / path.name, path)


def _link(source: Path, target: Path) -> None:
    """Another name for a file that is never written in place, or a copy where the file system has no such names."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _checkpoints(folder: Path) -> list[Path]:
    """Folders called `checkpoint-N`, whole or not, by their steps."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()]
    return sorted(found, key=_step)


def _is_whole(checkpoint: Path) -> bool:
    try:
        told = parse_json((checkpoint / _WHOLE).read_bytes())
    except (OSError, ValueError):
        return False
    there = _sizes(checkpoint)
    return isinstance(told, dict) and bool(told) and all(there.get(name) == told[name] for name in told)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
