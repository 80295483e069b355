"""Formats in which agents' frameworks keep what they did: SWE-agent, ATIF (Harbor), the agent data protocol, inspect_ai."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradprism.runtime.errors import DataError
from gradprism.trajectories.chat_formats import chat_name
from gradprism.trajectories.layouts import Layout, assemble, turns_under
from gradprism.trajectories.reading import Notes, Record, keys_of, kind_of, says_something
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.turns import TurnReader


@dataclass(frozen=True, slots=True)
class SweAgent:
    """SWE-agent's `history` of a `.traj` file, and `trajectory` lists of chat turns (nebius's SWE-agent and OpenHands sets).

    A turn's `thought` and `action` repeat what its text says; a demonstration (`is_demo`) and a `mask` take it out of training.
    """

    name: str = "swe-agent"

    def recognises(self, record: Record) -> bool:
        """Whether a record is of this format."""
        return chat_name(record) == self.name

    def lacks(self, record: Record) -> str:
        """The list of turns, where it is missing."""
        return "" if turns_under(record, ("history", "trajectory")) else "a list 'trajectory' or 'history'"

    def read(self, record: Record, notes: Notes) -> Trajectory:
        """The record's trajectory."""
        found = turns_under(record, ("history", "trajectory"))
        if found is None or not found[1]:
            raise DataError("the list of turns is empty; delete the record")
        turns = [_swe_turn(turn) for turn in found[1]]
        bookkeeping = frozenset({"agent", "message_type", "thought", "action", "cutoff_date", "cache_control", "tags"})
        messages = TurnReader(notes, bookkeeping, mask_means_out=True).read_all(turns)
        # `trajectory` beside a history has the same steps once more, and the states of the shell.
        return assemble(record, messages, ["history", "trajectory"], notes, turns)


