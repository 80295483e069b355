"""What harms training is found, in one pass."""

from dataclasses import replace

import pytest

from gradprism.trajectories.corpus import Skipped
from gradprism.trajectories.doctor import LINTS, Doctor, problems
from gradprism.trajectories.duplicates import Duplicates, Opening, Print, shared, task_names
from gradprism.trajectories.record import Message, ToolCall, Trajectory
from gradprism.trajectories.rendering import Renderer
from helpers.tiny import TEMPLATE, sample_trajectories, tiny_tokenizer

LOOK, GO, SEEN = Message("user", "look"), Message("assistant", "go to desk 1"), Message("user", "you see a desk 1 .")


CALLING = TEMPLATE.replace(
    "<|end|>{% endgen",
    "{% for c in message.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}<|end|>{% endgen",
)


def found(*trajectories: Trajectory, context_length: int | None = None, against=(), held_out: str = "") -> dict[str, int]:
    doctor, renderer = Doctor(context_length, against), Renderer(tiny_tokenizer(CALLING), context_length)
    for trajectory in trajectories:
        doctor.add(trajectory, doctor.examine(trajectory, renderer.render(trajectory)), trajectory.id == held_out)
    return {lint.kind: lint.count for lint in doctor.lints()}


@pytest.mark.parametrize(
    ("kind", "messages", "more"),
    [
        ("failed", (LOOK, GO), {"task": {"reward": 0.0}}),
        ("failed", (LOOK, GO), {"task": {"resolved": False, "reward": 1}}),
        ("refused-action", (LOOK, GO, Message("user", "Nothing happens."), replace(GO, content="open desk 1")), {}),
        ("refused-action", (LOOK, GO, Message("tool", "Observation: Nothing happens."), replace(GO, content="open desk 1")), {}),
        ("repeated-turn", (LOOK, GO, SEEN, GO), {}),
        ("empty-turn", (LOOK, replace(GO, content=" "), SEEN, GO), {}),
        ("huge-turn", (replace(LOOK, content="look " * 5000), GO), {}),
        ("tools-never-called", (LOOK, GO), {"tools": ({"type": "function"},)}),
        (
            "tools-twice",
            (Message("system", "<tools>find</tools>"), LOOK, replace(GO, tool_calls=(ToolCall("find", {}),))),
            {"tools": ({"type": "function", "function": {"name": "find"}},)},
        ),
        ("older-alfworld", (LOOK, Message("assistant", "think. Action: put mug 1 in/on desk 1")), {}),
        ("not-trained-on", (LOOK, replace(GO, weight=0.0), SEEN, replace(GO, content="open desk 1")), {}),
    ],
)
def test_each_lint_is_found_alone(kind: str, messages: tuple[Message, ...], more: dict) -> None:
    lints = found(Trajectory("a", messages, **more))
    assert lints.pop(kind) == 1
    assert lints.keys() <= {"low-response-share"}


def test_a_good_corpus_has_nothing_to_look_at() -> None:
    call = replace(GO, content="", tool_calls=(ToolCall("find", {}),))
    good = Trajectory("a", (LOOK, GO, SEEN, call), {"reward": 1.0, "success": True}, tools=({"type": "function"},))
    refused_but_masked = Trajectory(
        "b", (LOOK, replace(GO, weight=0.0), Message("user", "Nothing happens."), replace(GO, content="open"))
    )
    assert found(good) == {}
    assert found(refused_but_masked) == {"not-trained-on": 1}
    assert found(*sample_trajectories(30)) == {}


def test_what_the_context_cuts_is_counted() -> None:
    assert found(Trajectory("a", (LOOK, GO, SEEN, replace(GO, content="open desk 1"))), context_length=10) == {"cut": 1}
    assert found(Trajectory("a", (replace(LOOK, content="look " * 200), GO)))["low-response-share"] == 1


def test_duplicates_exact_and_near() -> None:
    words = [f"word{i}" for i in range(400)]
    text = [" ".join(words[i : i + 20]) for i in range(0, 400, 20)]

    def trajectory(name: str, parts: list[str]) -> Trajectory:
        turns = (Message("assistant" if i % 2 else "user", part) for i, part in enumerate(parts))
        return Trajectory(name, (Message("user", f"task of {name[0]}"), GO, *turns))

    one, other = trajectory("a1", text), trajectory("b", text[::-1])
    nearly = trajectory("c", [*text[:-1], text[-1].replace("word390", "else")])
    duplicates = Duplicates()
    found_before = [duplicates.add(t.id, Print.of(t)) for t in (one, other, replace(one, id="a2"), nearly)]
    assert found_before == [
        None,
        None,
        ("exact", "a1"),
        ("near", "a1"),
    ]
    assert found(one, other, replace(one, id="a2"), nearly) == {"exact-duplicate": 1, "near-duplicate": 1}
    assert found(*(Trajectory(str(i), (LOOK, replace(GO, content=f"go to desk {i}"))) for i in range(9))) == {}


def test_tasks_shared_with_a_held_out_corpus_by_name_or_by_opening() -> None:
    samples = sample_trajectories(20)
    other = [replace(t, id=f"held-{t.id}", messages=t.messages[:2], task={}) for t in samples[5:8]]
    assert found(*samples, against=other) == {"shared-task": 3}
    named = [replace(samples[0], id="x", messages=(LOOK, GO), task={"game_file": "/elsewhere/heat/trial_1/game.tw-pddl"})]
    mine = replace(samples[3], task={"game_file": "json/train/heat/trial_1/game.tw-pddl"})
    assert found(*samples[:3], mine, against=named) == {"shared-task": 1}
    assert task_names(mine.task) == {"game=heat/trial_1"}
    same_start = [replace(t, messages=(LOOK, GO, *t.messages)) for t in samples]  # instructions first, then the task
    openings = {t.id: Opening.of(replace(t, task={})) for t in same_start}
    assert shared(openings, [openings[samples[4].id]]) == [samples[4].id]
    assert found(*samples, held_out=samples[1].id) == {"shared-task": 1}


def test_records_that_cannot_be_used_are_grouped_by_kind() -> None:
    skipped = [
        Skipped("a", "d:1", "empty response mask: the response begins at token 90, past the context length 80; raise it"),
        Skipped("b", "d:2", "turn 3: 'role' is 'robot'; known: x"),
        Skipped("c", "d:5", "empty response mask: the response begins at token 91, past the context length 80; raise it"),
    ]
    first, second = problems(skipped)
    assert (first.kind, first.count, first.first, first.text) == ("over-long", 2, ("d:1", "d:5"), skipped[0].reason)
    assert (second.kind, second.count) == ("refused", 1)
    assert str(second) == "1 × turn 3: 'role' is 'robot'; known: x (d:2)"
    assert set(LINTS) >= {"cut", "failed"}
