"""Settings that are given by name in code are answered in a line, as those of a file are."""

import pytest
from pydantic import ValidationError

from gradprism.environments.prompts import PromptTemplate
from gradprism.evaluation.config import EvaluationConfig
from gradprism.experiments.arms import ArmConfig
from gradprism.runtime.errors import ConfigError
from gradprism.training.rl_config import RlConfig
from gradprism.training.sft_config import SftConfig


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (SftConfig, {"epoch": 3}, "SftConfig: epoch: no such setting; did you mean epochs?"),
        (RlConfig, {"round": 3}, "RlConfig: round: no such setting; did you mean rounds?"),
        (RlConfig, {"prompt": {"sytem": "x"}}, "RlConfig: prompt.sytem: no such setting; did you mean system?"),
        (PromptTemplate, {"colour": "x"}, "PromptTemplate: colour: no such setting; known: admissible, form, history, system"),
        (SftConfig, {"epochs": -1}, "SftConfig: epochs: Input should be greater than 0; got -1"),
        (SftConfig, {"lora_alpha": 3}, "SftConfig: lora_alpha needs lora_rank"),
        (EvaluationConfig, {"attempts": 3}, "EvaluationConfig: attempts 3: greedily all are the same; set a temperature"),
        (ArmConfig, {"name": "a", "rll": "all"}, "ArmConfig: rll: no such setting; did you mean rl?"),
    ],
)
def test_a_wrong_setting_is_one_line(kind, values, message):
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert str(caught.value) == message


def test_what_is_validated_as_a_part_is_for_the_whole_to_say():
    with pytest.raises(ValidationError) as caught:
        RlConfig.model_validate({"prompt": {"sytem": "x"}})
    assert caught.value.errors()[0]["loc"] == ("prompt", "sytem")
    assert RlConfig(rounds=3) == RlConfig.model_validate({"rounds": 3})
