"""Several processes that evaluate together play what one plays, whoever plays what."""

import json
import shutil
from pathlib import Path

import pytest

from gradprism.environments.registry import make_environment
from gradprism.evaluation.config import EvaluationConfig
from gradprism.evaluation.run import evaluate
from gradprism.runtime.errors import ConfigError
from helpers.ranks import RankRun

PLAY = ["evaluate", "--env-option", "difficulty=tiny", "--split", "dev", "--count", "7", "--max-steps", "4", "--in-flight", "2"]
SAMPLED = [*PLAY, "--model", "models/alfworld-tiny", "--temperature", "1", "--device", "cpu", "--workers", "1"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a single process."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    config = EvaluationConfig(splits={"dev": 7}, max_steps=4, in_flight=2, temperature=1.0)
    evaluate("models/alfworld-tiny", make_environment("alfworld", difficulty="tiny"), config, out=folder, workers=1)
    return folder


def said(folder: Path) -> tuple[bytes, object, int]:
    """Episodes, rows and the number of batches; costs are seconds and differ."""
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    return (folder / "episodes.jsonl").read_bytes(), rows, len((folder / "batches.jsonl").read_text().splitlines())


def test_two_processes_share_the_batches(alone, tmp_path):
    out = tmp_path / "out"
    run = RankRun(tmp_path / "printed", 2, [*SAMPLED, "--out", out, "--json"])
    assert run.wait() == [0, 0], run.errors
    assert said(out) == said(alone)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in alone.iterdir()), "no part is left"
    assert json.loads(run.outputs[0])["rows"][0]["episodes"] == 7 and run.outputs[1] == "", "the first prints"
    used, of_one = (json.loads((folder / "summary.json").read_text())["usage"] for folder in (out, alone))
    assert used["tokens_generated"] == of_one["tokens_generated"] and used["environment_steps"] == of_one["environment_steps"]
    # Again there is nothing to play.
    costs = (out / "batches.jsonl").read_bytes()
    assert RankRun(tmp_path / "again", 2, [*SAMPLED, "--out", out]).wait() == [0, 0]
    assert (out / "batches.jsonl").read_bytes() == costs and said(out) == said(alone)
    # Another evaluation is refused by one of them, in a line.
    other = RankRun(tmp_path / "other", 2, [*SAMPLED, "--out", out, "--seed", "3"])
    assert 2 in other.wait()
    assert "".join(other.errors).count("holds another evaluation (config.seed: 0 → 3") == 1


def test_what_processes_left_when_they_were_killed_is_taken_up(alone, tmp_path):
    out, lines = tmp_path / "out", [json.loads(line) for line in (alone / "episodes.jsonl").read_text().splitlines()]
    costs = [json.loads(line) for line in (alone / "batches.jsonl").read_text().splitlines()]
    shutil.copytree(alone, out)
    (out / "summary.json").unlink()
    (out / "episodes.jsonl").write_text("".join((alone / "episodes.jsonl").read_text().splitlines(keepends=True)[:2]))
    (out / "batches.jsonl").write_text("".join((alone / "batches.jsonl").read_text().splitlines(keepends=True)[:1]))
    marked = {**costs[1], "wall_seconds": 1234.0}
    (out / "batch-000001.json").write_text(json.dumps({"costs": marked, "episodes": lines[2:4]}))
    (out / "batch-000003.json").write_text(json.dumps({"costs": costs[3], "episodes": lines[:1]}))  # of other tasks
    config = EvaluationConfig(splits={"dev": 7}, max_steps=4, in_flight=2, temperature=1.0)
    found = evaluate("models/alfworld-tiny", make_environment("alfworld", difficulty="tiny"), config, out=out, workers=1)
    assert said(out) == said(alone) and not list(out.glob("batch-*"))
    assert found.usage.wall_seconds > 1234, "the second batch was not played again"


def test_processes_without_a_folder_cannot_share(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    environment = make_environment("alfworld", difficulty="tiny")
    with pytest.raises(ConfigError, match="give one, or start a single process"):
        evaluate("expert", environment, EvaluationConfig(splits={"dev": 1}), together=True)
    assert len(evaluate("expert", environment, EvaluationConfig(splits={"dev": 1}), workers=1).episodes) == 1
