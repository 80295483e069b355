"""The two sets that a route makes of a corpus: trajectories for SFT and tasks for RL, read as they are gone through."""

import itertools
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from gradprism.probing.result import Probe
from gradprism.runtime.errors import DataError
from gradprism.trajectories.corpus import canonical_line, load_corpus
from gradprism.trajectories.formats import parse_record
from gradprism.trajectories.record import ChatMessage, Trajectory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RlTask:
    """A trajectory as RL is given it.

    `prompt`: the messages before the first turn that is trained on, with the `tools` that it may call. `task`: by which an environment sets
    the same task up, empty where the corpus names none. `weight`: how often it is drawn, relative to others. `source` is `file:line`,
    for messages to a person.
    """

    id: str
    prompt: list[ChatMessage]
    task: dict[str, Any]
    source: str = field(default="", compare=False)
    tools: list[dict[str, Any]] = field(default_factory=list)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ProbeSets:
    """Those of a probe's corpus; `to_sft` and `to_rl` bool `[n]`, of which a trajectory has one, neither or both.

    `places` int `[n]` sorts both sets, which are then held in memory; without it they have the corpus's order. `sft_weights` and
    `rl_weights` float `[n]` are those of a route by weights.
    """

    probe: Probe
    to_sft: NDArray[np.bool_]
    to_rl: NDArray[np.bool_]
    places: NDArray[np.int64] | None = None
    sft_weights: NDArray[np.float64] | None = None
    rl_weights: NDArray[np.float64] | None = None

    def sft(self) -> Iterator[Trajectory]:
        """The trajectories to train on, in their order."""
        chosen = itertools.compress(self.probe.trajectories, self.to_sft.tolist())
        if self.sft_weights is not None:
            weights = self.sft_weights[self.to_sft].tolist()
            chosen = (replace(t, weight=t.weight * weight) for t, weight in zip(chosen, weights, strict=True))
        return self._in_order(chosen, self.to_sft)

    def rl(self) -> Iterator[RlTask]:
        """The tasks to play, in their order."""
        weights = itertools.repeat(1.0) if self.rl_weights is None else self.rl_weights[self.to_rl].tolist()
        tasks = (
            RlTask(t.id, t.prompt(), t.task, tools=[dict(tool) for tool in t.tools], weight=weight)
            for t, weight in zip(itertools.compress(self.probe.trajectories, self.to_rl.tolist()), weights, strict=False)
        )
        return self._in_order(tasks, self.to_rl)

    def _in_order(self, items: Iterable[T], chosen: NDArray[np.bool_]) -> Iterator[T]:
        if self.places is None:
            return iter(items)
        held = list(items)
        return map(held.__getitem__, np.argsort(self.places[chosen], kind="stable").tolist())

    def write(self, sft: IO[bytes], rl: IO[bytes]) -> None:
        """Copies each line of the corpus into the SFT set, or makes an RL task of it: a million lines in seconds."""
        if self.places is not None:
            lines = list(itertools.chain.from_iterable(self.probe.corpus_blocks()))
            for chosen, to, made in ((self.to_sft, sft, bytes), (self.to_rl, rl, _rl_line)):
                to.writelines(made(line) + b"\n" for line in self._in_order(itertools.compress(lines, chosen.tolist()), chosen))
            return
        start = 0
        for lines in self.probe.corpus_blocks():
            # Should the corpus have other lines than were probed, it says so itself after the last.
            block = slice(start, start + len(lines))
            to_sft, to_rl = (side[block].tolist() for side in (self.to_sft, self.to_rl))
            start += len(lines)
            if self.sft_weights is not None and self.rl_weights is not None:
                for line, of_sft, of_rl in zip(
                    lines, self.sft_weights[block].tolist(), self.rl_weights[block].tolist(), strict=False
                ):
                    sft.write(_weighted_line(line, of_sft) if of_sft else b"")
                    rl.write(_rl_line(line, of_rl) + b"\n" if of_rl else b"")
                continue
            # Empty strings at the end of the lists: each line ends with a line feed.
            sft.write(b"\n".join([*itertools.compress(lines, to_sft), b""]))
            rl.write(b"\n".join([*map(_rl_line, itertools.compress(lines, to_rl)), b""]))


