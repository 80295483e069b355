"""What an agent is shown, and what is read of its answers."""

import pytest
from pydantic import ValidationError

from gradprism.environments.prompts import TAGS, PromptTemplate
from gradprism.environments.protocol import Info, Step

NOW = Step("You see a mug 1.", info=Info(admissible=("look", "take mug 1 from desk 1")))


def test_bare_prompts_show_observations_and_nothing_else():
    template = PromptTemplate()
    assert template.first(NOW) == [{"role": "user", "content": "You see a mug 1."}]
    assert template.following(NOW) == "You see a mug 1."
    assert template.parse("take mug 1 from desk 1") == ("take mug 1 from desk 1", True)


def test_everything_on():
    template = PromptTemplate(system="Be brief.", admissible=True, form="tags")
    listed = "You see a mug 1.\n\nAdmissible actions: look, take mug 1 from desk 1"
    assert template.first(NOW) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"{listed}\n\n{TAGS}"},
    ]
    assert template.following(NOW) == listed  # the instruction stands in the conversation already


def test_a_window_of_history():
    template = PromptTemplate(history=2)
    observations = ["room", "a", "b", "You see a mug 1."]
    [message] = template.messages(observations, ["x", "y", "z"], NOW)
    assert message["content"] == "room\n\nActions taken so far: 3. The last 2 and what they led to:\n> y\nb\n> z\nYou see a mug 1."
    [first] = template.messages(["room"], [], Step("room"))
    assert first == {"role": "user", "content": "room"}
    [second] = PromptTemplate(history=1, form="tags").messages(["room", "a"], ["x"], NOW)
    assert second["content"] == f"room\n\nActions taken so far: 1. The last and what it led to:\n> x\na\n\n{TAGS}"


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        ("<think>hm</think><action>look</action>", "look"),
        ("<think>\nhm\n</think>\n<action> go to desk 1 </action> ", "go to desk 1"),
        ("<action>look</action>", None),
        ("<think>hm</think>look", None),
        ("<think>hm</think><action>look</action><action>go</action>", None),
        ("</think><think><action>look</action>", None),
        ("", None),
    ],
)
def test_tagged_answers(answer, action):
    assert PromptTemplate(form="tags").parse(answer) == (("", False) if action is None else (action, True))


def test_settings_are_checked():
    for bad in ({"history": 0}, {"form": "json"}, {"sytem": "x"}):
        with pytest.raises(ValidationError):
            PromptTemplate.model_validate(bad)
