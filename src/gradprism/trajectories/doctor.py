"""The doctor of corpora: one pass over all trajectories, which lists what cannot be used and what harms training."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradprism.trajectories.corpus import Skipped
from gradprism.trajectories.duplicates import ALIKE, Duplicates, Opening, Print, shared, task_names
from gradprism.trajectories.layouts import lists_tools
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory

_FIRST = 5  # places that are named for each kind
_HUGE_CHARACTERS = 20_000
_LOW_SHARE = 0.05  # of response tokens
# Where a task's record says how it ended: 0, false or less is a failure.
_ENDS = (
    *("success", "is_success", "resolved", "solved", "won", "passed", "is_correct", "correct", "target", "reward", "score"),
    *("final_reward", "outcome_reward"),
)
# How environments refuse an action: ALFWorld, ScienceWorld, WebShop and others of AgentGym, OpenAI-style tools.
_REFUSALS = (
    *("Nothing happens", "No known action matches that input", "Invalid action", "The action is not recognized", "Unknown action"),
    *("That's not a verb I recognise", "Error: unknown tool", "Invalid command"),
)
_PUT = re.compile(r"^put .+ (?:in/on|in|on) .+ \d+$")
_SPECIFIC = re.compile(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"|\d+")


@dataclass(frozen=True, slots=True)
class Finding:
    """A kind of thing: how many trajectories or records have it, the places of the first, and what it is in words."""

    kind: str
    count: int
    first: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.first) else ""
        return f"{self.count} × {self.text}" + (f" ({', '.join(self.first)}{more})" if self.first else "")


@dataclass(slots=True)
class _Tally:
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.first) < _FIRST:
            self.first.append(place)


LINTS: Mapping[str, str] = {
    "exact-duplicate": "the same turns as an earlier trajectory; keep one",
    "near-duplicate": f"nearly the turns of an earlier trajectory, at least {ALIKE:.0%} of five-word sequences; keep one",
    "failed": "the task's record says that it failed; to imitate it teaches that",
    "refused-action": "actions that the environment refused, which are trained on; flag those turns `train: false`",
    "repeated-turn": "an assistant turn that repeats the one before it word by word",
    "empty-turn": "an assistant turn without text, reasoning or call, which is trained on",
    "huge-turn": "a turn that alone fills half the context, or more than 20,000 characters where there is no limit",
    "cut": "cut by the context length; what is lost is at the end",
    "shared-task": "a task that is also in the held-out corpus or split: its score would not be of unseen tasks",
    "tools-never-called": "tools are listed, and no turn calls one",
    "tools-twice": "tools are listed in the text of the system turn too, so that a prompt may have them twice; delete one of them",
    "older-alfworld": "actions of the older ALFWorld (`put X in/on Y`), which today's engine refuses; see `gradprism alfworld replay`",
    "control-token": "text that the tokenizer reads as a control token, such as <|im_end|> within a turn; rewrite or delete it",
    "low-response-share": f"less than {_LOW_SHARE:.0%} of its tokens are response",
    "not-trained-on": "holds assistant turns that are flagged as not to be trained on",
}


@dataclass(frozen=True, slots=True)
class Examination:
    """What the doctor keeps of a trajectory: the kinds of lints that it has, and by what it and its task are known again."""

    lints: tuple[str, ...]
    print: Print
    opening: Opening | None


class Doctor:
    """Looks at each trajectory once (`examine`, which other processes may do) and sums up (`add`, in order).

    `context_length` is in tokens, None for no limit; tasks of `against` are held out. Memory grows by about 2 kB for each trajectory.
    """

    def __init__(self, context_length: int | None = None, against: Sequence[Trajectory] = ()) -> None:
        self._context_length = context_length
        self._against = [Opening.of(trajectory) for trajectory in against]
        self._found = {kind: _Tally() for kind in LINTS}
        self._duplicates = Duplicates()
        self._openings: dict[str, Opening] = {}

    def examine(self, trajectory: Trajectory, rendered: RenderedTrajectory | None = None) -> Examination:
        """Looks at a trajectory by itself; nothing of its task is asked, and nothing of tokens where it is not rendered."""
        lints = tuple(dict.fromkeys((*self._lints(trajectory), *(_of_tokens(rendered) if rendered else ()))))
        return Examination(lints, Print.of(trajectory), Opening.of(trajectory) if self._against else None)

    def add(self, trajectory: Trajectory, examination: Examination, held_out: bool = False) -> None:
        """Counts what was found in a trajectory, and what its task says; `held_out`: it is known to be a task of an evaluation."""
        place = trajectory.source or trajectory.id
        if _failed(trajectory.task):
            self._found["failed"].add(place)
        for kind in examination.lints:
            self._found[kind].add(place)
        if before := self._duplicates.add(trajectory.id, examination.print):
            kind, other = before
            self._found[f"{kind}-duplicate"].add(f"{place} of {other}")
        if held_out:
            self._found["shared-task"].add(place)
        elif examination.opening is not None:
            self._openings[place] = replace(examination.opening, names=task_names(trajectory.task))

    def lints(self) -> list[Finding]:
        """What harms training, in the order of `LINTS`."""
        for place in shared(self._openings, self._against):
            self._found["shared-task"].add(place)
        self._openings = {}  # they are counted
        return [Finding(kind, t.count, tuple(t.first), LINTS[kind]) for kind, t in self._found.items() if t.count]

    def _lints(self, trajectory: Trajectory) -> Iterator[str]:
        if trajectory.tools and not any(message.tool_calls for message in trajectory.messages):
            yield "tools-never-called"
        if speaks_older_alfworld(trajectory):
            yield "older-alfworld"
        if lists_tools(trajectory.messages, trajectory.tools):
            yield "tools-twice"
        last: Message | None = None
        limit = _HUGE_CHARACTERS if self._context_length is None else 2 * self._context_length  # 4 characters a token
        for message in trajectory.messages:
            if len(message.content) > limit:
                yield "huge-turn"
            if message.role != "assistant":
                if last is not None and last.train and _refuses(message):
                    yield "refused-action"
                continue
            if not message.train:
                yield "not-trained-on"
            elif not (message.content.strip() or message.tool_calls or message.reasoning.strip()):
                yield "empty-turn"
            if last is not None and _said(last) == _said(message):
                yield "repeated-turn"
            last = message


def _of_tokens(rendered: RenderedTrajectory) -> Iterator[str]:
    if rendered.notes.with_control:
        yield "control-token"
    if rendered.n_truncated:
        yield "cut"
    if rendered.n_targets < _LOW_SHARE * len(rendered.input_ids):
        yield "low-response-share"


def _failed(task: Mapping[str, Any]) -> bool:
    for key in _ENDS:
        value = task.get(key)
        if isinstance(value, bool | int | float) and value <= 0:
            return True
    return task.get("label") is False  # TRL's mark of an answer that is not wanted


def _refuses(message: Message) -> bool:
    text = message.content.strip().removeprefix("Observation:").lstrip()
    return text.startswith(_REFUSALS)


def _said(message: Message) -> tuple[str, str]:
    return message.content.strip(), repr(message.tool_calls)


def speaks_older_alfworld(trajectory: Trajectory) -> bool:
    """Whether a turn is an action of the older ALFWorld, `put X in/on Y`, by itself or after `Action:`."""
    said = (m.content for m in trajectory.messages if m.role == "assistant" and "put " in m.content)
    return any(_PUT.match(content.rpartition("Action:")[2].strip()) for content in said)


def older_alfworld(count: int) -> str:
    """A sentence about so many trajectories of the older ALFWorld; empty for none."""
    return f"{count} trajectories with {LINTS['older-alfworld']}" if count else ""


def problems(skipped: Sequence[Skipped]) -> list[Finding]:
    """The records that cannot be used, by kind: reasons that differ in names and numbers alone are of one."""
    found: dict[str, _Tally] = {}
    texts: dict[str, str] = {}
    for one in skipped:
        kind = _SPECIFIC.sub("…", one.reason)[:120]
        found.setdefault(kind, _Tally()).add(one.source or one.id)
        texts.setdefault(kind, one.reason)
    ordered = sorted(found, key=lambda kind: -found[kind].count)
    return [Finding(_kind(texts[kind]), found[kind].count, tuple(found[kind].first), texts[kind]) for kind in ordered]


def _kind(reason: str) -> str:
    for word, kind in _KINDS:
        if word in reason:
            return kind
    return "refused"


_KINDS = (
    ("broken JSON", "unreadable"),
    ("convert it to one of them", "unreadable"),
    ("UTF-8", "unreadable"),
    ("is not text", "unreadable"),
    ("unusable JSON", "unreadable"),
    ("past the context length", "over-long"),
    ("empty response", "nothing-trained-on"),
    ("chat template", "template"),
    ("is taken by", "duplicate-id"),
    ("format not recognised", "format"),
)
