"""Trainings that a kill cannot harm: whole checkpoints, a folder that says what is trained in it, and the model at the end.

A training folder holds `manifest.json` (what is trained, on what), `log.jsonl`, `checkpoints/checkpoint-N/` while the training goes
on, then the model's own files and `adapter/`, and `summary.json`, which is written last. Everything appears by a rename: what is
half written has a name that starts with a dot, and is deleted by the next attempt. Several processes must see one folder.
"""

import contextlib
import json
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel

from gradprism import __version__
from gradprism.runtime.attempts import total_cost
from gradprism.runtime.errors import ConfigError, FolderInUseError, ModelError
from gradprism.runtime.files import is_temporary, read_json, remove_stale_temporaries, write_json, writing
from gradprism.runtime.folders import differences, exclusive_lock
from gradprism.runtime.ranks import Ranks
from gradprism.training.tracking import LOG

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # a mixin: the trainer's own module loads only where one is built

OnExisting = Literal["resume", "replace", "fail"]
MANIFEST, CHECKPOINTS, ADAPTER, SUMMARY = "manifest.json", "checkpoints", "adapter", "summary.json"
ATTEMPTS = "attempts.jsonl"
# Settings that change no weight may differ between two attempts at one training.
_NO_MATTER = frozenset({"versions", "config.track", "config.keep_checkpoints"})
_WHOLE = "whole.json"  # in a checkpoint: names and sizes of its files
_PARTIAL = ".partial-"  # what is being written
_LOCK = ".training.tmp"  # a temporary file: it says nothing of a folder
_KEEP = 2  # checkpoints, until the training has finished
_CONFIG = "config.json"  # a folder without it is no model to anyone, so it comes last
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
    "additional_chat_templates",
)
_T = TypeVar("_T")
_decisions = count()


class AtomicCheckpoints(_Trainer):
    """Makes the checkpoints of a `transformers` trainer appear whole, in `checkpoints/` of its output folder.

    A mixin: `class SftTrainer(AtomicCheckpoints, SFTTrainer)`. The trainer writes what it always does (weights or adapter, optimizer,
    scheduler, the random state of every process, or the shards of FSDP) into a temporary folder; when all processes are done the
    first one renames it, and deletes all but the last `save_total_limit`. None is written at the last step: the model follows at
    once, and a trainer that goes on from there would take one step too many. TRL's model cards and its telemetry are left out.
    """

    _saving_to: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_to or Path(str(self.args.output_dir)) / CHECKPOINTS)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            return
        name = f"checkpoint-{self.state.global_step}"
        folder = Path(str(self.args.output_dir)) / CHECKPOINTS
        partial = folder / f"{_PARTIAL}{name}"
        with writing(folder / name):
            if self.args.should_save:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._saving_to = partial
            try:
                super()._save_checkpoint(model, trial)
                self.save_more(partial / name)
            finally:
                self._saving_to = None
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                for unwanted in ("training_args.bin", "README.md"):  # a pickle that nothing reads, and peft's model card
                    (partial / name / unwanted).unlink(missing_ok=True)
                _publish_checkpoint(partial / name, folder / name)
                partial.rmdir()
                if self.args.save_total_limit:
                    for old in _checkpoints(folder)[: -self.args.save_total_limit]:
                        shutil.rmtree(old, ignore_errors=True)

    def save_more(self, folder: Path) -> None:
        """For a trainer with a state of its own: every process may write files into `folder` before it becomes the checkpoint."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing."""

    def _send_telemetry(self) -> None:
        """Tells nobody: training touches no network."""


def latest_checkpoint(folder: Path) -> Path | None:
    """The last whole `checkpoint-N` in `folder`; one that is still being written, or lacks a file or a part of one, is passed over."""
    return next((path for path in reversed(_checkpoints(folder)) if _is_whole(path)), None)


