"""Dialogue: what the user understands, what the tools do, and how conversations are graded, by conversations written by hand."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradprism as gp
from gradprism.environments.demonstrations import collect
from gradprism.environments.dialogue.environment import DialogueEnvironment
from gradprism.environments.dialogue.scenarios import HELD_OUT, TWISTS, VARIANTS, make_scenario
from gradprism.environments.dialogue.score import MAX_TURNS, score
from gradprism.environments.dialogue.user import PATIENCE
from gradprism.environments.dialogue.world import SLOTS
from gradprism.runtime.errors import ConfigError

ENVIRONMENT = DialogueEnvironment()
SPLITS = ENVIRONMENT.splits


def first_of(variant: str, split: str = "train", **facts) -> str:
    """The id of the first task of a variant, whose scenario has these `facts`."""
    for task in ENVIRONMENT.tasks(split, 600):
        scenario = make_scenario(task.id, 0)
        if scenario.variant == variant and all(getattr(scenario, name) == value for name, value in facts.items()):
            return task.id
    raise LookupError(variant)


class Talk:
    """A conversation written by hand: the steps of each action."""

    def __init__(self, variant: str, **facts):
        self.session = ENVIRONMENT.session()
        self.step = self.session.reset(first_of(variant, **facts))
        self.scenario: Any = self.session.scenario

    def say(self, *actions: str) -> str:
        for action in actions:
            self.step = self.session.step(action)
        return self.step.observation

    def ask_all(self) -> None:
        """Greets and asks for all that was not told, in one turn each."""
        for slot in self.scenario.domain.slots:
            if slot.name not in self.session.user.told:
                self.say(f"{'' if self.session.user.conduct.spoke else 'hello , '}{slot.question}")

    def find(self) -> str:
        wants = self.session.user.wants
        return self.say("call find " + " ".join(f"{slot.name}={wants[slot.name]}" for slot in self.scenario.domain.search))

    def item(self) -> str:
        return next(item.id for item in self.scenario.items if item.fits(self.session.user.wants))

    def book(self) -> str:
        wants = self.session.user.wants
        details = " ".join(f"{slot.name}={wants[slot.name]}" for slot in self.scenario.domain.details)
        return self.say(f"call book id={self.item()} {details}")

    @property
    def parts(self):
        return self.step.info.parts


def play_expert(environment, task_id, session):
    expert, step, steps = environment.expert(), session.reset(task_id), []
    steps.append(step)
    while not step.done:
        step = session.step(expert.act(step))
        steps.append(step)
    return steps


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("form", ["line", "json"])
def test_the_expert_solves_every_task_with_the_best_score(split, form):
    environment = DialogueEnvironment(form=form, instructions=form == "json")
    session = environment.session()
    ends = {task.id: play_expert(environment, task.id, session) for task in environment.tasks(split, 240)}
    assert {task_id: steps[-1].info.score for task_id, steps in ends.items() if steps[-1].info.score < 1} == {}
    assert all(steps[-1].info.success and len(steps) - 1 <= MAX_TURNS for steps in ends.values())


def test_ids_types_and_splits():
    assert [task.task_type for task in ENVIRONMENT.tasks("dev", 6)] == list(TWISTS)
    assert sum(len(ENVIRONMENT.ids("train", twist)) for twist in TWISTS) == len(set(ENVIRONMENT.ids("train"))) == 2000
    assert {task.task_type for task in ENVIRONMENT.tasks("train", 50, task_type="cancel")} == {"cancel"}
    for wrong in ("train/2000", "test/1", "train/x", "train/-1", "train/1e3", "train", ""):
        with pytest.raises(ConfigError, match="has none of that id"):
            ENVIRONMENT.session().reset(wrong)
    with pytest.raises(ConfigError, match="choose one of"):
        ENVIRONMENT.ids("train", "chess")
    with pytest.raises(ConfigError, match="choose line, json or tools"):
        DialogueEnvironment(form="xml")


def test_splits_have_goals_of_their_own_and_unseen_has_what_training_never_has():
    goals, kinds, values = {}, {}, {}
    for split in SPLITS:
        scenarios = [make_scenario(task.id, 0) for task in ENVIRONMENT.tasks(split, 600)]
        goals[split] = {(s.domain.name, *s.wants.values()) for s in scenarios}
        kinds[split] = {(s.domain.name, s.twist) for s in scenarios}
        values[split] = {value for s in scenarios for value in s.wants.values()}
        assert {s.variant for s in scenarios} == {variant for of in VARIANTS.values() for variant in of}
    for split in ("train", "dev", "seen", "base"):
        assert not kinds[split] & HELD_OUT
        others = set().union(*(goals[other] for other in SPLITS if other != split and {split, other} != {"seen", "unseen"}))
        assert not goals[split] & others
    held_out = {value for slot in SLOTS.values() for value in slot.held_out}
    assert kinds["unseen"] >= HELD_OUT
    assert values["unseen"] >= held_out - {"7", "8"} and not (values["train"] | values["dev"] | values["seen"]) & (
        held_out - {"6", "7", "8"}
    )
    for task in ENVIRONMENT.tasks("unseen", 600):
        scenario = make_scenario(task.id, 0)
        new = any(value in SLOTS[name].held_out for name, value in scenario.wants.items())
        assert new != ((scenario.domain.name, scenario.twist) in HELD_OUT)


def test_a_plain_booking_needs_a_yes():
    asked, hasty = Talk("book"), Talk("book")
    for talk in (asked, hasty):
        talk.ask_all()
        assert talk.find().startswith("tool: ")
    assert "yes" in asked.say(f"Shall I book {asked.item()} for you?")
    assert asked.book().startswith("tool: booked b") and hasty.book().startswith("tool: booked b")
    assert asked.say("Done. Goodbye!").endswith("goodbye .") and hasty.say("Done. Goodbye!").endswith("goodbye .")
    assert asked.step.info.success and asked.step.info.score == asked.step.reward == 1.0
    assert not hasty.step.info.success and hasty.parts["goal"] == 1 and hasty.parts["confirmed"] == 0
    assert hasty.step.info.score == pytest.approx(0.2 + 0.15 * 0.75 + 0.25)


def test_a_wrong_booking_gets_the_share_of_what_is_right():
    talk = Talk("book")
    domain, wants = talk.scenario.domain, talk.scenario.wants
    slot = domain.details[1]
    other = next(value for value in slot.values if value != wants[slot.name])
    talk.say("hello", f"shall i book {talk.item()} ?")
    details = f"{domain.details[0].name}={wants[domain.details[0].name]} {slot.name}={other}"
    assert talk.say(f"call book id={talk.item()} {details}", "goodbye").endswith("goodbye .")
    assert not talk.step.info.success and (talk.parts["goal"], talk.parts["constraints"]) == (0, 0.75)
    assert talk.step.info.score == pytest.approx(0.2 * 0.75 + 0.15)


def test_a_change_of_mind_before_and_after_the_booking():
    before = Talk("before_booking")
    before.ask_all()
    before.find()
    old = dict(before.session.user.wants)
    said = before.say(f"shall i book {before.item()} ?")
    slot, value = before.scenario.revision
    assert value in said and before.session.user.wants == {**old, slot: value}
    before.find()
    before.say(f"shall i book {before.item()} ?")
    before.book()
    before.say("goodbye")
    assert before.step.info.success
    after = Talk("after_booking")
    after.ask_all()
    after.find()
    after.say(f"shall i book {after.item()} ?")
    reference = after.book().split()[-1]
    slot, value = after.scenario.revision
    assert value in after.say("it is booked , goodbye") and not after.step.done
    after.say(f"shall i change {reference} ?", f"call change ref={reference} {slot}={value}", "goodbye")
    assert after.step.info.success


def test_a_second_booking_is_no_change():
    talk = Talk("change_existing", reference_told=True)
    slot, value = talk.scenario.revision
    own = talk.scenario.bookings[talk.scenario.reference]
    details = {**own.details, slot: value}
    assert "please change it" in talk.say(f"hello , shall i book {own.item} ?")
    talk.say(f"call book id={own.item} " + " ".join(f"{name}={given}" for name, given in details.items()), "goodbye")
    assert talk.step.done and not talk.step.info.success and talk.parts["goal"] == 0


def test_a_misunderstanding_is_no_answer_and_may_be_asked_again():
    for variant in ("other_answer", "impossible"):
        talk = Talk(variant)
        slot, _, value = talk.scenario.stumble
        question = talk.scenario.domain.slot(slot).question
        assert value in talk.say(f"hello , {question}")
        assert talk.scenario.wants[slot] in talk.say(question)
        assert talk.session.user.conduct.repeats == 0
        assert talk.say(question).startswith(("user: i said", "user: as i said")) and talk.session.user.conduct.repeats == 1
    assert talk.say(f"call book id={talk.item()} people=40") == "tool: error , no such people" and not talk.step.info.valid


def test_nothing_fits_is_said_after_looking():
    talk = Talk("declined")
    assert "please look first" in talk.say("hello , sorry , nothing fits .")
    talk.ask_all()
    assert talk.find() == "tool: nothing found"
    assert talk.say("Unfortunately there is no such place available.").endswith("goodbye .")
    assert talk.step.info.success
    other = Talk("alternative")
    other.ask_all()
    other.find()
    assert other.scenario.revision[1] in other.say("i could not find anything") and not other.step.done
    plain = Talk("book")
    plain.ask_all()
    plain.find()
    assert plain.say("sorry , nothing fits .") == "user: what a pity . goodbye ." and not plain.step.info.success


def test_leaving_at_once_is_worth_little_where_nothing_is_to_be_booked():
    for variant in ("declined", "midway", "fixed", "only_asking"):
        talk = Talk(variant)
        talk.say("hello , goodbye .")
        assert talk.step.done and not talk.step.info.success
        assert talk.step.info.score == pytest.approx(0.15)


def test_a_cancellation_cancels_the_users_own_booking_and_no_other():
    right, wrong = Talk("existing", reference_told=False), Talk("existing", reference_told=False)
    reference = right.scenario.reference
    other = next(ref for ref in right.scenario.bookings if ref != reference)
    assert reference in right.say("Hello, may I have your booking number?")
    assert "not that one" in wrong.say(f"hello , shall i cancel {other} ?")
    right.say(f"Shall I cancel {reference}?", f"call cancel ref={reference}", "Your booking is cancelled. Goodbye!")
    assert right.step.info.success
    wrong.say(f"call cancel ref={other}", "goodbye")
    assert not wrong.step.info.success and wrong.parts["goal"] == wrong.parts["confirmed"] == 0


def test_a_fixed_booking_is_shown_and_not_cancelled_though_the_tool_would():
    right, wrong = Talk("fixed", reference_told=True), Talk("fixed", reference_told=True)
    reference = right.scenario.reference
    assert "check my booking first" in right.say("hello , sorry , i cannot cancel it .")
    assert right.say(f"call show ref={reference}").endswith(", fixed")
    assert right.say(f"I'm sorry, but I cannot cancel {reference}.").endswith("goodbye .") and right.step.info.success
    wrong.say(f"hello , shall i cancel {reference} ?")
    assert wrong.say(f"call cancel ref={reference}") == f"tool: cancelled {reference}"
    wrong.say("goodbye")
    assert not wrong.step.info.success and wrong.parts["goal"] == wrong.parts["constraints"] == 0


def test_who_drops_the_matter_midway_is_not_booked_for():
    for book in (False, True):
        talk = Talk("midway")
        talk.ask_all()
        talk.find()
        talk.say(f"shall i book {talk.item()} ?")
        if book:
            talk.book()
        talk.say("all right , goodbye .")
        assert talk.step.info.success != book


def test_who_only_asks_is_told_and_not_booked_for():
    talk = Talk("only_asking")
    talk.find()
    assert "only asking" in talk.say(f"hello , shall i book {talk.item()} ?")
    talk.say(f"yes , there is {talk.item()} .")
    assert talk.step.info.success


def test_rude_words_count_and_patience_ends():
    talk = Talk("book")
    assert "not polite" in talk.say("hello , hurry up , idiot")
    talk.say(*["gleep glorp"] * (PATIENCE - 1))
    assert talk.step.done and talk.parts["polite"] == 0 and talk.step.info.score == pytest.approx(0.15 * 0.75)
    after = talk.say("hello")
    assert talk.step.done and talk.step.reward == 0 and not talk.step.info.valid and after.endswith("goodbye .")


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("Sure! For how many guests should I make the reservation?", "people"),
        ("What time would you like to book the table for?", "time"),
        ("Could you please tell me which cuisine you prefer?", "food"),
        ("Great. Which area of town do you have in mind?", "area"),
        ("Please let me know the number of people.", "people"),
        ("And when?", "time"),
    ],
)
def test_questions_in_free_words_are_understood(text, slot):
    talk = Talk("book", domain=make_scenario("train/0", 0).domain)
    talk.session.user.told.clear()
    assert talk.scenario.wants[slot] in talk.say(text)


@pytest.mark.parametrize(
    "text",
    [
        "call find food= greek   area=north",
        "Call find food=greek area=north",
        '{"name": "find", "arguments": {"food": "Greek", "area": "north"}}',
        '<tool_call>\n{"name": "find", "arguments": {"food": "greek", "area": "north"}}\n</tool_call>',
        '```json\n{"function": {"name": "find", "arguments": "{\\"food\\": \\"greek\\", \\"area\\": \\"north\\"}"}}\n```',
    ],
)
def test_calls_in_every_spelling(text):
    talk = Talk("book", domain=make_scenario("train/0", 0).domain)
    line = talk.say("call find food=greek area=north")
    assert line.startswith("tool: ") and talk.say(text) == line and talk.step.info.valid


@pytest.mark.parametrize(
    "text",
    [
        "call fly to=arden",
        "call book id=zz",
        "call cancel ref=b00",
        "call find colour=red",
        "call",
        '{"name": "find", "arguments": 3}',
        "<tool_call>",
    ],
)
def test_calls_that_are_wrong_change_nothing(text):
    talk = Talk("book")
    before = dict(talk.session.database.bookings)
    talk.say(text)
    assert not talk.step.done and talk.session.database.bookings == before


def test_demonstrations_may_have_structured_calls():
    environment = DialogueEnvironment(form="tools", instructions=True)
    plain = DialogueEnvironment(form="json", instructions=True)
    [made], [text] = (collect(of, of.tasks("train", 1), max_steps=MAX_TURNS, workers=1) for of in (environment, plain))
    system, opening, *rest = made.messages
    assert system.role == "system" and f"{system.content}\nuser: {opening.content}" == text.messages[0].content
    assert {tool["function"]["name"] for tool in made.tools} == {"find", "show", "book", "change", "cancel"}
    for message, told in zip(rest, text.messages[1:], strict=True):
        if message.tool_calls:
            [call] = message.tool_calls
            assert json.loads(told.content) == {"name": call.name, "arguments": dict(call.arguments)}
        else:
            prefix = {"tool": "tool: ", "user": "user: ", "assistant": ""}[message.role]
            assert prefix + message.content == told.content
    results = [(message.name, message.tool_call_id) for message in rest if message.role == "tool"]
    assert results == [(call.name, call.id) for message in rest for call in message.tool_calls] and len(results) == 2


def test_from_demonstrations_to_a_round_of_rl(tmp_path):
    """One tiny run of all that an experiment does: collect, probe, route, SFT of one half, a round of RL on the other, evaluation."""
    corpus = collect(ENVIRONMENT, ENVIRONMENT.tasks("train", 12), max_steps=MAX_TURNS, workers=1)
    base = str(gp.shipped("dialogue-tiny"))
    routes = gp.route(gp.probe(base, None, corpus, context_length=512), metric="gini", rl_share=0.5)
    assert len(routes.sft) == len(routes.rl) == 6
    limits: dict[str, Any] = {"max_steps": MAX_TURNS, "max_action_tokens": 24, "context_length": 512}
    gp.train_sft(base, None, routes.sft, gp.SftConfig(epochs=1), out=tmp_path / "sft", context_length=512)
    config = gp.RlConfig(rounds=1, tasks_per_round=2, rollouts_per_task=4, reward="score", save_every=1, **limits)
    summary = gp.train_rl(str(tmp_path / "sft"), None, ENVIRONMENT, routes.rl, config, out=tmp_path / "rl", workers=1)
    assert 0 < summary.history[0]["score"] < 1 and summary.history[0]["grad_norm"] > 0
    evaluation = gp.EvaluationConfig(splits={"unseen": 6}, **limits)
    played = gp.evaluate(str(tmp_path / "rl"), ENVIRONMENT, evaluation, out=tmp_path / "evaluation", workers=1)
    assert {episode.task.task_type for episode in played.episodes} == set(TWISTS)
    assert all(episode.score == score(episode.parts) for episode in played.episodes if episode.parts)
    assert any(episode.parts for episode in played.episodes)


_WORDS = re.findall(
    r"\S+", "hello shall i book cancel change r1 t3 h4 b10 ? what food people time 2 19:00 sorry nothing call find = { } goodbye"
)
_texts = st.one_of(
    st.text(max_size=80),
    st.lists(
        st.sampled_from(_WORDS),
        max_size=8,
    ).map(" ".join),
    st.sampled_from(
        ["call find", "call book id=r1 people=2 time=19:00", "for how many people ?", "goodbye .", "sorry , nothing fits ."]
    ),
    st.builds(
        lambda name, arguments: json.dumps({"name": name, "arguments": arguments}),
        st.text(max_size=6),
        st.dictionaries(st.text(max_size=5), st.integers() | st.none()),
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SPLITS), st.integers(0, 599), st.lists(_texts, max_size=MAX_TURNS + 2))
def test_any_texts_end_in_time_score_within_0_and_1_and_give_the_same_steps_again(split, number, actions):
    sessions = [ENVIRONMENT.session(), ENVIRONMENT.session()]
    runs = [[session.reset(f"{split}/{number}"), *(session.step(action) for action in actions)] for session in sessions]
    assert runs[0] == runs[1]
    for step in runs[0]:
        assert 0 <= step.info.score <= 1 and all(0 <= part <= 1 for part in step.info.parts.values())
        assert not step.info.success or step.info.score > 0.8
        assert step.done == bool(step.info.parts) and (not step.done or step.info.score == score(step.info.parts))
    assert len(actions) < MAX_TURNS or runs[0][-1].done
    assert sum(step.reward for step in runs[0]) == runs[0][-1].info.score
