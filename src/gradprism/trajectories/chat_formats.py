"""Formats whose records are chats: `messages` and `conversations` in all dialects, prompts with completions, Alpaca, xLAM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradprism.runtime.errors import DataError
from gradprism.trajectories.layouts import Layout, assemble, record_weight, turns_under
from gradprism.trajectories.reading import Notes, Record, from_json, keys_of, kind_of
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.tools import read_calls
from gradprism.trajectories.turns import TurnReader

_CONVERSATIONS = ("conversations", "conversation", "dialog", "dialogue", "turns")
_PAIRS = (("human", "assistant"), ("input", "output"), ("user", "assistant"))  # ms-swift's older form, xtuner's


@dataclass(frozen=True, slots=True)
class Chat:
    """A list of turns under one of the keys `turns`; each turn is in any dialect."""

    name: str
    turns: tuple[str, ...]
    bookkeeping: frozenset[str] = frozenset()
    mask_means_out: bool | None = None

    def recognises(self, record: Record) -> bool:
        """Whether a record is of this format."""
        return chat_name(record) == self.name

    def lacks(self, record: Record) -> str:
        """The list of turns, where it is missing."""
        return "" if turns_under(record, self.turns) else f"a list {self.turns[0]!r}"

    def read(self, record: Record, notes: Notes) -> Trajectory:
        """The record's trajectory."""
        found = turns_under(record, self.turns)
        if found is None:
            raise DataError(f"no list {self.turns[0]!r}; keys seen: {keys_of(record)}")
        key, turns = found
        if not turns:
            raise DataError(f"{key!r} is empty; delete the record")
        turns = _unpaired(turns)
        messages = TurnReader(notes, self.bookkeeping, self.mask_means_out).read_all(turns)
        if self.name == "messages":  # in which trajectories are written
            weight = record_weight(record)
            return replace(assemble(record, messages, [key, "weight"], notes, turns), weight=weight)
        made = assemble(record, messages, [key], notes, turns)
        if self.name == "eto" and record.get("game_file") is not None:
            return replace(made, task={"env": "alfworld", **made.task})
        return made


def chat_name(record: Record) -> str | None:
    """The name of a chat's format. A `conversations` record is ShareGPT's unless it has another's marks."""
    if turns_under(record, ["messages"]):
        return "messages"
    found = turns_under(record, _CONVERSATIONS)
    if found is None:
        key = next((key for key in ("trajectory", "history", "traj") if _is_chat(record, key)), None)
        return None if key is None else "tau-bench" if key == "traj" else "swe-agent"
    turns = [turn for turn in found[1] if isinstance(turn, Mapping)]
    if record.get("item_id") is not None or any(turn.get("loss") is not None for turn in turns):
        return "agenttraj"
    has_mark = record.get("game_file") is not None or record.get("reward") is not None
    return "eto" if has_mark and all(turn.get("from") in ("human", "gpt") for turn in turns) else "sharegpt"


def _is_chat(record: Record, key: str) -> bool:
    found = turns_under(record, [key])
    return found is not None and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in found[1])


def _unpaired(turns: Sequence[Any]) -> list[Any]:
    """Turns that are pairs of a question and its answer (ms-swift's `human` and `assistant`, xtuner's `input` and `output`), one by one."""
    made: list[Any] = []
    for turn in turns:
        pair = None
        if isinstance(turn, Mapping) and not {"role", "from"} & turn.keys():
            pair = next((pair for pair in _PAIRS if set(pair) <= turn.keys()), None)
        if pair is None:
            made.append(turn)
            continue
        question, answer = pair
        if turn.get("system"):
            made.append({"role": "system", "content": turn["system"]})
        if turn[question]:
            made.append({"role": "user", "content": turn[question]})
        rest = {key: value for key, value in turn.items() if key not in (*pair, "system", "need_eos_token", "sep")}
        made.append({"role": "assistant", "content": turn[answer], **rest})
    return made


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """TRL's `prompt` and `completion`, each a text or a list of messages; the prompt's own assistant turns are not trained on."""

    name: str = "prompt-completion"

    def recognises(self, record: Record) -> bool:
        """Whether a record is of this format."""
        return chat_name(record) is None and not self.lacks(record)

    def lacks(self, record: Record) -> str:
        """The key that is missing."""
        if record.get("prompt") is None:
            return "'prompt'"
        return "" if _completion_key(record) else "'completion'"

    def read(self, record: Record, notes: Notes) -> Trajectory:
        """The record's trajectory."""
        key = _completion_key(record) or "completion"
        prompt, completion = _turns(record["prompt"], "prompt", "user"), _turns(record[key], key, "assistant")
        before = TurnReader(notes).read_all(prompt)
        given = [replace(message, weight=0.0) if message.role == "assistant" else message for message in before]
        messages = given + TurnReader(notes).read_all(completion)
        return assemble(record, messages, ["prompt", key], notes, prompt)


