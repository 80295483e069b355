"""Routes by hand, and trajectories with all that a turn can have, for exporters."""

import json

import polars as pl

from gradprism.runtime.files import write_json, write_jsonl
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.record import Message, ToolCall, Trajectory


def function(name, *parameters):
    properties = {parameter: {"type": "string", "description": f"The {parameter}, ü."} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": list(parameters[:1])}
    return {"type": "function", "function": {"name": name, "description": f"Looks up a {name}.", "parameters": schema}}


TOOLS = (function("train", "from", "to"), function("weather", "city"))
TASK = {"env": "my.package:Trips", "id": "trip-7", "split": "train", "level": 2}

# Two calls in one turn, whose results come the other way round; a null among the arguments; reasoning twice; text with odd letters.
RICH = Trajectory(
    "rich-ü",
    (
        Message("system", "You plan trips. ü"),
        Message("user", "To Zürich?\u2028When?"),
        Message(
            "assistant",
            "Let me look.",
            reasoning="Two tables.\nBoth.",
            tool_calls=(
                ToolCall("train", {"to": "Zürich", "via": None, "seats": 2}, "c1"),
                ToolCall("weather", {"city": "Zürich", "days": [1, 2.5]}, "c2"),
            ),
        ),
        Message("tool", "rain", name="weather", tool_call_id="c2"),
        Message("tool", '{"dep": "09:12"}', name="train", tool_call_id="c1"),
        Message("assistant", "At 09:12, in rain.", reasoning="Done."),
    ),
    TASK,
    tools=TOOLS,
)
# Plain text, two turns that are trained on; and the same with the first one masked.
PLAIN = Trajectory(
    "plain",
    (
        Message("user", "room ü\u2028"),
        Message("assistant", "look"),
        Message("user", "Nothing."),
        Message("assistant", "go to desk 1"),
    ),
    {"env": "my.package:Maze", "id": "maze-7"},
)
MASKED = Trajectory("masked", (PLAIN.messages[0], Message("assistant", "AAA bad", weight=0), *PLAIN.messages[2:]), PLAIN.task)
WEIGHTED = Trajectory("half", (PLAIN.messages[0], Message("assistant", "so so", weight=0.5), *PLAIN.messages[2:]), PLAIN.task)


def calls_as_objects(messages):
    """Chats with the arguments of calls as objects, wherever they were JSON text, and without keys that are null."""
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(call["function"]["arguments"], str):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def write_route(folder, sft, rl):
    """A route folder by hand, of trajectories."""
    folder.mkdir(parents=True)
    (folder / "sft.jsonl").touch()
    if sft:
        write_messages_jsonl(folder / "sft.jsonl", sft)
    tasks = [{"id": t.id, "prompt": t.prompt(), **({"tools": list(t.tools)} if t.tools else {}), "task": t.task} for t in rl]
    write_jsonl(folder / "rl.jsonl", tasks)
    pl.DataFrame({"id": [t.id for t in (*sft, *rl)]}).write_parquet(folder / "routes.parquet")
    write_json(folder / "audit.json", {})
    counts = {"n_trajectories": len(sft) + len(rl), "n_sft": len(sft), "n_rl": len(rl)}
    write_json(folder / "routing.json", {"threshold": 0.5, **counts})
