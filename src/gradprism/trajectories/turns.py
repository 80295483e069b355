"""One turn of a conversation, in whatever dialect it is written, as messages of the record.

A dialect differs in the names of the speaker (`role`, `from`), of who speaks (`gpt`, `bot`, `function_call`, …), of the text
(`content`, `value`, `text`) and of what is beside it. `docs/formats.md` lists them and says whose they are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradprism.runtime.errors import DataError
from gradprism.trajectories.reading import Notes, Record, as_text, from_json, keys_of, kind_of, refuse_media, says_something
from gradprism.trajectories.record import Message, ToolCall
from gradprism.trajectories.tools import calls_in_text, read_calls

SPEAKERS = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "environment", "env"),
    "assistant": ("assistant", "gpt", "bot", "ai", "model", "chatgpt", "agent", "bing", "bard", "claude"),
    "tool": (
        *("tool", "function", "observation", "tool_response", "tool_result", "tool_results", "ipython"),
        *("function_response", "function_result"),
    ),
    "call": ("function_call", "tool_call", "tool_calls"),  # an entry of its own for what an assistant calls
}
_ROLE_OF = {name: role for role, names in SPEAKERS.items() for name in names}
_SPEAKER, _TEXT = ("role", "from", "speaker"), ("content", "value", "text")
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "think")
_CALLS = ("tool_calls", "function_call", "tool_call")
# 0 or false: not trained on. gradprism, OpenAI, AgentTraj, xtuner and ms-swift, Axolotl, slime, and names seen in corpora.
WEIGHTS = (
    *("train", "weight", "loss", "training", "trainable", "loss_scale", "loss_weight", "loss_mask", "step_loss_mask"),
    *("enable_loss", "compute_loss", "do_train", "is_trained"),
)
MASKED = ("masked", "is_masked", "no_loss", "ignore_loss")  # true: not trained on
_SPANS = ("train_detail", "training_detail")  # Axolotl's: parts of a turn
_RESULT_NAME, _RESULT_ID = ("name", "tool_name", "function"), ("tool_call_id", "tool_use_id", "call_id")
_READ = {*_SPEAKER, *_TEXT, *_REASONING, *_CALLS, *WEIGHTS, *MASKED, *_SPANS, "name", *_RESULT_ID, "reasoning_details"}
# The tools of a system turn are read by who reads the record.
_ALSO_READ = {"tool": (*_RESULT_NAME, "id"), "system": ("tools", "functions"), "call": ("arguments",)}


@dataclass(slots=True)
class TurnReader:
    """Reads the turns of one conversation in their order; `messages` grows with each.

    `bookkeeping` are keys of the format that say nothing about what was said; `mask_means_out` whether a true `mask` takes a turn out
    of training (None: not known for this format, so that a mask is refused).
    """

    notes: Notes
    bookkeeping: frozenset[str] = frozenset()
    mask_means_out: bool | None = None
    messages: list[Message] = field(default_factory=list)

    def read_all(self, turns: Sequence[Any]) -> list[Message]:
        """The messages of all turns; raises `DataError` naming the turn."""
        for number, turn in enumerate(turns, 1):
            try:
                self.read(turn)
            except DataError as error:
                raise DataError(f"turn {number}: {error}") from None
        return self.messages

    def read(self, turn: Any) -> None:
        """Adds the message, or messages, of one turn; raises `DataError`."""
        if isinstance(turn, str) and turn.startswith("{"):  # as a column of the type Json has it on disk
            turn = from_json(turn, "a turn")
        if not isinstance(turn, Mapping):
            raise DataError(f"expected an object with 'role' and 'content', found {kind_of(turn)}")
        if plain := _plain_message(turn):
            self.messages.append(plain)
            return
        speaker_key = _first_key(turn, _SPEAKER)
        if speaker_key is None:
            raise DataError(f"no 'role' or 'from'; keys seen: {keys_of(turn)}; map speaker=KEY names another")
        role = _ROLE_OF.get(str(turn[speaker_key]).strip().lower()) if isinstance(turn[speaker_key], str) else None
        if role is None:
            known = ", ".join(dict.fromkeys((*SPEAKERS, *_ROLE_OF)))
            raise DataError(f"{speaker_key!r} is {turn[speaker_key]!r}; known: {known}; map role.NAME=assistant names others")
        unheard = _other_speakers(turn, speaker_key, role)
        refuse_media(turn, "in a turn")
        text_key = next((key for key in _TEXT if says_something(turn.get(key))), None) or _first_key(turn, _TEXT)
        self._add(turn, role, text_key)
        other = {key for key in _TEXT if text_key is not None and turn.get(key) != turn[text_key]}
        used = (_READ - other - unheard) | self.bookkeeping | {"mask", *_ALSO_READ.get(role, ())}
        self.notes.unused(turn, used)

    def _add(self, turn: Record, role: str, text_key: str | None) -> None:
        parts = _Parts() if text_key is None else _parts(turn[text_key], text_key, role, self.notes)
        weight = self._weight(turn)
        if role not in ("assistant", "call") and weight and any(turn.get(key) is not None for key in (*WEIGHTS, *_SPANS)):
            self.notes.remarks["flags that would train on what no assistant said: only assistant turns are trained on"] += 1
        if role == "call":
            self._add_call(turn, parts, weight)
            return
        calls = _calls(turn, parts.calls)
        reasoning = _reasoning(turn, parts.reasoning, self.bookkeeping)
        if role != "assistant" and (calls or reasoning):
            what = "reasoning" if reasoning else "tool calls"
            raise DataError(f"{what} in a turn of {role!r}, where no template has a place for it; delete it or the record")
        if text_key is None and not (calls or reasoning or parts.results or (role == "tool" and _is_empty_result(turn))):
            empty = next((key for key in _TEXT if key in turn), None)
            if empty is not None:
                raise DataError(f"{empty!r} is {kind_of(turn[empty])}, expected a string")
            raise DataError(f"no 'content' or 'value'; keys seen: {keys_of(turn)}; map text=KEY names another")
        self.messages.extend(replace(result, weight=weight) for result in parts.results)
        if parts.results and not parts.text:
            return
        name = str(turn.get("name") or "")
        if role == "tool":
            self.messages.append(self._result(turn, parts.text, weight))
        else:
            self.messages.append(Message(role, parts.text, weight, reasoning, calls, name))

    def _add_call(self, turn: Record, parts: "_Parts", weight: float) -> None:
        """An entry for a call alone goes on with the assistant turn before it, as long as that is trained on alike."""
        name = turn["name"] if isinstance(turn.get("name"), str) else ""
        text, reasoning = parts.text, _reasoning(turn, parts.reasoning, self.bookkeeping)
        found = calls_in_text(text or as_text(turn.get("arguments") or ""), name)
        if beside := _calls(turn, parts.calls):
            found = (text if found is None else found[0], beside)
        if found is None:
            self.notes.remarks["calls that are no JSON with a name, kept as the text that they are"] += 1
            self.messages.append(Message("assistant", text, weight, reasoning, name=name))
            return
        thought, calls = found
        before = self.messages[-1] if self.messages else None
        if before is not None and (before.role, before.weight) == ("assistant", weight) and not (thought or reasoning):
            self.messages[-1] = replace(before, tool_calls=before.tool_calls + calls)
        else:
            self.messages.append(Message("assistant", thought, weight, reasoning, calls))

    def _result(self, turn: Record, text: str, weight: float) -> Message:
        name = next((turn[key] for key in _RESULT_NAME if isinstance(turn.get(key), str)), "")
        identifier = next((str(turn[key]) for key in _RESULT_ID if turn.get(key)), "")
        if not identifier and turn.get("id"):  # tau2-bench's
            calls = (call.id for message in self.messages for call in message.tool_calls)
            identifier = str(turn["id"]) if str(turn["id"]) in calls else ""
        return Message("tool", text, weight, name=name, tool_call_id=identifier)

    def _weight(self, turn: Record) -> float:
        weights = {key: _number(turn[key], key) for key in WEIGHTS if turn.get(key) is not None}
        weights |= {key: float(not _number(turn[key], key)) for key in MASKED if turn.get(key) is not None}
        for key in _SPANS:
            if says_something(turn.get(key)):
                weights[key] = _spans_weight(turn[key], key)
        if turn.get("mask") is not None:
            if self.mask_means_out is None:
                raise DataError(
                    "'mask' may say that a turn is trained on, or that it is not; "
                    "map weight=mask where true means trained on, masked=mask where true means left out"
                )
            weights["mask"] = float(bool(_number(turn["mask"], "mask")) != self.mask_means_out)
        if not weights:
            return 1.0
        if len({value > 0 for value in weights.values()}) > 1:
            said = ", ".join(f"{key!r} {value:g}" for key, value in weights.items())
            raise DataError(f"flags disagree on whether the turn is trained on ({said}); keep one")
        return math.prod(weights.values())


def _other_speakers(turn: Record, speaker_key: str, role: str) -> set[str]:
    """The keys of a speaker beside the one that is read that say something else; raises `DataError` where that is another role."""
    others = set()
    for key in _SPEAKER:
        said = turn.get(key)
        if not says_something(said) or said == turn[speaker_key]:
            continue
        other = _ROLE_OF.get(said.strip().lower()) if isinstance(said, str) else None
        if other not in (None, role):
            raise DataError(f"{speaker_key!r} is {turn[speaker_key]!r} and {key!r} is {said!r}; keep one, or map speaker=KEY")
        if other is None:
            others.add(key)
    return others


def _is_empty_result(turn: Record) -> bool:
    """Whether a tool's turn without a text is a result without one: its text is null, or left out where nothing else could be it."""
    return any(key in turn for key in _TEXT) or not turn.keys() - _READ - {*_ALSO_READ["tool"]}