def _swe_turn(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    made = {key: value for key, value in turn.items() if key not in ("is_demo", "tool_call_ids", "system_prompt")}
    if turn.get("is_demo"):
        made["masked"] = True
    if ids := turn.get("tool_call_ids"):
        made["tool_call_id"] = ids[0]
    if turn.get("system_prompt") and not turn.get("text") and not turn.get("content"):
        made["text"] = turn["system_prompt"]
    return made


@dataclass(frozen=True, slots=True)
class Atif:
    """The agent trajectory interchange format of Harbor: `steps` of system, user and agent, each agent step with its observation."""

    name: str = "atif"

    def recognises(self, record: Record) -> bool:
        """Whether a record is of this format."""
        return str(record.get("schema_version", "")).startswith("ATIF") or (
            isinstance(record.get("steps"), list) and isinstance(record.get("agent"), Mapping)
        )

    def lacks(self, record: Record) -> str:
        """The list of steps, where it is missing."""
        return "" if turns_under(record, ("steps",)) else "a list 'steps'"

    def read(self, record: Record, notes: Notes) -> Trajectory:
        """The record's trajectory. Context that a step copies from an earlier one is not trained on again."""
        agent = record.get("agent") or {}
        reader = TurnReader(notes, frozenset({"source", "step_id", "timestamp", "model_name", "reasoning_effort", "metrics"}))
        for number, step in enumerate(record["steps"], 1):
            try:
                for turn in _atif_turns(step):
                    reader.read(turn)
            except DataError as error:
                raise DataError(f"step {number}: {error}") from None
        named = {f"agent_{key}": agent[key] for key in ("name", "model_name") if agent.get(key)}
        beside = {**record, **named, "tools": agent.get("tool_definitions")}
        return assemble(beside, reader.messages, ["steps", "agent", "final_metrics"], notes)


def _atif_turns(step: Any) -> Iterator[Record]:
    if not isinstance(step, Mapping):
        raise DataError(f"expected an object with 'source' and 'message', found {kind_of(step)}")
    source, observation = step.get("source"), step.get("observation") or {}
    if source not in ("system", "user", "agent"):
        raise DataError(f"'source' is {source!r}; known: system, user, agent")
    rest = {key: value for key, value in step.items() if key not in ("message", "observation", "is_copied_context")}
    text = step.get("message")
    if source == "agent":
        weight = {"weight": 0.0} if step.get("is_copied_context") else {}
        has_more = says_something(step.get("tool_calls")) or says_something(step.get("reasoning_content"))
        if says_something(text) or has_more:
            yield {**rest, "role": "assistant", "content": text if says_something(text) or not has_more else "", **weight}
    elif says_something(text):
        yield {**rest, "role": source, "content": text}
    for result in observation.get("results") or ():
        content, call = result.get("content"), result.get("source_call_id")
        beside = {key: value for key, value in result.items() if key not in ("content", "source_call_id")}
        if content is not None:
            yield {**beside, "role": "tool" if call else "user", "content": content, "tool_call_id": call}


@dataclass(frozen=True, slots=True)
class AgentDataProtocol:
    """The agent data protocol: `content`, a list of actions and observations.

    An API call is a tool call, code a fenced block of its language, the description of either the text before it.
    """

    name: str = "adp"

    def recognises(self, record: Record) -> bool:
        """Whether a record is of this format."""
        content = record.get("content")
        return isinstance(content, list) and any(isinstance(item, Mapping) and _adp_class(item) for item in content)

    def lacks(self, record: Record) -> str:
        """The list of actions and observations, where it is missing."""
        return "" if isinstance(record.get("content"), Sequence) else "a list 'content'"

    def read(self, record: Record, notes: Notes) -> Trajectory:
        """The record's trajectory."""
        reader = TurnReader(notes, frozenset({"class_"}))
        for number, item in enumerate(record["content"], 1):
            if not isinstance(item, Mapping) or not _adp_class(item):
                what = keys_of(item) if isinstance(item, Mapping) else kind_of(item)
                raise DataError(f"item {number}: neither an action nor an observation in text ({what})")
            try:
                reader.read(_adp_turn(item, reader))
            except DataError as error:
                raise DataError(f"item {number}: {error}") from None
        details = {key: value for key, value in (record.get("details") or {}).items() if key not in record}
        return assemble({**record, **details}, reader.messages, ["content", "details"], notes)


def _adp_class(item: Record) -> str:
    given = item.get("class_")
    if given is not None:
        return given if given in ("api_action", "code_action", "message_action", "text_observation") else ""
    if "kwargs" in item:
        return "api_action"
    return "code_action" if "language" in item else "text_observation" if "source" in item else ""


def _adp_turn(item: Record, reader: TurnReader) -> Record:
    kind, said = _adp_class(item), item.get("description") or ""
    used = {"class_", "description", "content", "source", "function", "kwargs", "language"}
    rest = {key: value for key, value in item.items() if key not in used}
    if kind == "api_action":
        call = {"name": item.get("function"), "arguments": item.get("kwargs") or {}}
        return {**rest, "role": "assistant", "content": said, "tool_calls": [call]}
    if kind == "code_action":
        text = "\n\n".join(part for part in (said, f"```{item.get('language', '')}\n{item.get('content')}\n```") if part)
        return {**rest, "role": "assistant", "content": text}
    if kind == "message_action":
        text = "\n\n".join(part for part in (said, item.get("content")) if isinstance(part, str) and part)
        return {**rest, "role": "assistant", "content": text}
    answers_call = bool(reader.messages) and (bool(reader.messages[-1].tool_calls) or reader.messages[-1].role == "tool")
    return {**rest, "role": "tool" if answers_call and item.get("source") != "user" else "user", "content": item.get("content")}


@dataclass(frozen=True, slots=True)
class Inspect:
    """A sample of an inspect_ai log: its `messages` and `scores`; texts that the log keeps as attachments are put back."""

    name: str = "inspect"

    def recognises(self, record: Record) -> bool:
        """Whether a record is of this format."""
        return "epoch" in record and "target" in record and isinstance(record.get("messages"), list)

    def lacks(self, record: Record) -> str:
        """The list of messages, where it is missing."""
        return "" if isinstance(record.get("messages"), list) else "a list 'messages'"

    def read(self, record: Record, notes: Notes) -> Trajectory:
        """The record's trajectory; `score`, of the first scorer, is in its task."""
        attachments = record.get("attachments") or {}
        turns = [_inspect_turn(_attached(turn, attachments)) for turn in record["messages"]]
        messages = TurnReader(notes, frozenset({"id", "source", "model", "internal", "metadata"})).read_all(turns)
        scores = [_score(score.get("value")) for score in (record.get("scores") or {}).values() if isinstance(score, Mapping)]
        kept = {key: record[key] for key in ("epoch", "eval_task", "eval_model") if record.get(key) is not None}
        beside = {**kept, "sample": str(record.get("id")), **({"score": scores[0]} if scores and scores[0] is not None else {})}
        return assemble(beside, messages, [], notes, turns)


def _inspect_turn(turn: Any) -> Any:
    """A failed tool call has its error in place of a text."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get("error"), Mapping):
        return turn
    made = {key: value for key, value in turn.items() if key != "error"}
    return made if turn.get("content") else {**made, "content": str(turn["error"].get("message", ""))}


def _attached(value: Any, attachments: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return attachments.get(value.removeprefix("attachment://"), value) if value.startswith("attachment://") else value
    if isinstance(value, list):
        return [_attached(part, attachments) for part in value]
    return {key: _attached(part, attachments) for key, part in value.items()} if isinstance(value, dict) else value


def _score(value: Any) -> float | str | None:
    """A score as a number: inspect's letters for correct, partly correct, incorrect and no answer."""
    if isinstance(value, str):
        return {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}.get(value, value)
    return float(value) if isinstance(value, int | float) else None


def unpacked(document: Any) -> list[Any]:
    """The records of one JSON document: the elements of a list; the samples of an inspect_ai log, the simulations of tau2-bench, the
    rows of Hugging Face's dataset server; else the one object."""
    if isinstance(document, list):
        return document
    if not isinstance(document, Mapping):
        return [document]
    samples, about = _objects(document.get("samples")), document.get("eval")
    if samples is not None and isinstance(about, Mapping):
        return [{"eval_task": about.get("task"), "eval_model": about.get("model"), **sample} for sample in samples]
    if (simulations := _objects(document.get("simulations"))) is not None:
        return [{**one, "reward": _reward(one.get("reward_info"))} for one in simulations]
    rows = _objects(document.get("rows"))
    if rows and all("row" in row for row in rows):
        return [row["row"] for row in rows]
    return [document]


def _objects(value: Any) -> list[Record] | None:
    """The value where it is a list of objects."""
    return value if isinstance(value, list) and all(isinstance(element, Mapping) for element in value) else None


def _reward(told: Any) -> Any:
    return told.get("reward") if isinstance(told, Mapping) else None


AGENTS: tuple[Layout, ...] = (SweAgent(), Atif(), AgentDataProtocol(), Inspect())
