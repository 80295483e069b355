"""The processes of `accelerate launch` or `torchrun` that train together."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
from accelerate import PartialState

from gradprism.models import resolve_device
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.progress import quiet
from gradprism.runtime.ranks import Ranks

# How long a process waits for another in one exchange of tensors: the first may be writing a large model.
_TIMEOUT = timedelta(hours=2)
_joined: Ranks | None = None
_decisions = count()
_T = TypeVar("_T")

# Imported before any group of processes is there: its functions keep the one that they find, to the end of the interpreter, and with it
# threads that abort a process which ends while they finish their last exchange. DDP imports it. Some builds of torch have neither.
if torch.distributed.is_available():
    import torch.distributed.nn.functional


def join_processes(device: str) -> Ranks | None:
    """Makes this process one of its launcher's, so that models load and are placed as accelerate's configuration says.

    None for a process that trains alone. May be called again. Raises `ConfigError` for a device that a trainer does not train on.
    """
    if device == "auto-map" or ":" in device:
        raise ConfigError(
            f"--device {device}: training takes the first device it sees, or all with accelerate launch; use auto, cpu or cuda, and "
            "CUDA_VISIBLE_DEVICES to choose"
        )
    global _joined
    if _joined is None and (ranks := Ranks.from_environment()) is not None:
        PartialState(cpu=resolve_device(device, ranks) == "cpu", timeout=_TIMEOUT)
        # One connection to the launcher's store, made while all are there: asked when one has failed, a new one would wait for it.
        ranks.store  # noqa: B018
        _joined = ranks
    return _joined


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


def fsdp_version() -> int:
    """The version of FSDP with which accelerate's configuration shards models, 1 or 2; 0 where it does not."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return 0
    return int(os.environ.get("FSDP_VERSION", "1"))  # accelerate's own default


@contextmanager
def training_processes(device: str) -> Iterator[Ranks | None]:
    """A command in which the launcher's processes train: the first one alone shows progress, and the first error alone is printed.

    Once per process: at its end the group of processes goes, and accelerate, which keeps its state for the interpreter's life, makes no
    other; a second block of several processes fails at its first exchange. Train several models in one block. Hold none after it, whose
    wrapper would keep the group's threads.
    """
    ranks = join_processes(device)
    if ranks is None:
        yield None
        return
    with ranks.failing_together(), quiet(not ranks.is_first):
        yield ranks
    # Where the body fails, the launcher ends all processes, some of which may still wait for others.
    gc.collect()  # a model whose parts refer to each other would keep the group
    PartialState().destroy_process_group()
