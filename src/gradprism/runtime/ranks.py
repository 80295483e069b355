"""The processes that `torchrun` or `accelerate launch` starts: who they are, what they tell each other, and how they end.

They talk through the launcher's key-value store alone, at their own pace: nothing waits for a batch of another process.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from gradprism.runtime.errors import ConfigError

T = TypeVar("T")
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_POLL_SECONDS = 0.05
_PART = 1 << 20  # the store refuses values of many megabytes
# A process that loads a large model from a slow disk may be this late.
_CONNECT = timedelta(minutes=30)


def processes_here() -> int:
    """Number of the launcher's processes that share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclass(slots=True)
class Ranks:
    """One of `world` processes: its number `rank`, and its number `local_rank` on its own machine."""

    rank: int
    world: int
    local_rank: int
    _store: Any = field(default=None, repr=False, compare=False)
    _exit_code: int | None = field(default=None, init=False, repr=False, compare=False)
    _at_work: bool = field(default=False, init=False, repr=False, compare=False)

    @classmethod
    def from_environment(cls) -> "Ranks | None":
        """The ranks that the launcher sets in the environment; None for a process that no launcher started, or started alone."""
        # All five: some cluster schedulers set two or three of them for single processes too.
        if any(name not in os.environ for name in _NAMES):
            return None
        try:
            rank, world, local_rank = (int(os.environ[name]) for name in _NAMES[:3])
        except ValueError:
            raise ConfigError(f"the environment's {', '.join(_NAMES[:3])} must be numbers; unset them, or use torchrun") from None
        return cls(rank, world, local_rank) if world > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this process prepares, and prints."""
        return self.rank == 0

    @property
    def store(self) -> Any:
        """The launcher's key-value store, in which this command's keys have a prefix of their own."""
        if self._store is None:
            from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
            from torch.distributed.rendezvous import rendezvous

            store, _, _ = next(iter(rendezvous("env://", timeout=_CONNECT)))
            self._store = PrefixStore("gradprism", store)
        return self._store

    def publish(self, key: str, value: Any) -> None:
        """Publishes a JSON value, of any size."""
        text = json.dumps(value)
        parts = [text[start : start + _PART] for start in range(0, len(text), _PART)]
        for number, part in enumerate(parts):
            self.store.set(f"{key}/part-{number}", part)
        self.store.set(key, str(len(parts)))

    def wait_for(self, key: str) -> Any:
        """The value that some process publishes under `key`, once it does."""
        # Polled: a signal must find this process in Python, not in a blocking call.
        while not self.store.check([key]):
            time.sleep(_POLL_SECONDS)
        return json.loads(b"".join(self.store.get(f"{key}/part-{number}") for number in range(int(self.store.get(key)))))

    def gather(self, key: str, value: Any) -> list[Any]:
        """Every process's value, in the order of ranks, for the first process; an empty list, at once, for the others."""
        self.publish(f"{key}/{self.rank}", value)
        return [self.wait_for(f"{key}/{rank}") for rank in range(self.world)] if self.is_first else []

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A block that a signal to stop does not break off: it ends between two `steps`."""
        self._at_work = True
        try:
            yield
        finally:
            self._at_work = False
        self._leave_if_told()

    def steps(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, until the launcher says to stop: then `SystemExit`, after the batch that is being probed."""
        for batch in batches:
            self._leave_if_told()
            yield batch

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Makes the first error the only one that is printed, and lets a process that is told to stop write what it has.

        The launcher ends the other processes with SIGTERM when one has failed. During `at_work` that becomes `SystemExit`, so that
        rows which are not yet in a shard are saved on the way out. An error that follows another's becomes `SystemExit(2)`.
        """

        def told_to_stop(number: int, frame: Any) -> None:
            self._exit_code = 128 + number
            # Not raised here: in a finaliser, for one, an exception would be lost.
            if not self._at_work:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        before = signal.signal(signal.SIGTERM, told_to_stop)
        try:
            yield
        except Exception:
            if self._is_first_error():
                raise
            sys.exit(2)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _leave_if_told(self) -> None:
        if self._exit_code is not None:
            sys.exit(self._exit_code)

    def _is_first_error(self) -> bool:
        try:
            return self.store.add("errors", 1) == 1
        except Exception:  # the store went with the process that kept it, so some process has failed before
            return self._store is None
