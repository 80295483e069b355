"""WebShop's expert, and episodes through the pool and the command line."""

import json
from pathlib import Path

import pytest

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Step
from gradprism.environments.webshop.environment import WebshopEnvironment
from gradprism.environments.webshop.expert import WebshopExpert
from gradprism.runtime.errors import ConfigError, EnvironmentPlayError

OFFICIAL = Path(__file__).parents[2].parent / "shared" / "data" / "webshop"


def test_the_expert_beats_people_on_the_official_test_goals(cli, tmp_path):
    if not OFFICIAL.is_dir():
        pytest.skip("the official catalogue is not here")
    arguments = ["evaluate", "--env", "webshop", "--data-dir", OFFICIAL, "--agent", "expert", "--max-steps", 15]
    code, out, _ = cli(*arguments, "--out", tmp_path / "o", "--json")
    everything = json.loads(out)["rows"][0]
    assert (code, everything["split"], everything["episodes"]) == (0, "test", 500)
    assert everything["score"] > 0.821 and everything["success"] > 0.596  # Yao et al. 2022, table 2, people
    assert everything["invalid_share"] == 0.0
    first = json.loads((tmp_path / "o" / "episodes.jsonl").read_text().splitlines()[0])
    assert {"r_type", "attribute_hits", "option_hits", "price_fits", "asin", "goal_asin"} <= set(first["details"])
    assert first["score"] == first["details"]["reward"] == first["reward"]


def test_demonstrations_of_generated_goals_do_not_depend_on_workers(cli, tmp_path):
    for workers in (1, 2):
        arguments = ["--env", "webshop", "--split", "train", "--count", 40, "--max-steps", 15, "--workers", workers]
        assert cli("collect", *arguments, "--env-option", "products=300", "--out", tmp_path / f"{workers}.jsonl")[0] == 0
    lines = (tmp_path / "1.jsonl").read_bytes()
    assert lines == (tmp_path / "2.jsonl").read_bytes()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert len(rows) > 30  # those that it buys rightly
    for row in rows:
        assert row["task"]["env"] == "webshop" and row["messages"][-1]["content"] == "click[buy now]"
        assert all(m["content"].startswith(("search[", "click[")) for m in row["messages"] if m["role"] == "assistant")


def test_chance_finds_next_to_nothing(cli, tmp_path):
    arguments = ["evaluate", "--env", "webshop", "--agent", "random", "--count", 100, "--max-steps", 15, "--out", tmp_path / "o"]
    _, out, _ = cli(*arguments, "--json")
    everything = json.loads(out)["rows"][0]
    assert everything["score"] < 0.2 and everything["invalid_share"] < 0.02


def test_the_expert_says_what_it_cannot_do():
    with pytest.raises(ConfigError, match="observation=text"):
        WebshopExpert().act(Step("WebShop\nInstruction:\nbuy"))
    expert = WebshopExpert()
    assert expert.act(Step("WebShop [SEP] Instruction: [SEP] Find me a xyzzy [SEP] Search")) == "search[a xyzzy]"
    with pytest.raises(EnvironmentPlayError, match="found nothing"):
        expert.act(Step("Instruction: [SEP] x [SEP] Back to Search [SEP] Page 1 (Total results: 0) [SEP] Next >"))


def test_many_sessions_share_one_catalogue():
    environment = WebshopEnvironment(products=200)
    tasks = environment.tasks("train", 200)
    with SessionPool(environment, 2) as pool:
        starts = pool.reset(range(200), [task.id for task in tasks])
        results = pool.step(range(200), ["search[table]"] * 200)
    assert all(step.observation.startswith("WebShop [SEP] Instruction:") for step in starts)
    assert all("Page 1" in step.observation for step in results)