def check_training_folder(out: Path, on_existing: str) -> None:
    """Raises where no training could go into `out` whatever it is, before anything dear is loaded.

    `ConfigError` for an unknown `on_existing`; `FolderInUseError` for a folder that is something else's, or in use with `fail`.
    """
    if on_existing not in ("resume", "replace", "fail"):
        raise ConfigError(f"--on-existing {on_existing}: choose resume, replace or fail")
    if out.exists() and not out.is_dir():
        raise FolderInUseError(f"{out}: exists and is not a folder; choose another --out")
    names = [p.name for p in out.iterdir() if not is_temporary(p.name)] if out.is_dir() else []
    if names and on_existing == "fail":
        raise FolderInUseError(f"{out}: is not empty; choose another --out, or --on-existing resume or replace")
    if names and not (MANIFEST in names and "command" in read_json(out / MANIFEST)):
        raise FolderInUseError(f"{out}: is in use and no training; choose another --out")


@contextlib.contextmanager
def sole_training(out: Path, ranks: Ranks | None) -> Iterator[None]:
    """A block in which no other command trains into `out`; the first process holds the lock for all.

    Raises `FolderInUseError` where another does: a scheduler that has begun anew, or processes that outlived a killed launcher.
    """
    if ranks is not None and not ranks.is_first:
        yield
        return
    with exclusive_lock(out, _LOCK, "is being trained"):
        yield


def claim_training_folder(out: Path, manifest: dict[str, Any], on_existing: OnExisting = "resume") -> Path | None:
    """Makes `out` this training's and returns the checkpoint to go on from, or None to begin.

    `manifest` is what the weights depend on, as `describe_training` gives it. With `resume` a folder that holds another training is
    refused (`FolderInUseError`, which names the keys that differ); with `replace` what that training has written is deleted.
    A training that has finished stays: ask `finished_training` next. Only the first of several processes may call this (`decide`).
    """
    check_training_folder(out, on_existing)
    manifest = json.loads(json.dumps(manifest))
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if (out / MANIFEST).is_file() and on_existing == "resume":
            changes = differences(_flat(read_json(out / MANIFEST)), _flat(manifest), _NO_MATTER)
            if changes:
                raise FolderInUseError(f"{out}: holds another training ({changes}); choose another --out, or --on-existing replace")
        else:
            # In this order, and the old manifest last: killed in between, this is an unfinished training of the old kind.
            for name in (SUMMARY, *_MODEL_FILES, ADAPTER, CHECKPOINTS, LOG, ATTEMPTS):
                for path in out.glob(name):
                    _remove(path)
        write_json(out / MANIFEST, manifest)
        remove_stale_temporaries(out)
        for path in (*out.glob(f"{_PARTIAL}*"), *(out / CHECKPOINTS).glob(f"{_PARTIAL}*")):
            _remove(path)
    return latest_checkpoint(out / CHECKPOINTS)


def finished_training(out: Path) -> dict[str, Any] | None:
    """The summary of the training in `out` where it has finished: its model is there."""
    return read_json(out / SUMMARY) if (out / SUMMARY).is_file() and (out / _CONFIG).is_file() else None


def finish_training(out: Path, summary: dict[str, Any], keep_checkpoints: bool = False) -> None:
    """Writes `summary.json`, which says that the training is done, and deletes the checkpoints. First process only."""
    write_json(out / SUMMARY, summary)
    if not keep_checkpoints:
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def training_cost(out: Path, without: str | None = None) -> dict[str, float]:
    """Seconds of the attempts at the training in `out` but the one called `without`."""
    total = total_cost(out, without)
    return {name: total[name] for name in ("wall_seconds", "cpu_seconds")}


def save_total_limit(keep_checkpoints: bool) -> int | None:
    """How many checkpoints a trainer keeps while it trains: the last two, or all."""
    return None if keep_checkpoints else _KEEP


