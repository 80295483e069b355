"""Small corpora with one trap each, rendered: what is response in each."""

from pathlib import Path

import pytest

from gradprism.trajectories.chat_options import ChatOptions
from gradprism.trajectories.corpus import load_corpus
from gradprism.trajectories.parallel import render_all
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer
from helpers.templates import CHATML, DEFAULT_SYSTEM, GEMMA, LLAMA, QWEN, template_tokenizer

CASES = Path(__file__).parents[2].parent / "shared/data/cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not here")
END = "<|im_end|>"
CALL = '<tool_call>\n{"name": "find_train", "arguments": %s}\n</tool_call>'
LAMP = [f"It is on the desk.{END}"]
EXPECTED = {
    "null_dictargs.jsonl": [CALL % '{"from": "Bern", "to": "Chur"}' + END, f"It leaves at 09:12.{END}"],
    "tools_listed_only.jsonl": [f"It leaves at 09:12.{END}"],
    "function_role.jsonl": [CALL % "{}" + END, f"09:12.{END}"],
    "developer.jsonl": [f"09:12.{END}"],
    "msg_system_field.jsonl": LAMP,
    "toolbench.jsonl": [f"Thought: look.\nAction: look\nAction Input: {{}}{END}", *LAMP],
    "conv_role_content.jsonl": LAMP,
    "swesmith.jsonl": LAMP,
    "messages_as_json.parquet": LAMP,
    "reasoning.jsonl": [f"<think>\nthink of rooms\n</think>\n\n{LAMP[0]}"],
    "two_thinks.jsonl": [f"<think>\na\n</think>\n\ngo desk\n<think>\nb\n</think>\n\ntake lamp{END}"],
    "multi.jsonl": [f"<think>\nrooms first\n</think>\n\ngo desk{END}", f"<think>\nnow take\n</think>\n\ntake lamp{END}"],
    "consec.jsonl": ["<think>\nI ask the table\n</think>\n\n" + CALL % "{}" + END, f"09:12{END}"],
}


def read(name: str) -> list[Trajectory]:
    return list(load_corpus([CASES / name]))


def shown(template: str, trajectory: Trajectory, options: ChatOptions | None = None) -> tuple[list[str], list[str]]:
    """The response and the prompt, each as runs of text."""
    runs = Renderer(template_tokenizer(template), None, options).marked_text(trajectory)
    return [text for text, marked in runs if marked], [text for text, marked in runs if not marked]


@pytest.mark.parametrize("name", EXPECTED)
def test_response_is_what_the_assistant_wrote_and_its_ends(name: str) -> None:
    assert shown(QWEN, read(name)[0])[0] == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "words"), [("null_dictargs.jsonl", "dep"), ("function_role.jsonl", "09:12"), ("toolbench.jsonl", "seen")]
)
def test_a_tools_result_is_prompt(name: str, words: str) -> None:
    response, prompt = shown(QWEN, read(name)[0])
    assert words in prompt[1]
    assert words not in response[0]


@pytest.mark.parametrize(
    ("name", "words"), [("developer.jsonl", "Be brief."), ("msg_system_field.jsonl", "You must answer in French.")]
)
def test_the_system_prompt_takes_the_place_of_the_templates_own(name: str, words: str) -> None:
    prompt = "".join(shown(DEFAULT_SYSTEM, read(name)[0])[1])
    assert f"<|im_start|>system\n{words}<|im_end|>" in prompt
    assert "You are a helper." not in prompt


def test_listed_tools_are_in_the_prompt_or_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    trajectories = read("tools_listed_only.jsonl")
    assert "find_train" in shown(QWEN, trajectories[0])[1][0]
    render_all(Renderer(template_tokenizer(CHATML), None), trajectories)
    assert capsys.readouterr().err.count("no place for the tools of") == 1


@pytest.mark.parametrize("name", ["msgs_loss.jsonl", "sg_train.jsonl"])
@pytest.mark.parametrize("template", [CHATML, LLAMA, QWEN, GEMMA])
def test_a_turn_that_is_not_to_be_trained_on_is_in_no_mask(name: str, template: str) -> None:
    response, prompt = ("".join(runs) for runs in shown(template, read(name)[0]))
    assert "AAA bad guess" in prompt and "AAA" not in response
    assert "BBB good guess" in response


@pytest.mark.parametrize("thoughts", ["keep", "drop"])
def test_thoughts_are_kept_or_dropped_by_choice(thoughts: str) -> None:
    options = ChatOptions(thoughts=thoughts)  # pyright: ignore[reportArgumentType] (one of its values)
    response = "".join(shown(QWEN, read("multi.jsonl")[0], options)[0])
    assert ("rooms first" in response) == (thoughts == "keep")
    written = "".join(shown(LLAMA, read("reasoning.jsonl")[0], options)[0])
    assert written == ("<think>\nthink of rooms\n</think>\n\n" if thoughts == "keep" else "") + "It is on the desk.<|eot_id|>"
