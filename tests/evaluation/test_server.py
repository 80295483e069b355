"""Evaluation of a model that a server plays: what it plays is what the same model plays here."""

import json

import numpy as np
import pytest

import gradprism as gp
from gradprism.environments.demonstrations import collect
from gradprism.environments.registry import make_environment
from gradprism.evaluation.agents import ServerAgent
from gradprism.evaluation.config import EvaluationConfig
from gradprism.models import load_model
from gradprism.rollouts import server as module
from gradprism.rollouts.generator import CachedGenerator
from gradprism.rollouts.server import Server, ServerGenerator
from gradprism.routing.routes import Routes
from gradprism.runtime.errors import ModelError
from gradprism.trajectories.rendering import Renderer, load_tokenizer
from helpers.cli import assert_refused
from helpers.completions_server import serving
from helpers.probes import make_probe

MODEL = "models/alfworld-tiny"
PLAY = EvaluationConfig(splits={"dev": 6}, max_steps=6, context_length=1024)


@pytest.fixture(scope="module")
def greedy():
    """The shipped model as a server's answer, and its tokenizer."""
    tokenizer = load_tokenizer(MODEL)
    end = Renderer(tokenizer, None).stop_id
    generator = CachedGenerator(load_model(MODEL).eval(), 1, 1024, end, PLAY.max_action_tokens, 0.0)

    def answer(prompt: list[int]) -> tuple[list[int], bool]:
        [said] = generator.generate([0], [prompt], [np.random.default_rng(0)])
        return said.ids, said.ids[-1] == end

    return answer, lambda ids: tokenizer.decode(ids, skip_special_tokens=True), tokenizer


def test_a_server_plays_what_the_same_model_plays_here(greedy):
    answer, decode, _ = greedy
    environment = make_environment("alfworld", difficulty="tiny")
    here = gp.evaluate(MODEL, environment, PLAY, workers=1)
    for says in ("ids", "tokens", "text"):
        with serving(answer, decode, says=says, busy=1) as server:
            agent = ServerAgent(Server(server.url, "served"), gp.ModelSpec(MODEL))
            there = gp.evaluate(agent, environment, PLAY, workers=1)
            assert agent.description().items() >= {"kind": "server", "served": "served", "root": "some/model"}.items()
        assert [e.to_json() for e in there.episodes] == [e.to_json() for e in here.episodes], says
        assert there.usage.tokens_generated == here.usage.tokens_generated
        told = [turn.logprobs for episode in there.episodes for turn in episode.turns]
        assert all(np.isnan(of).all() if says == "text" else set(of) == {-0.25} for of in told)
        assert len({body["seed"] for body in server.asked}) > 1 and all(body["temperature"] == 0.0 for body in server.asked)


def test_the_command_line_goes_on_and_refuses_another_server_in_one_line(greedy, cli, tmp_path, monkeypatch):
    answer, decode, _ = greedy
    play = [
        "evaluate",
        "--env-option",
        "difficulty=tiny",
        "--split",
        "dev",
        "--count",
        3,
        "--max-steps",
        3,
        "--out",
        tmp_path / "out",
    ]
    with serving(answer, decode) as server:
        ask = [*play, "--model", MODEL, "--server", f"{server.url}/v1/"]
        assert_refused(cli(*ask), f"server {server.url}/v1/: serves ['served'], not '{MODEL}'; give --served-name")
        code, out, _ = cli(*ask, "--served-name", "served", "--json")
        assert code == 0 and json.loads(out)["rows"][0]["episodes"] == 3
        asked = len(server.asked)
        assert cli(*ask, "--served-name", "served")[0] == 0 and len(server.asked) == asked
        assert_refused(cli(*play, "--agent", "expert", "--server", server.url), "--server needs --model")
    assert_refused(cli(*ask, "--served-name", "served"), "does not tell its models", "start it, or correct the address")


def test_a_corpus_is_routed_by_the_pass_rates_of_a_server(greedy, cli, tmp_path):
    answer, decode, _ = greedy
    environment = make_environment("alfworld", difficulty="tiny")
    corpus = collect(environment, environment.tasks("train", 6), max_steps=15, workers=1)
    make_probe(tmp_path / "probe", trajectories=corpus)
    play = ["evaluate", "--env-option", "difficulty=tiny", "--max-steps", 12, "--attempts", 2, "--temperature", 1, "--workers", 1]
    with serving(answer, decode) as server:
        ask = [*play, "--model", MODEL, "--server", server.url, "--served-name", "served", "--out", tmp_path / "base"]
        code, out, _ = cli(*ask, "--tasks", tmp_path / "probe" / "corpus.jsonl", "--json")
    assert code == 0 and [row["episodes"] for row in json.loads(out)["rows"] if row["task_type"] == "all"] == [12]
    options = ("--policy", "pass_rate", "--pass-rates", tmp_path / "base" / "episodes.jsonl")
    assert cli("route", tmp_path / "probe", "--out", tmp_path / "route", *options, "--threshold", 0)[0] == 0
    won = [json.loads(line) for line in (tmp_path / "base" / "episodes.jsonl").read_text().splitlines()]
    rates = {e["id"]: sum(other["success"] for other in won if other["id"] == e["id"]) / 2 for e in won}
    frame = Routes.load(tmp_path / "route").frame
    assert frame["pass_rate"].to_list() == [rates[t.task["id"]] for t in corpus]
    assert frame["route"].to_list() == ["rl" if rate else "sft" for rate in frame["pass_rate"]]
    # A route's own RL tasks will do as well; what names no task is told by its line.
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "messages": []}\n')
    assert_refused(
        cli(*play, "--agent", "expert", "--out", tmp_path / "o", "--tasks", tmp_path / "bad.jsonl"), "bad.jsonl:1: no task"
    )


def test_answers_that_are_none_are_told(greedy, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    _, decode, tokenizer = greedy

    def ask(server, name="served"):
        generator = ServerGenerator(Server(server.url, name), tokenizer, 5, 4, 0.0, 2)
        return generator.generate([0, 1], [[6, 7], [6, 8]], [np.random.default_rng(n) for n in range(2)])

    with serving(lambda prompt: (list(prompt), True), decode) as server:
        first, second = ask(server)
        assert (first.ids, second.ids) == ([6, 7, 5], [6, 8, 5])  # the end that it stopped at was not among them
        assert first.logprobs[:2] == [-0.25, -0.25] and np.isnan(first.logprobs[2])
        with pytest.raises(ModelError, match=r"refuses the request .404: .*no model other"):
            ask(server, "other")
    with (
        serving(lambda prompt: (list(prompt), True), decode, busy=99) as server,
        pytest.raises(ModelError, match=r"503.*5 times tried"),
    ):
        ask(server)
    with serving(lambda prompt: ([], False), decode) as server, pytest.raises(ModelError, match="gave an empty answer"):
        ask(server)
    with pytest.raises(ModelError, match="does not answer"):
        ask(server)
