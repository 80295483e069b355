"""A route's SFT set as rows that another trainer can say: what it reads of a turn, where it must be split, what is refused by id.

A trainer that reads a flag on each turn (or one of several weights) gets a row per trajectory. One that trains on every assistant turn
of a row gets the same while all turns are trained on; where some are not, the set is split: a row per turn that is trained on, which is
its last, so that only the row's last turn is to be trained on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gradprism.routing.routes import Routes
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.trajectories.record import Message, Trajectory


@dataclass(frozen=True)
class Reader:
    """What a trainer's loader can take. `masks`: by a flag of each turn, by split rows, or not at all."""

    name: str
    masks: Literal["flags", "split", "none"]
    weights: bool = False  # other weights than 0 and 1, of turns and so of trajectories
    tools: bool = True  # the functions that may be called, beside the messages
    assistant_last: bool = False  # a row must end with an assistant turn


@dataclass(frozen=True)
class SftRow:
    """One row: messages of a trajectory from its first on. `turn` is the message that alone is trained on, None where flags say it."""

    trajectory: Trajectory
    messages: Sequence[Message]
    turn: int | None = None

    @property
    def id(self) -> str:
        """The trajectory's, with the turn's number behind it in a set that is split."""
        return self.trajectory.id if self.turn is None else f"{self.trajectory.id}#{self.turn}"


@dataclass
class SftRows:
    """The rows of a route's SFT set, which may be gone through any number of times; nothing is held in memory.

    `by_turn`: the set is split whether or not it must be. `masked`: assistant turns that are not to be trained on. `weighted`:
    trajectories with another weight than 0 and 1. `calls`, `reasoning`: turns that have them; `results`: those of tools. `tools`:
    trajectories that have them. `tails`: trajectories with messages behind the last turn that is trained on. `untrained`: ids of
    trajectories without a turn to train on, up to three, of `n_untrained`.
    """

    routes: Routes
    reader: Reader
    by_turn: bool = False
    masked: int = 0
    weighted: int = 0
    calls: int = 0
    reasoning: int = 0
    results: int = 0
    tools: int = 0
    tails: int = 0
    n_untrained: int = 0
    untrained: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, routes: Routes, reader: Reader, rows_of: str = "auto") -> "SftRows":
        """Goes through the set once; raises `DataError`, naming the trajectory, for what the trainer could not be told.

        `rows_of` is `auto`, or `turns` to split a set whose turns are all trained on as well. Raises `ConfigError` for another word.
        """
        if rows_of not in ("auto", "turns"):
            raise ConfigError(f"rows {rows_of!r}: choose auto or turns")
        rows = cls(routes, reader, by_turn=rows_of == "turns")
        for trajectory in routes.sets.sft():
            rows._count(trajectory)
        return rows

    @property
    def split(self) -> bool:
        """Whether there is a row for each turn that is trained on, in place of one per trajectory."""
        return self.reader.masks == "split" and (self.masked > 0 or self.by_turn)

    def __iter__(self) -> Iterator[SftRow]:
        for trajectory in self.routes.sets.sft():
            messages = trajectory.messages
            trained = [i for i, message in enumerate(messages) if message.role == "assistant" and message.train]
            if self.split:
                yield from (SftRow(trajectory, messages[: i + 1], i) for i in trained)
            elif trained or self.reader.masks == "flags":
                yield SftRow(trajectory, messages[: last_turn(messages) + 1] if self.reader.assistant_last else messages)

    def warnings(self, split: str = "") -> Iterator[str]:
        """What the trainer's user must know of the rows; `split` says which setting trains on a row's last turn alone."""
        name = self.reader.name
        if self.split:
            masked = f"{self.masked} assistant turns are not to be trained on, which {name} cannot be told turn by turn: "
            rows = f"there is a row for each turn that is trained on, and only a row's last turn may be: {split}"
            yield masked + rows if self.masked else rows
        if self.n_untrained and self.reader.masks != "flags":
            some = ", ".join(self.untrained) + (", …" if self.n_untrained > len(self.untrained) else "")
            yield f"{self.n_untrained} trajectories have no turn to train on, so no row: {some}"
        if self.tails and (self.split or self.reader.assistant_last):
            yield f"{self.tails} trajectories go on behind their last turn that is trained on; {name} needs that last: the rest is left out"

    def _count(self, trajectory: Trajectory) -> None:
        reader, turns = self.reader, [m for m in trajectory.messages if m.role == "assistant"]
        masked = sum(not m.train for m in turns)
        weighted = next((i for i, m in enumerate(trajectory.messages) if m.role == "assistant" and m.weight not in (0, 1)), None)
        if weighted is not None and not reader.weights:
            weight = trajectory.messages[weighted].weight
            raise refused(
                trajectory, f"message {weighted} has weight {weight:g}; {reader.name} knows 0 and 1 only: give it one of them"
            )
        if trajectory.weight != 1 and not reader.weights:
            raise refused(
                trajectory,
                f"has weight {trajectory.weight:g}, and {reader.name} trains on all rows alike: route by sides, or export for ms-swift "
                "or datasets",
            )
        if masked and reader.masks == "none":
            raise refused(
                trajectory,
                f"{masked} of its turns are not to be trained on; {reader.name} trains on every assistant turn: cut the trajectory "
                "before them, or export for a trainer that can be told",
            )
        if trajectory.tools and not reader.tools:
            raise refused(
                trajectory,
                f"has tools; {reader.name} renders chats without them: write them into its system message, or export for another trainer",
            )
        self.masked += masked
        self.weighted += weighted is not None or trajectory.weight != 1
        self.calls += sum(bool(m.tool_calls) for m in turns)
        self.reasoning += sum(bool(m.reasoning) for m in turns)
        self.results += sum(m.role == "tool" for m in trajectory.messages)
        self.tools += bool(trajectory.tools)
        self.tails += 0 <= last_turn(trajectory.messages, trained=True) < len(trajectory.messages) - 1
        if masked == len(turns):
            self.n_untrained += 1
            self.untrained += [trajectory.id] if len(self.untrained) < 3 else []


def refused(trajectory: Trajectory, why: str) -> DataError:
    """The error for a trajectory that a trainer cannot be told, on one line: its place, its id and what to do."""
    return DataError(f"{trajectory.source + ': ' if trajectory.source else ''}trajectory {trajectory.id!r}: {why}")


def last_turn(messages: Sequence[Message], *, trained: bool = False) -> int:
    """The index of the last assistant turn (that is trained on), −1 where there is none."""
    return next(
        (i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "assistant" and (messages[i].train or not trained)), -1
    )


def with_results_in_order(messages: Sequence[Message]) -> list[Message]:
    """The messages, with the results behind each turn's calls in the order of the calls where ids tell it.

    For trainers that match calls and results by their order, not by id.
    """
    ordered: list[Message] = []
    i = 0
    while i < len(messages):
        calls: Mapping[str, int] = {call.id: n for n, call in enumerate(messages[i].tool_calls)}
        ordered.append(messages[i])
        i += 1
        results = []
        while calls and i < len(messages) and messages[i].role == "tool":
            results.append(messages[i])
            i += 1
        if all(result.tool_call_id in calls for result in results):
            results.sort(key=lambda result: calls[result.tool_call_id])
        ordered += results
    return ordered


def with_thoughts(message: Message) -> str:
    """The turn's text with its reasoning before it, between the tags that most reasoning models use."""
    return f"<think>\n{message.reasoning}\n</think>\n\n{message.content}" if message.reasoning else message.content
