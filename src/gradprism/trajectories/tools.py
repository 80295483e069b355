"""Tools: calls and schemas in the spellings of OpenAI, Anthropic, ATIF, inspect_ai, LLaMA-Factory and xLAM, as the record keeps them."""

import json
from collections.abc import Mapping
from typing import Any

from gradprism.runtime.errors import DataError
from gradprism.trajectories.reading import from_json, keys_of, kind_of, plain
from gradprism.trajectories.record import ToolCall

_NAMES = ("name", "function_name", "function", "tool_name", "tool")
_ARGUMENTS = ("arguments", "parameters", "input", "args", "kwargs")
_IDS = ("id", "tool_call_id", "call_id")


def read_calls(value: Any, key: str) -> tuple[ToolCall, ...]:
    """The calls of a turn: a list or one, as objects or as JSON text. Raises `DataError`."""
    value = from_json(value, key)
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, list):
        raise DataError(f"{key!r} is {kind_of(value)}, expected a list of calls")
    return tuple(_call(from_json(call, key), key) for call in calls)


def calls_in_text(text: str, name: str = "") -> tuple[str, tuple[ToolCall, ...]] | None:
    """The thought and the calls of a `function_call` entry: JSON, perhaps after `<think>…</think>`; None for other text.

    Of an entry that has the tool's `name` beside its text, an object that is no whole call is the arguments.
    """
    thought, closed, rest = text.rpartition("</think>")
    try:
        value = json.loads(rest)
        if name and isinstance(value, dict) and not (value.keys() & {*_NAMES} and value.keys() & {*_ARGUMENTS}):
            value = {"name": name, "arguments": value}
        calls = read_calls(value, "call") if isinstance(value, dict | list) and value else ()
    except (ValueError, RecursionError):  # DataError among them
        return None
    return (thought + closed, calls) if calls else None


def _call(value: Any, key: str) -> ToolCall:
    if not isinstance(value, Mapping):
        raise DataError(f"{key!r} holds {kind_of(value)}, expected a call with a name and arguments")
    inner = value["function"] if isinstance(value.get("function"), Mapping) else value
    name = next((inner[k] for k in _NAMES if isinstance(inner.get(k), str) and inner[k]), None)
    if name is None:
        raise DataError(f"{key!r} holds a call without a name; keys seen: {keys_of(inner)}")
    arguments = next((inner[k] for k in _ARGUMENTS if inner.get(k) is not None), {})
    if isinstance(arguments, str):
        arguments = _decoded_arguments(arguments, name)
    if not isinstance(arguments, Mapping):
        raise DataError(f"{key!r}: the arguments of {name!r} are {kind_of(arguments)}, expected an object or its JSON text")
    identifier = next((value[k] for k in _IDS if value.get(k)), "")
    return ToolCall(name, dict(plain(arguments, f"the arguments of {name!r}")), str(identifier))


def _decoded_arguments(text: str, name: str) -> Any:
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
        return json.loads(value) if isinstance(value, str) else value  # some sets encode them twice
    except (ValueError, RecursionError):
        raise DataError(f"the arguments of {name!r} are no JSON object: {text[:60]!r}; repair or delete the record") from None


def read_tools(value: Any, key: str) -> tuple[Mapping[str, Any], ...]:
    """The tools that an agent may call, in OpenAI's form; as a list or an object of one, or as JSON text of those. Raises `DataError`."""
    value = from_json(value, key)
    if isinstance(value, Mapping):
        value = [value] if value else []
    if not isinstance(value, list):
        raise DataError(f"{key!r} is {kind_of(value)}, expected a list of tools")
    return tuple(_tool(from_json(tool, key), key) for tool in value)


def _tool(tool: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(tool, Mapping):
        raise DataError(f"{key!r} holds {kind_of(tool)}, expected a tool with a name and parameters")
    plain(dict(tool), repr(key))
    if isinstance(tool.get("function"), Mapping) and isinstance(tool["function"].get("name"), str):
        return dict(tool) if tool.get("type") else {"type": "function", **tool}
    if not isinstance(tool.get("name"), str):
        raise DataError(f"{key!r} holds a tool without a name; keys seen: {keys_of(tool)}")
    function = {k: v for k, v in tool.items() if k != "type" or v != "function"}
    if "input_schema" in function:  # Anthropic's
        function["parameters"] = function.pop("input_schema")
    parameters = function.get("parameters")
    if isinstance(parameters, Mapping) and parameters and not ({"type", "properties", "$ref"} & _schema_marks(parameters)):
        function["parameters"] = {"type": "object", "properties": dict(parameters)}  # xLAM: the properties alone
    return {"type": "function", "function": function}


def _schema_marks(parameters: Mapping[str, Any]) -> set[str]:
    """The keys of a JSON schema among those of `parameters`; one that is a property's name has an object as its value."""
    return {k for k, v in parameters.items() if k == "properties" or (k in ("type", "$ref") and isinstance(v, str | list))}
