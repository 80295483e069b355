"""The value that trainings return."""

import json
import subprocess
import sys

from gradprism.runtime.usage import Usage
from gradprism.training.summary import TrainingSummary

SUMMARY = TrainingSummary(
    examples=3,
    steps=2,
    parameters_trained=10,
    usage=Usage(tokens_forward=5, wall_seconds=2.0),
    earlier=Usage(wall_seconds=0.5),
    counts={"episodes": 6},
    history=({"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "success": 0.5}),
    evaluations=({"step": 2, "eval_loss": 1.5},),
)


def test_a_summary_survives_json() -> None:
    assert TrainingSummary.from_json(json.loads(json.dumps(SUMMARY.to_json()))) == SUMMARY


def test_a_figure_is_read_from_the_steps_that_have_it() -> None:
    assert SUMMARY.values("loss") == [2.0, 1.0]
    assert SUMMARY.values("success") == [0.5]


def test_a_summary_is_read_without_torch() -> None:
    code = "import sys, gradprism.training.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