def describe_training(
    command: Literal["sft", "rl"], config: BaseModel, model: Any, tokenizer: Any, processes: int = 1, **inputs: Any
) -> dict[str, Any]:
    """A manifest: everything that the trained weights depend on. `inputs` are fingerprints of the data, lengths and the like.

    The number of processes counts: it decides which examples make a step.
    """
    import torch
    import transformers
    import trl

    from gradprism.probing.fingerprint import config_fingerprint, weights_fingerprint
    from gradprism.trajectories.rendering import template_fingerprint, tokenizer_fingerprint

    return {
        "command": command,
        "config": config.model_dump(mode="json"),
        **inputs,
        "weights_sha256": weights_fingerprint(model),
        "config_sha256": config_fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "template_sha256": template_fingerprint(tokenizer),
        "processes": processes,
        "versions": {
            "gradprism": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
    }


def decide(ranks: Ranks | None, function: Callable[[], _T]) -> _T:
    """`function()` of the first process, for all of them: a JSON value. Every process must call this equally often.

    Told through the launcher's store and not by a collective: those give up after some minutes, and hashing a large model takes
    longer. Where the first process raises, the launcher ends the others. It leaves last: its end may be the store's.
    """
    if ranks is None:
        return function()
    key = f"training/{next(_decisions)}"
    if ranks.is_first:
        ranks.publish(key, function())
    value = ranks.wait_for(key)
    ranks.gather(f"{key}/heard", True)
    return value


def save_checkpoint(model: Any, tokenizer: Any, out: Path, state: dict[str, Any] | None = None) -> None:
    """Writes model (safetensors) and tokenizer into `out`, where they appear whole; `state` gives weights other than the model's.

    Raises `ModelError` for weights that are not finite, and writes nothing.
    """
    check_finite(model.state_dict() if state is None else state)
    if state is not None:
        # Gathered from several processes, tied weights are copies: only the one that they are tied to is written.
        state = {name: value for name, value in state.items() if model.all_tied_weights_keys.get(name) not in state}
    partial = out / f"{_PARTIAL}model"
    with writing(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial, state_dict=state, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        (out / _CONFIG).unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == _CONFIG):
            if (out / path.name).is_dir():
                shutil.rmtree(out / path.name)
            path.rename(out / path.name)
        partial.rmdir()


def save_trained(trainer: Any, tokenizer: Any, out: Path) -> None:
    """Writes what `trainer` has trained into `out`: a whole model, and a LoRA adapter into `out/adapter` as well.

    Every process must call this: the weights may be spread over all of them. The first one writes.
    """
    from gradprism.training.adapters import merged_state, save_adapter

    accelerator = trainer.accelerator
    sharded = str(accelerator.distributed_type.value) in ("FSDP", "DEEPSPEED")
    state = accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if not trainer.args.should_save:
        return
    model = accelerator.unwrap_model(trainer.model_wrapped, keep_torch_compile=False)
    if hasattr(model, "peft_config"):
        state = model.state_dict() if state is None else state
        check_finite(state)
        save_adapter(model, state, out / ADAPTER)
        model, state = model.get_base_model(), merged_state(model, state)
    save_checkpoint(model, tokenizer, out, state)


def check_finite(state: dict[str, Any]) -> None:
    """Raises `ModelError` naming a weight that holds NaN or an infinity."""
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            raise ModelError(f"training diverged: {name} is not finite, so no checkpoint is written; lower the learning rate")


def _checkpoints(folder: Path) -> list[Path]:
    """Folders called `checkpoint-N`, whole or not, by their steps."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _publish_checkpoint(partial: Path, checkpoint: Path) -> None:
    write_json(partial / _WHOLE, _sizes(partial))
    shutil.rmtree(checkpoint, ignore_errors=True)  # a torn one
    partial.rename(checkpoint)


def _is_whole(checkpoint: Path) -> bool:
    try:
        told = json.loads((checkpoint / _WHOLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    there = _sizes(checkpoint)
    return isinstance(told, dict) and "trainer_state.json" in told and all(there.get(name) == told[name] for name in told)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings beside the other keys, so that a difference names one setting."""
    config = manifest.get("config")
    rest = {key: value for key, value in manifest.items() if key != "config"}
    return {**rest, **{f"config.{key}": value for key, value in config.items()}} if isinstance(config, dict) else manifest


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