def _completion_key(record: Record) -> str | None:
    return next((key for key in ("completion", "response") if record.get(key) is not None), None)


def _turns(value: Any, key: str, role: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Sequence):
        return list(value)
    raise DataError(f"{key!r} is {kind_of(value)}, expected a string or a list of messages")


@dataclass(frozen=True, slots=True)
class Alpaca:
    """Alpaca as LLaMA-Factory reads it, and ms-swift's query and response: an instruction, its input, an answer, a history of pairs."""

    name: str = "alpaca"

    def recognises(self, record: Record) -> bool:
        """Whether a record is of this format."""
        return chat_name(record) is None and not self.lacks(record)

    def lacks(self, record: Record) -> str:
        """The key that is missing."""
        question, answer = _alpaca_keys(record)
        if record.get(question) is None and not (question == "instruction" and record.get("input")):
            return f"{question!r}"
        return "" if record.get(answer) is not None else f"{answer!r}"

    def read(self, record: Record, notes: Notes) -> Trajectory:
        """The record's trajectory; the input follows the instruction in a line of its own."""
        question, answer = _alpaca_keys(record)
        asked = [record.get(question), record.get("input") if question == "instruction" else None]
        for key, value in (*zip((question, "input"), asked, strict=True), (answer, record[answer])):
            if value is not None and not isinstance(value, str):
                raise DataError(f"{key!r} is {kind_of(value)}, expected a string")
        pairs = from_json(record.get("history") or [], "history")
        if not isinstance(pairs, Sequence) or not all(isinstance(p, Sequence) and len(p) == 2 for p in pairs):
            raise DataError("'history' is no list of pairs of a question and its answer")
        last = ("\n".join(text for text in asked if text), record[answer])
        turns = [
            {"role": role, "content": text}
            for pair in (*pairs, last)
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        messages = TurnReader(notes).read_all(turns)
        return assemble(record, messages, [question, answer, "input", "history"], notes)


def _alpaca_keys(record: Record) -> tuple[str, str]:
    return ("query", "response") if record.get("query") is not None else ("instruction", "output")


@dataclass(frozen=True, slots=True)
class Xlam:
    """xLAM's function calling set: a `query`, the calls that answer it, the tools; the latter two as JSON text."""

    name: str = "xlam"

    def recognises(self, record: Record) -> bool:
        """Whether a record is of this format."""
        return not self.lacks(record) and record.get("tools") is not None

    def lacks(self, record: Record) -> str:
        """The key that is missing."""
        return next((repr(key) for key in ("query", "answers") if record.get(key) is None), "")

    def read(self, record: Record, notes: Notes) -> Trajectory:
        """The record's trajectory, of two turns."""
        if not isinstance(record["query"], str):
            raise DataError(f"'query' is {kind_of(record['query'])}, expected a string")
        calls = read_calls(record["answers"], "answers")
        if not calls:
            raise DataError("'answers' holds no call, so there is nothing to train on; delete the record")
        messages = [Message("user", record["query"]), Message("assistant", "", tool_calls=calls)]
        return assemble(record, messages, ["query", "answers"], notes)


CHATS: tuple[Layout, ...] = (
    Chat("messages", ("messages",)),
    Chat("eto", _CONVERSATIONS),
    Chat("sharegpt", _CONVERSATIONS),
    Chat("agenttraj", _CONVERSATIONS),
    PromptCompletion(),
    Alpaca(),
    Xlam(),
    Chat("tau-bench", ("traj", "messages")),
)
