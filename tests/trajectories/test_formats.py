"""Dialects of agent corpora, each as its users write it, and the record that it becomes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradprism.runtime.errors import DataError
from gradprism.trajectories.corpus import canonical_line, load_corpus
from gradprism.trajectories.formats import recognise
from gradprism.trajectories.record import Message, ToolCall, Trajectory

CASES = Path(__file__).parents[2].parent / "shared/data/cases"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": SCHEMA}}
BARE = TOOL["function"]
CALL = ToolCall("find", {"city": "Chur"}, "c1")
NO_ID = ToolCall("find", {"city": "Chur"})
CALL_JSON = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"city": "Chur"}}}
ASK, ANSWER = Message("user", "when?"), Message("assistant", "09:12")
TURNS = [{"role": "user", "content": "when?"}, {"role": "assistant", "content": "09:12"}]
SAID = [{"from": "human", "value": "when?"}, {"from": "gpt", "value": "09:12"}]


def read(record: dict[str, Any], **options: Any) -> Trajectory:
    """The one trajectory of a record; its canonical line reads back as the same."""
    (trajectory,) = load_corpus([record], **options)
    (again,) = load_corpus([json.loads(canonical_line(trajectory))])
    assert again == trajectory
    return trajectory


def messages_of(*turns: dict[str, Any]) -> tuple[Message, ...]:
    return read({"messages": [TURNS[0], *turns]}).messages[1:]


# One turn


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"content": None, "tool_calls": [CALL_JSON]}, Message("assistant", "", tool_calls=(CALL,))),
        ({"content": "", "tool_calls": json.dumps([CALL_JSON])}, Message("assistant", "", tool_calls=(CALL,))),
        (
            {"tool_calls": [{"id": "c1", "function": {"name": "find", "arguments": '{"city": "Chur"}'}}]},
            Message("assistant", "", tool_calls=(CALL,)),
        ),
        ({"tool_calls": [{"name": "find", "parameters": {"city": "Chur"}}]}, Message("assistant", "", tool_calls=(NO_ID,))),
        (
            {"tool_calls": [{"id": "c1", "function": "find", "arguments": {"city": "Chur"}}]},
            Message("assistant", "", tool_calls=(CALL,)),
        ),
        (
            {"tool_calls": [{"name": "find", "arguments": json.dumps(json.dumps({"city": "Chur"}))}]},
            Message("assistant", "", tool_calls=(NO_ID,)),
        ),
        ({"tool_calls": [{"name": "find", "arguments": ""}]}, Message("assistant", "", tool_calls=(ToolCall("find", {}),))),
        (
            {"content": None, "function_call": {"name": "find", "arguments": '{"city": "Chur"}'}},
            Message("assistant", "", tool_calls=(NO_ID,)),
        ),
        ({"content": "a", "reasoning_content": "b"}, Message("assistant", "a", reasoning="b")),
        ({"content": "a", "reasoning": "b", "reasoning_content": "b"}, Message("assistant", "a", reasoning="b")),
        ({"content": "a", "thinking": "b", "reasoning": None}, Message("assistant", "a", reasoning="b")),
        (
            {"content": "a", "reasoning_details": [{"type": "reasoning.text", "text": "b"}]},
            Message("assistant", "a", reasoning="b"),
        ),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": "b", "signature": "x"},
                    {"type": "text", "text": "a"},
                    {"type": "tool_use", "id": "c1", "name": "find", "input": {"city": "Chur"}},
                ]
            },
            Message("assistant", "a", reasoning="b", tool_calls=(CALL,)),
        ),
        ({"content": "a", "tool_calls": [], "function_call": None, "reasoning": ""}, Message("assistant", "a")),
        (
            {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "b"}]}, {"text": "a"}]},
            Message("assistant", "a", reasoning="b"),
        ),
        # The same call in two places, as LangChain and older OpenAI clients write it; and two alike in one place.
        (
            {"content": [{"type": "tool_use", "id": "c1", "name": "find", "input": {"city": "Chur"}}], "tool_calls": [CALL_JSON]},
            Message("assistant", "", tool_calls=(CALL,)),
        ),
        ({"tool_calls": [CALL_JSON], "function_call": CALL_JSON["function"]}, Message("assistant", "", tool_calls=(CALL,))),
        (
            {"tool_calls": [CALL_JSON, {**CALL_JSON, "id": "c2"}]},
            Message("assistant", "", tool_calls=(CALL, replace(CALL, id="c2"))),
        ),
        ({"content": "", "text": "a"}, Message("assistant", "a")),
    ],
)
def test_calls_and_reasoning_in_every_spelling(turn: dict[str, Any], expected: Message) -> None:
    assert messages_of({"role": "assistant", **turn}) == (expected,)


@pytest.mark.parametrize("role", ["tool", "function", "observation", "tool_response", "function_response", "ipython"])
def test_results_of_tools_in_every_spelling(role: str) -> None:
    result = {"role": role, "content": "no", "name": "find", "tool_call_id": "c1"}
    assert messages_of(result, TURNS[1]) == (Message("tool", "no", name="find", tool_call_id="c1"), ANSWER)
    assert messages_of({"role": role, "content": {"dep": "é"}}, TURNS[1])[0] == Message("tool", '{"dep": "é"}')
    assert messages_of({"role": role, "content": [{"type": "text", "text": "no"}]}, TURNS[1])[0] == Message("tool", "no")


def test_a_user_turn_of_tool_results_becomes_results() -> None:
    turn = {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "no"}]},
            {"type": "text", "text": "go on"},
        ],
    }
    assert messages_of(turn, TURNS[1]) == (Message("tool", "no", tool_call_id="c1"), Message("user", "go on"), ANSWER)


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        *((role, "assistant") for role in ("assistant", "gpt", "bot", "ai", "model", "chatgpt", "Assistant")),
        *((role, "user") for role in ("user", "human", "Human")),
        *((role, "system") for role in ("system", "developer")),
    ],
)
@pytest.mark.parametrize(("speaker", "text"), [("role", "content"), ("from", "value"), ("from", "content"), ("role", "text")])
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_every_speaker_under_every_key(role: str, expected: str, speaker: str, text: str, key: str) -> None:
    turns = [{speaker: role, text: "a"}, *({speaker: t["role"], text: t["content"]} for t in TURNS)]
    assert read({key: turns}).messages == (Message(expected, "a"), ASK, ANSWER)


FLAGS = [
    *(({key: False}, 0.0) for key in ("train", "loss", "training", "trainable")),
    *(({key: True}, 1.0) for key in ("train", "loss", "training", "trainable")),
    *(({key: 0.25}, 0.25) for key in ("weight", "loss_scale", "loss_weight")),
    *(({key: 0}, 0.0) for key in ("weight", "loss_scale", "loss_mask")),
    ({"masked": True}, 0.0),
    ({"no_loss": False}, 1.0),
    ({"train": True, "weight": 0.5}, 0.5),
    ({"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]}, 0.0),
    ({"loss": None, "train_detail": []}, 1.0),
]


@pytest.mark.parametrize(("flag", "weight"), FLAGS)
@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS},
        {"conversations": SAID},
        {"game_file": "g", "conversations": SAID},
        {"item_id": "i", "conversations": SAID},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"trajectory": TURNS},
        {"traj": TURNS},
    ],
    ids=["messages", "sharegpt", "eto", "agenttraj", "prompt", "swe", "tau"],
)
def test_a_turn_s_flag_has_its_meaning_in_every_format(record: dict[str, Any], flag: dict[str, Any], weight: float) -> None:
    flagged = {key: [*value[:-1], {**value[-1], **flag}] if isinstance(value, list) else value for key, value in record.items()}
    if "prompt" in record:
        flagged["prompt"] = record["prompt"]
    assert [(m.role, m.weight) for m in read(flagged).messages] == [("user", 1.0), ("assistant", weight)]


def test_a_mask_is_used_where_its_meaning_is_known_and_refused_elsewhere() -> None:
    turns = [
        {"role": "user", "text": "a", "mask": False},
        {"role": "ai", "text": "b", "mask": True},
        {"role": "ai", "text": "c", "mask": False},
    ]
    assert [m.weight for m in read({"trajectory": turns}).messages] == [1.0, 0.0, 1.0]
    with pytest.raises(DataError, match=r"turn 1: 'mask' may say .*; map weight=mask"):
        read({"messages": turns})
    assert [m.weight for m in read({"messages": turns}, mapping={"masked": "mask"}).messages] == [1.0, 0.0, 1.0]
    assert [m.weight for m in read({"messages": turns}, mapping={"weight": "mask"}).messages] == [0.0, 1.0, 0.0]


# Records

CALLED = (
    ASK,
    Message("assistant", "", tool_calls=(NO_ID,)),
    Message("tool", "09:12"),
    ANSWER,
)
CALL_ENTRY = json.dumps({"name": "find", "arguments": {"city": "Chur"}})


@pytest.mark.parametrize("call", ["function_call", "tool_call"])
@pytest.mark.parametrize("result", ["observation", "tool_response", "function_response", "tool", "function"])
def test_share_gpt_s_entries_of_one_turn_are_joined(call: str, result: str) -> None:
    entries = [
        SAID[0],
        {"from": "gpt", "value": "<think>I ask</think>"},
        {"from": call, "value": CALL_ENTRY},
        {"from": call, "value": json.dumps([{"name": "look", "arguments": "{}"}])},
        {"from": result, "value": "09:12"},
        {"from": result, "value": "09:42"},
        SAID[1],
    ]
    turn = Message("assistant", "<think>I ask</think>", tool_calls=(NO_ID, ToolCall("look", {})))
    assert read({"conversations": entries}).messages == (ASK, turn, Message("tool", "09:12"), Message("tool", "09:42"), ANSWER)
    assert read({"conversations": [SAID[0], *entries[2:3], *entries[4:5], SAID[1]]}).messages == CALLED


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"content": "", "tool_calls": [CALL_JSON]}, CALL),
        ({"content": CALL_ENTRY, "tool_calls": [CALL_JSON]}, CALL),
        ({"name": "find", "content": '{"city": "Chur"}'}, NO_ID),
        ({"name": "find", "arguments": {"city": "Chur"}}, NO_ID),
        ({"name": "find", "content": '{"name": "Chur"}'}, ToolCall("find", {"name": "Chur"})),
        ({"name": "planner", "content": CALL_ENTRY}, NO_ID),
    ],
)
def test_an_entry_for_a_call_in_every_spelling(entry: dict[str, Any], expected: ToolCall) -> None:
    assert messages_of({"role": "tool_call", **entry}) == (Message("assistant", "", tool_calls=(expected,)),)


def test_what_says_something_else_in_another_place_is_told() -> None:
    turns = [TURNS[0], {**TURNS[1], "value": "10:30", "text": "09:12"}]
    corpus = load_corpus([{"messages": turns, "completion": "it leaves", "train": False, "reward": 1.0}])
    assert [made.messages for made in corpus] == [(ASK, ANSWER)]
    assert corpus.account.notes.turn_keys == {"value": 1}
    assert corpus.account.notes.record_keys == {"completion": 1, "train": 1}


def test_what_has_no_effect_is_told() -> None:
    failed = {"type": "tool_result", "tool_use_id": "c1", "content": "no", "is_error": True}
    turns = [{**TURNS[0], "loss": True, "from": "planner"}, {"role": "user", "content": [failed]}, TURNS[1]]
    corpus = load_corpus([{"messages": turns, "instruction": "be brief", "tool_schema": "[]", "file": "a/b"}])
    assert [made.task for made in corpus] == [{"instruction": "be brief", "tool_schema": "[]", "file": "a/b"}]
    notes = corpus.account.notes
    assert (notes.turn_keys, list(notes.remarks.values())) == ({"content.is_error": 1, "from": 1}, [1])
    assert notes.task_texts == {"instruction": 1, "tool_schema": 1}
    assert any("'instruction' (1), 'tool_schema' (1)" in line for line in notes.lines())


def test_empty_results_whole_numbers_as_ids_and_systems_as_objects() -> None:
    for result in ({"role": "tool", "content": None, "when": 3}, {"role": "tool", "tool_call_id": "c1"}):
        assert messages_of(result, TURNS[1])[0] == Message("tool", "", tool_call_id=str(result.get("tool_call_id", "")))
    assert read({"id": 3.0, "messages": TURNS}).id == "3"
    for system in ({"role": "system", "content": "be brief"}, {"content": "be brief"}):
        assert read({"messages": TURNS, "system": system}).messages[0] == Message("system", "be brief")


@pytest.mark.parametrize("turns", [TURNS, SAID])
def test_turns_in_columns_are_read(turns: list[dict[str, str]]) -> None:
    columns = {key: [turn[key] for turn in turns] for key in turns[0]}
    assert read({"messages": columns}).messages == read({"conversations": columns}).messages == (ASK, ANSWER)


def test_entries_with_other_flags_are_not_joined_and_a_call_in_plain_text_stays_text() -> None:
    entries = [SAID[0], {"from": "gpt", "value": "a", "loss": False}, {"from": "function_call", "value": CALL_ENTRY, "loss": True}]
    assert read({"conversations": entries}).messages[1:] == (
        Message("assistant", "a", 0.0),
        Message("assistant", "", tool_calls=(NO_ID,)),
    )
    corpus = load_corpus([{"conversations": [SAID[0], {"from": "function_call", "value": "find(Chur)"}]}])
    assert [t.messages[1] for t in corpus] == [Message("assistant", "find(Chur)")]
    assert list(corpus.account.notes.remarks.values()) == [1]


@pytest.mark.parametrize("tools", [[TOOL], [BARE], json.dumps([TOOL]), [json.dumps(TOOL)], {"functions": [BARE]}, "in system"])
@pytest.mark.parametrize("record", [{"messages": TURNS}, {"conversations": SAID}], ids=["messages", "sharegpt"])
def test_the_corpus_s_tools_are_kept(record: dict[str, Any], tools: Any) -> None:
    ((key, turns),) = record.items()
    beside = {"functions": [BARE]} if isinstance(tools, dict) else {} if tools == "in system" else {"tools": tools}
    if tools == "in system":
        turns = [{"role": "system", "content": "s", "tools": json.dumps([BARE])}, *turns]
    made = read({key: turns, **beside})
    assert made.tools == (TOOL,)
    assert made.task == {}


def test_other_forms_of_a_tool() -> None:
    anthropic = {"name": "find", "description": "Finds.", "input_schema": SCHEMA}
    assert read({"messages": TURNS, "tools": [anthropic]}).tools == (TOOL,)
    bare_properties = {"name": "find", "description": "Finds.", "parameters": SCHEMA["properties"]}
    assert read({"messages": TURNS, "tools": [bare_properties]}).tools == (TOOL,)
    assert read({"messages": TURNS, "available_tools": json.dumps([BARE])}).tools == (TOOL,)
    for nothing in (None, [], "", "[]", {}):
        assert read({"messages": TURNS, "tools": nothing}).tools == ()


@pytest.mark.parametrize("record", [{"messages": TURNS}, {"conversations": SAID}, {"item_id": "i", "conversations": SAID}])
def test_a_system_key_is_the_system_turn(record: dict[str, Any]) -> None:
    made = read({**record, "system": "be brief"})
    assert made.messages == (Message("system", "be brief"), ASK, ANSWER)
    assert "system" not in made.task
    assert read({**record, "system": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]}) == made
    assert read({**record, "system_message": "be brief"}) == read({**record, "systemPrompt": "be brief"}) == made


SWE = [{"role": "system", "text": None, "system_prompt": "s"}, {"role": "user", "text": "when?"}, {"role": "ai", "text": "09:12"}]
ATIF = {
    "schema_version": "ATIF-v1.4",
    "session_id": "s1",
    "agent": {"name": "x", "version": "1", "tool_definitions": [TOOL]},
    "steps": [
        {"step_id": 1, "source": "user", "message": "when?", "timestamp": "2026"},
        {
            "step_id": 2,
            "source": "agent",
            "message": "",
            "reasoning_content": "ask",
            "tool_calls": [{"tool_call_id": "c1", "function_name": "find", "arguments": {"city": "Chur"}}],
            "observation": {"results": [{"source_call_id": "c1", "content": "09:12"}]},
            "metrics": {"prompt_tokens": 3},
        },
        {"step_id": 3, "source": "agent", "message": "09:12", "is_copied_context": True},
        {"step_id": 4, "source": "agent", "message": "09:12"},
    ],
    "final_metrics": {},
}
ADP = {
    "id": "d1",
    "content": [
        {"class_": "text_observation", "content": "when?", "source": "user"},
        {"class_": "api_action", "function": "find", "kwargs": {"city": "Chur"}, "description": "I ask."},
        {"class_": "text_observation", "content": "no", "source": "environment"},
        {"class_": "code_action", "language": "bash", "content": "date", "description": None},
        {"class_": "text_observation", "content": "2026", "source": "environment"},
        {"class_": "message_action", "content": "09:12"},
    ],
    "details": {"reward": "1"},
}
INSPECT = {
    "id": 7,
    "epoch": 1,
    "target": "09:12",
    "scores": {"match": {"value": "C"}},
    "attachments": {"abc": "when?"},
    "messages": [
        {"id": "m1", "role": "user", "content": "attachment://abc", "source": "input"},
        {
            "id": "m2",
            "role": "assistant",
            "content": [{"type": "reasoning", "reasoning": "ask"}, {"type": "text", "text": "I ask."}],
            "tool_calls": [{"id": "c1", "function": "find", "arguments": {"city": "Chur"}, "type": "function"}],
            "model": "m",
        },
        {
            "id": "m3",
            "role": "tool",
            "content": "",
            "tool_call_id": "c1",
            "function": "find",
            "error": {"type": "x", "message": "no"},
        },
        {"id": "m4", "role": "assistant", "content": "09:12"},
    ],
}


@pytest.mark.parametrize(
    ("format", "record", "expected"),
    [
        (
            "messages",
            {"id": "a", "messages": json.dumps(TURNS), "resolved": True},
            Trajectory("a", (ASK, ANSWER), {"resolved": True}),
        ),
        ("prompt-completion", {"id": "a", "prompt": "when?", "completion": "09:12"}, Trajectory("a", (ASK, ANSWER))),
        (
            "prompt-completion",
            {"id": "a", "prompt": [*TURNS, TURNS[0]], "completion": TURNS[1:]},
            Trajectory("a", (ASK, Message("assistant", "09:12", 0.0), ASK, ANSWER)),
        ),
        (
            "alpaca",
            {
                "id": "a",
                "instruction": "when",
                "input": "exactly?",
                "output": "09:12",
                "system": "s",
                "history": [["when?", "09:12"]],
            },
            Trajectory("a", (Message("system", "s"), ASK, ANSWER, Message("user", "when\nexactly?"), ANSWER)),
        ),
        ("alpaca", {"id": "a", "query": "when?", "response": "09:12"}, Trajectory("a", (ASK, ANSWER))),
        ("sharegpt", {"id": "a", "conversation": [{"human": "when?", "assistant": "09:12"}]}, Trajectory("a", (ASK, ANSWER))),
        (
            "xlam",
            {
                "id": 3,
                "query": "when?",
                "answers": json.dumps([{"name": "find", "arguments": {"city": "Chur"}}]),
                "tools": json.dumps([{**BARE, "parameters": SCHEMA["properties"]}]),
            },
            Trajectory("3", (ASK, Message("assistant", "", tool_calls=(NO_ID,))), tools=(TOOL,)),
        ),
        (
            "swe-agent",
            {"id": "a", "trajectory": SWE, "target": True},
            Trajectory("a", (Message("system", "s"), ASK, ANSWER), {"target": True}),
        ),
        (
            "swe-agent",
            {
                "id": "a",
                "history": [
                    {"role": "user", "content": "x", "is_demo": True},
                    *TURNS,
                    {**TURNS[1], "thought": "09", "action": ":12"},
                ],
                "trajectory": [{"action": ":12", "observation": "", "response": "09:12"}],
            },
            Trajectory("a", (Message("user", "x", 0.0), ASK, ANSWER, ANSWER)),
        ),
        ("tau-bench", {"id": "a", "traj": TURNS, "reward": 0.0}, Trajectory("a", (ASK, ANSWER), {"reward": 0.0})),
        (
            "atif",
            ATIF,
            Trajectory(
                "s1",
                (
                    ASK,
                    Message("assistant", "", reasoning="ask", tool_calls=(CALL,)),
                    Message("tool", "09:12", tool_call_id="c1"),
                    Message("assistant", "09:12", 0.0),
                    ANSWER,
                ),
                {"schema_version": "ATIF-v1.4", "session_id": "s1", "agent_name": "x"},
                tools=(TOOL,),
            ),
        ),
        (
            "adp",
            ADP,
            Trajectory(
                "d1",
                (
                    ASK,
                    Message("assistant", "I ask.", tool_calls=(NO_ID,)),
                    Message("tool", "no"),
                    Message("assistant", "```bash\ndate\n```"),
                    Message("user", "2026"),
                    ANSWER,
                ),
                {"reward": "1"},
            ),
        ),
        (
            "inspect",
            INSPECT,
            Trajectory(
                "record-1",
                (
                    ASK,
                    Message("assistant", "I ask.", reasoning="ask", tool_calls=(CALL,)),
                    Message("tool", "no", name="find", tool_call_id="c1"),
                    ANSWER,
                ),
                {"epoch": 1, "sample": "7", "score": 1.0},
            ),
        ),
    ],
)
def test_formats(format: str, record: dict[str, Any], expected: Trajectory) -> None:
    assert recognise(record) == format
    assert read(record) == expected
    assert read(record, format=format) == expected


def test_hermes_calls_in_text_stay_text_and_its_tools_are_not_listed_twice() -> None:
    system = {"from": "system", "value": f"Call them.<tools>\n{json.dumps(TOOL)}\n</tools>"}
    call = {"from": "gpt", "value": f"<tool_call>\n{CALL_ENTRY}\n</tool_call>"}
    corpus = load_corpus([{"id": "h", "tools": json.dumps([TOOL]), "conversations": [system, SAID[0], call]}])
    (made,) = corpus
    assert (made.messages[2], made.tools) == (Message("assistant", call["value"]), ())
    assert sum(corpus.account.notes.remarks.values()) == 1
    written = Trajectory("h", (Message("system", system["value"]), ASK, ANSWER), tools=(TOOL,))
    assert list(load_corpus([json.loads(canonical_line(written))])) == [written]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "not text ('image_url')",
        ),
        ({"messages": TURNS, "images": ["a.png"]}, "'images' beside the turns"),
        ({"messages": [{**TURNS[0], "images": ["a.png"]}, TURNS[1]]}, "turn 1: 'images' in a turn"),
        (
            {"messages": [{**TURNS[0], "content": [{"image": "a.png"}]}, TURNS[1]]},
            "turn 1: 'content' holds a part that is not text",
        ),
        ({"messages": [{"role": "user", "parts": [{"text": "when?"}]}, TURNS[1]]}, "map text=KEY"),
        ({"instruction": "when?", "response": "09:12"}, "completion=KEY"),
        ({"messages": "[{broken"}, "'messages' is text that is no JSON"),
        ({"messages": TURNS, "tools": "call find"}, "'tools' is text that is no JSON"),
        ({"messages": TURNS, "tools": ["find"]}, "'tools'"),
        ({"messages": [TURNS[0], {**TURNS[1], "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "turn 2: the arguments of 'f'"),
        ({"messages": [TURNS[0], {**TURNS[1], "train": True, "loss": False}]}, "turn 2: flags disagree"),
        ({"messages": [TURNS[0], {**TURNS[1], "train_detail": [{"train": True}, {"train": False}]}]}, "parts of a turn"),
        ({"messages": [TURNS[0], {**TURNS[1], "weight": -1}]}, "turn 2: 'weight' is -1"),
        ({"messages": [{**TURNS[0], "tool_calls": [CALL_JSON]}, TURNS[1]]}, "turn 1: tool calls in a turn of 'user'"),
        ({"messages": [TURNS[0], {**TURNS[1], "reasoning": "a", "thinking": "b"}]}, "turn 2: reasoning under several keys"),
        ({"chosen": TURNS, "rejected": TURNS}, "preference pair"),
        ({"messages": [{**TURNS[0], "from": "gpt"}, TURNS[1]]}, "turn 1: 'role' is 'user' and 'from' is 'gpt'"),
        ({"messages": [{"role": "tool", "result": "no"}, TURNS[1]]}, "turn 1: no 'content'"),
        ({"data": [{"messages": TURNS}]}, "'data' is a list of records (messages)"),
        ({**ADP, "content": [*ADP["content"], {"class_": "web_observation", "html": "x"}]}, "item 7: neither an action"),
        ({**ATIF, "steps": [{"source": "robot", "message": "a"}]}, "step 1: 'source' is 'robot'"),
    ],
)
def test_what_has_no_place_is_refused_by_name(record: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as raised:
        list(load_corpus([record]))
    assert str(raised.value).startswith("record 1: ")
    assert words in str(raised.value)


# The shapes of real users' files


def case(name: str) -> list[Trajectory]:
    if not CASES.is_dir():
        pytest.skip("needs the corpora of shared/data")
    return list(load_corpus(CASES / name))


def test_shared_cases() -> None:
    (made, *_) = case("null_dictargs.jsonl")
    assert [m.role for m in made.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert made.messages[2].tool_calls == (ToolCall("find_train", {"from": "Bern", "to": "Chur"}, "c1"),)
    assert made.tools[0]["function"]["name"] == "find_train"
    assert [len(t.tools) for t in case("tools_listed_only.jsonl")] == [1]
    assert case("function_role.jsonl")[0].messages[1:3] == (
        Message("assistant", "", tool_calls=(ToolCall("find_train", {}),)),
        Message("tool", "09:12", name="find_train"),
    )
    assert case("developer.jsonl")[0].messages[0] == Message("system", "Be brief.")
    assert case("msg_system_field.jsonl")[0].messages[0] == Message("system", "You must answer in French.")
    for name in ("msgs_loss.jsonl", "sg_train.jsonl"):
        assert [m.weight for m in case(name)[0].messages if m.role == "assistant"] == [0.0, 1.0]
    assert [m.role for m in case("toolbench.jsonl")[0].messages] == ["system", "user", "assistant", "tool", "assistant"]
    for name in ("conv_role_content.jsonl", "swesmith.jsonl", "messages_as_json.parquet", "reasoning.jsonl"):
        assert [m.content for m in case(name)[0].messages] == ["Where is the lamp?", "It is on the desk."]
    assert case("reasoning.jsonl")[0].messages[1].reasoning == "think of rooms"
    assert case("two_thinks.jsonl")[0].messages[1].content.count("<think>") == 2
    assert len(case("long_last.jsonl")) == 61
    call = Message("assistant", "<think>I ask the table</think>", tool_calls=(ToolCall("find_train", {}),))
    assert case("consec.jsonl")[0].messages[1:] == (call, Message("tool", "09:12"), Message("tool", "09:42"), ANSWER)