@dataclass(frozen=True, slots=True)
class FileSets:
    """Those that a route folder holds: `n_sft` trajectories and `n_rl` tasks, or it is broken."""

    sft_file: Path
    rl_file: Path
    n_sft: int
    n_rl: int

    def sft(self) -> Iterator[Trajectory]:
        """As in `ProbeSets`; raises `DataError` naming the file and line."""
        trajectories = load_corpus(self.sft_file, format="messages") if self.sft_file.stat().st_size else ()
        return _counted(trajectories, self.sft_file, "trajectories", self.n_sft)

    def rl(self) -> Iterator[RlTask]:
        """As in `ProbeSets`; raises `DataError` naming the file and line."""
        return _counted(_read_tasks(self.rl_file), self.rl_file, "lines", self.n_rl)

    def write(self, sft: IO[bytes], rl: IO[bytes]) -> None:
        for path, to in ((self.sft_file, sft), (self.rl_file, rl)):
            with open(path, "rb") as file:
                shutil.copyfileobj(file, to)


def _counted(items: Iterable[T], path: Path, what: str, n: int) -> Iterator[T]:
    count = 0
    for count, item in enumerate(items, 1):  # noqa: B007 # the count is what is wanted
        yield item
    if count != n:
        raise DataError(f"{path}: holds {count} {what}, routing.json says {n}; route again")


def _read_tasks(path: Path) -> Iterator[RlTask]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                read = _decode_task(line)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise DataError(f"{place}: is no RL task ({error}); route again") from None
            prompt = [msgspec.to_builtins(message) for message in read.prompt]
            yield RlTask(read.id, prompt, read.task, place, read.tools, read.weight)


class _Peek(msgspec.Struct, gc=False):
    """As much of a message as says whether it is trained on."""

    role: str
    train: bool = True
    weight: float = 1.0

    @property
    def weighted(self) -> bool:
        """Whether it says that it is not trained on, or what it weighs."""
        return not self.train or self.weight != 1


class _Line(msgspec.Struct, gc=False):
    """A line of a probe's corpus; what is only passed on stays the text that it is."""

    id: msgspec.Raw
    messages: list[msgspec.Raw]
    tools: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    task: msgspec.Raw = msgspec.Raw(b"{}")


class _Task(msgspec.Struct, gc=False):
    """A line of the RL tasks' file."""

    id: msgspec.Raw
    prompt: list[msgspec.Raw]
    tools: msgspec.Raw | msgspec.UnsetType
    task: msgspec.Raw
    weight: float | msgspec.UnsetType = msgspec.UNSET


class _ReadMessage(msgspec.Struct, omit_defaults=True, gc=False):
    """A message of a prompt, checked."""

    role: str
    content: str
    reasoning_content: str = ""
    tool_calls: list[dict[str, Any]] = []
    name: str = ""
    tool_call_id: str = ""


class _ReadTask(msgspec.Struct, gc=False):
    """A line of the RL tasks' file, every message checked."""

    id: str
    prompt: list[_ReadMessage]
    task: dict[str, Any]
    tools: list[dict[str, Any]] = []
    weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0


_decode, _encode = msgspec.json.Decoder(_Line).decode, msgspec.json.Encoder().encode
_peek = msgspec.json.Decoder(_Peek).decode
_decode_task = msgspec.json.Decoder(_ReadTask).decode


def _weighted_line(line: bytes, weight: float) -> bytes:
    """A line of the corpus as one of the SFT set, its own weight times that of the route."""
    trajectory = parse_record(msgspec.json.decode(line), "messages", "corpus", "")
    return canonical_line(replace(trajectory, weight=trajectory.weight * weight))


def _rl_line(line: bytes, weight: float | msgspec.UnsetType = msgspec.UNSET) -> bytes:
    trajectory = _decode(line)
    prompt = []
    for message in trajectory.messages:
        seen = _peek(message)
        if seen.role == "assistant" and seen.train:
            break
        # A prompt is not trained on, so no message of it says so.
        prompt.append(msgspec.Raw(_encode(_unweighted(message))) if seen.weighted else message)
    return _encode(_Task(trajectory.id, prompt, trajectory.tools, trajectory.task, weight))


def _unweighted(message: msgspec.Raw) -> dict[str, Any]:
    return {key: value for key, value in msgspec.json.decode(message).items() if key not in ("train", "weight")}