def _plain_message(turn: Record) -> Message | None:
    """The message of a turn that is a speaker and a text and nothing else, which most are; None for any other."""
    if len(turn) != 2:
        return None
    speaker, text = (turn.get("role"), turn.get("content")) if "role" in turn else (turn.get("from"), turn.get("value"))
    role = _ROLE_OF.get(speaker) if isinstance(speaker, str) else None
    return Message(role, text) if role is not None and role != "call" and isinstance(text, str) else None


@dataclass(slots=True)
class _Parts:
    """What the text of a turn holds where it is a list of parts."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    results: tuple[Message, ...] = ()


def _parts(value: Any, key: str, role: str, notes: Notes) -> _Parts:
    if isinstance(value, str):
        return _Parts(value)
    found = _Parts()
    if isinstance(value, list) and all(isinstance(part, str | Mapping) and _kind(part) for part in value):
        for part in value:
            _add_part(found, part, key, notes)
        return found
    if role in ("tool", "call") and isinstance(value, dict | list):
        return _Parts(as_text(value))  # a result, or a call, as the object that it is
    raise DataError(f"{key!r} is {kind_of(value)}, expected a string")


def _kind(part: Any) -> str:
    """The kind of a part; empty for what is none."""
    if isinstance(part, str):
        return "text"
    kind = part.get("type")
    if isinstance(kind, str):
        return kind
    return "text" if isinstance(part.get("text"), str) else next((key for key in ("image", "video", "audio") if key in part), "")


def _add_part(found: _Parts, part: Any, key: str, notes: Notes) -> None:
    kind = _kind(part)
    if isinstance(part, str):
        found.text += part
    elif kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        found.text += part["text"]
        notes.unused({f"{key}.{k}": v for k, v in part.items()}, (f"{key}.type", f"{key}.text", f"{key}.refusal"))
    elif kind in ("thinking", "reasoning") and not part.get("redacted"):
        said = part.get("thinking") or part.get("reasoning") or part.get("text") or part.get("content") or part.get("summary")
        found.reasoning += said if isinstance(said, str) else _joined_texts(said)
    elif kind in ("tool_use", "function_call"):
        found.calls += read_calls([part], key)
    elif kind in ("tool_result", "function_call_output"):
        text = _parts(part.get("content") or part.get("output") or "", key, "tool", notes).text
        if part.get("is_error"):
            notes.turn_keys[f"{key}.is_error"] += 1
        found.results += (Message("tool", text, tool_call_id=str(part.get("tool_use_id") or part.get("call_id") or "")),)
    else:
        raise DataError(f"{key!r} holds a part that is not text ({kind!r}); only text can be trained on here")


def _joined_texts(parts: Any) -> str:
    """The texts of a list of objects, as reasoning may be given; empty for anything else."""
    given = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    return "".join(str(part.get("text") or part.get("summary") or "") for part in given)


def _calls(turn: Record, of_parts: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
    """The calls of a turn; one that is given in several places, as LangChain and older OpenAI clients do, counts once."""
    found = of_parts
    for key in _CALLS:
        if says_something(turn.get(key)):
            before = found
            found += tuple(call for call in read_calls(turn[key], key) if not any(_same_call(call, other) for other in before))
    return found


def _same_call(one: ToolCall, other: ToolCall) -> bool:
    return (one.name, one.arguments) == (other.name, other.arguments) and (one.id == other.id or not (one.id and other.id))


def _reasoning(turn: Record, of_parts: str, bookkeeping: frozenset[str]) -> str:
    found = [of_parts] if of_parts else []
    for key in _REASONING:
        value = turn.get(key)
        if not says_something(value) or key in bookkeeping or isinstance(value, bool):
            continue
        if not isinstance(value, str):
            raise DataError(f"{key!r} is {kind_of(value)}, expected a string")
        found.append(value)
    details = turn.get("reasoning_details")  # OpenRouter's
    if not found:
        found = [_joined_texts(details)]
    if len(set(found)) > 1:
        raise DataError("reasoning under several keys, which differ; keep one")
    return found[0] if found else ""


def _number(value: Any, key: str) -> float:
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:  # true and false among them
        return float(value)
    raise DataError(f"{key!r} is {value!r}, expected true or false, or a weight of 0 or more")


def _spans_weight(spans: Any, key: str) -> float:
    if not isinstance(spans, list) or not all(isinstance(span, Mapping) and isinstance(span.get("train"), bool) for span in spans):
        raise DataError(f"{key!r} is no list of objects with 'train'; delete it")
    said = {span["train"] for span in spans}
    if len(said) > 1:
        raise DataError(
            f"{key!r} trains on parts of a turn, which is trained on as a whole or not at all here; give 'train' instead"
        )
    return float(said.pop())


def _first_key(turn: Record, keys: Sequence[str]) -> str | None:
    return next((key for key in keys if turn.get(key) is not None), None)
