"""Evaluation of a model that a server plays: what it plays is what the same model plays here."""

import asyncio
import contextlib
import json
import signal
import threading
import time

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
from gradprism.rollouts.player import Player
from gradprism.rollouts.server import Connection, Server, ServerGenerator
from gradprism.routing.routes import Routes
from gradprism.runtime.errors import ConfigError, ModelError
from gradprism.runtime.progress import quiet
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


def test_a_text_is_played_as_it_is(greedy):
    """One that the tokenizer does not know is; of control tokens' text nothing is, as where ids are told."""
    _, _, tokenizer = greedy
    end = Renderer(tokenizer, None).stop_id
    said = f"{tokenizer.pad_token}zyzzyva the Æther {tokenizer.decode([end])}"
    assert "zyzzyva" not in tokenizer.decode(tokenizer(said)["input_ids"])
    environment = make_environment("alfworld", difficulty="tiny")
    config = EvaluationConfig(splits={"dev": 1}, max_steps=2)
    with serving(lambda prompt: ([], True), lambda ids: said, says="text") as server:
        agent = ServerAgent(Server(server.url, "served"), gp.ModelSpec(MODEL))
        [episode] = gp.evaluate(agent, environment, config, workers=1).episodes
    assert episode.actions == ["zyzzyva the Æther"] * 2


@pytest.mark.parametrize(("told", "most"), [(100_000, 1024), (200, 200), (True, 1024), (None, 1024)])
def test_the_smaller_of_the_two_contexts_counts(greedy, told, most, monkeypatch):
    _, decode, _ = greedy
    seen = []
    play = Player.play

    def playing(player, *args):
        seen.append(player.context_length)
        return play(player, *args)

    monkeypatch.setattr(Player, "play", playing)
    card = json.dumps({"data": [{"id": "served", "max_model_len": told}]}).encode()
    config = EvaluationConfig(splits={"dev": 1}, max_steps=1)
    with serving(
        lambda prompt: ([5], False), decode, reply=lambda path, number: (200, card) if path == "models" else None
    ) as server:
        agent = ServerAgent(Server(server.url, "served"), gp.ModelSpec(MODEL))
        gp.evaluate(agent, make_environment("alfworld", difficulty="tiny"), config, workers=1)
    assert seen == [most]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.0)


def ask(url, tokenizer, name="served"):
    """Two answers, to the prompts 6 7 and 6 8."""
    with Connection(Server(url, name), 2) as connection:
        generator = ServerGenerator(connection, tokenizer, 5, 4, 0.0, len(tokenizer))
        return generator.generate([0, 1], [[6, 7], [6, 8]], [np.random.default_rng(n) for n in range(2)])


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
    assert_refused(cli(*ask, "--served-name", "served"), "does not answer", "5 times tried; start it, or correct the address")


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
        cli(*play, "--agent", "random", "--out", tmp_path / "o", "--tasks", tmp_path / "bad.jsonl"), "bad.jsonl:1: no task"
    )


def test_answers_that_are_none_are_told(greedy):
    _, decode, tokenizer = greedy
    with serving(lambda prompt: (list(prompt), True), decode) as server:
        first, second = ask(server.url, tokenizer)
        assert (first.ids, second.ids) == ([6, 7, 5], [6, 8, 5])  # the end that it stopped at was not among them
        assert first.logprobs[:2] == [-0.25, -0.25] and np.isnan(first.logprobs[2])
        with pytest.raises(ModelError, match=r"refuses the request .404: .*no model other"):
            ask(server.url, tokenizer, "other")
    with (
        serving(lambda prompt: (list(prompt), True), decode, busy=99) as server,
        pytest.raises(ModelError, match=r"503.*7 times tried"),
    ):
        ask(server.url, tokenizer)
    with serving(lambda prompt: ([], False), decode) as server, pytest.raises(ModelError, match="gave an empty answer"):
        ask(server.url, tokenizer)
    with pytest.raises(ModelError, match="does not answer"):
        ask(server.url, tokenizer)
    with pytest.raises(ModelError, match="cannot be asked"):
        ask("localhost:8000", tokenizer)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that are made, each of which takes no time."""
    made, sleep = [], asyncio.sleep

    async def no_sleep(seconds):
        made.append(seconds)
        await sleep(0)

    monkeypatch.setattr(module, "_PAUSE", 1.0)
    monkeypatch.setattr(module.asyncio, "sleep", no_sleep)
    return made


def card(reply, timeout=600.0):
    with serving(lambda prompt: ([], True), str, reply=reply) as server:
        try:
            return Server(server.url, "served", timeout).card()
        finally:
            assert server.looked


@pytest.mark.parametrize(
    ("told", "timeout", "least"),
    [("7", 600, 7), ("7", 3, 3), ("3600", 600, 60), ("0.5", 600, 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 600, 1), ("-5", 600, 1)],
)
def test_a_busy_server_is_left_alone_for_as_long_as_it_says(pauses, told, timeout, least):
    for status in (429, 503):
        pauses.clear()
        assert card(lambda path, number, status=status: (status, b"busy", told) if number == 1 else None, timeout)["id"] == "served"
        [pause] = pauses
        assert least <= pause <= 1.05 * least


def test_a_server_that_begins_has_a_minute_and_one_that_is_not_there_a_quarter(pauses):
    for status, seconds in ((503, 63), (429, 63), (500, 15)):
        pauses.clear()
        with pytest.raises(ConfigError, match=f"does not answer .{status}: busy.; {7 if seconds == 63 else 5} times tried"):
            card(lambda path, number, status=status: (status, b"busy"))
        assert seconds <= sum(pauses) <= 1.05 * seconds
    pauses.clear()
    with pytest.raises(ConfigError, match="5 times tried"):
        Server("http://127.0.0.1:1", "served").card()
    assert 15 <= sum(pauses) <= 1.05 * 15
    pauses.clear()
    assert card(lambda path, number: (503, b"busy") if number < 7 else None)["id"] == "served"


@pytest.fixture
def speaks(monkeypatch):
    """Nothing was said before."""
    monkeypatch.setattr(module, "_said", float("-inf"))


def test_what_is_waited_for_is_said(greedy, pauses, speaks, capsys, monkeypatch):
    _, decode, tokenizer = greedy
    with serving(
        lambda prompt: (list(prompt), True), decode, reply=lambda path, n: (503, b"busy", "7") if n < 5 else None
    ) as server:
        ask(server.url, tokenizer)
        [line] = capsys.readouterr().err.splitlines()  # of the four refusals, which come side by side
        assert line == f"server {server.url}: 503: busy; asks again in 7 s, try 2 of 7"
        monkeypatch.setattr(module, "_APART", 0.0)
        server.asked.clear()
        ask(server.url, tokenizer)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 4 and all("503: busy; asks again in" in line for line in said)
        server.asked.clear()
        with quiet():
            ask(server.url, tokenizer)
        assert capsys.readouterr().err == ""
        card(lambda path, number: (503, b"busy") if number == 1 else None)
        assert capsys.readouterr().err == ""  # a second is not long


def test_a_stalled_server_is_not_waited_for_in_silence(speaks, capsys, monkeypatch):
    monkeypatch.setattr(module, "_SLOW", 0.1)
    monkeypatch.setattr(module, "_LONG", 0.3)
    monkeypatch.setattr(module, "_APART", 0.0)
    release = threading.Event()

    def reply(path, number):
        if number == 1:
            release.wait(20)

    with serving(lambda prompt: ([], True), str, reply=reply) as server:
        monkeypatch.setattr(server, "handle_error", lambda *_: None)  # who had asked is gone
        try:
            assert Server(server.url, "served", 0.5).card()["id"] == "served"
            slow, again = capsys.readouterr().err.splitlines()
        finally:
            release.set()
    assert slow == f"server {server.url}: no answer for 0.1 s; waits up to 0.5 s"
    assert again == f"server {server.url}: nothing in 0.5 s; asks again in 0 s, try 2 of 5"


@pytest.mark.parametrize("says", ["ids", "tokens", "usage"])
def test_a_server_that_ignores_max_tokens_is_told(greedy, says):
    """Four tokens at most are asked for; of four nothing is said, nor where neither ids nor usage tell."""
    _, decode, tokenizer = greedy
    for given in (4, 5000):

        def reply(path, number, given=given):
            choice = {"text": "look", "finish_reason": "length"}
            answer = {"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": given}}
            return (200, json.dumps(answer).encode()) if says == "usage" else None

        with serving(lambda prompt, given=given: ([6] * given, False), decode, says=says, reply=reply) as server:
            if given == 4:
                assert len(ask(server.url, tokenizer)) == 2
                continue
            with pytest.raises(ModelError, match=r"^[^\n]*ignored max_tokens: asked for 4 tokens at most, it gave 5000; [^\n]*$"):
                ask(server.url, tokenizer)
    with serving(lambda prompt: ([6] * 40, False), decode, says="text") as server:
        assert len(ask(server.url, tokenizer)) == 2


def test_the_command_line_refuses_a_server_that_ignores_max_tokens(greedy, cli, tmp_path):
    _, decode, _ = greedy
    play = ["evaluate", "--env-option", "difficulty=tiny", "--split", "dev", "--count", 1, "--out", tmp_path / "out"]
    with serving(lambda prompt: ([6] * 5000, False), decode) as server:
        ask = [*play, "--model", MODEL, "--server", server.url, "--served-name", "served"]
        assert_refused(cli(*ask), "ignored max_tokens: asked for 16 tokens at most, it gave 5000")


def test_options_of_a_server_need_one(greedy, cli, tmp_path, monkeypatch):
    answer, decode, _ = greedy
    play = ["evaluate", "--env-option", "difficulty=tiny", "--split", "dev", "--count", 1, "--max-steps", 1, "--model", MODEL]
    play += ["--out", tmp_path / "out"]
    assert_refused(cli(*play, "--served-name", "x"), "--served-name needs --server")
    assert_refused(cli(*play, "--server-timeout", 5), "--server-timeout needs --server")
    with serving(answer, decode) as server:
        play += ["--server", server.url, "--served-name", "served"]
        for seconds in ("0", "-1", "nan", "inf"):
            assert_refused(
                cli(*play, f"--server-timeout={seconds}"), "--server-timeout ", "must be a number of seconds, more than 0"
            )
        assert_refused(cli(*play, "--dtype", "bfloat16"), "--dtype: is of a model that is loaded here, and --server plays")
        assert not (tmp_path / "out").exists()
        made, client = set(), Server.client
        monkeypatch.setattr(Server, "client", lambda server, n: made.add(server.timeout) or client(server, n))
        assert cli(*play, "--server-timeout", 5)[0] == 0 and made == {5.0}


def test_refused_requests_come_back_one_after_another(pauses):
    for _ in range(5):
        card(lambda path, number: (503, b"busy") if number == 1 else None)
    assert len(set(pauses)) == 5


def test_tasks_of_a_file_are_all_that_is_played(cli, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    play = ["evaluate", "--agent", "random", "--env-option", "difficulty=tiny", "--max-steps", 1, "--workers", 1]
    play += ["--tasks", tmp_path / "none.jsonl", "--out", tmp_path / "out"]
    assert_refused(cli(*play), "none.jsonl: names no task")
    for option, value in (("split", "dev"), ("count", 3), ("start", 0), ("task-type", "pick_and_place_simple")):
        assert_refused(cli(*play, f"--{option}", value), f"--{option}: chooses tasks of splits, and --tasks names those to play")
    task = make_environment("alfworld", difficulty="tiny").tasks("dev", 1)[0].reference()
    (tmp_path / "none.jsonl").write_text(json.dumps({"task": task}) + "\n")
    code, out, err = cli(*play, "--config", "configs/quickstart.toml", "--json")
    assert code == 0 and json.loads(out)["rows"][0]["episodes"] == 1, err


BROKEN = {
    "cut": b'{"choices":[{"text":"loo',
    "a page": b"<html>gateway</html>",
    "no UTF-8": b'{"choices":[{"text":"\xff\xfe","finish_reason":"stop"}]}',
    "half a character": b'{"choices":[{"text":"look \\ud800","finish_reason":"stop"}]}',
    "no gzip": b"\x1f\x8bno",
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_answer_is_asked_for_again(greedy, body):
    _, decode, tokenizer = greedy
    for times in (1, 99):

        def reply(path, number, times=times):
            return (200, body) if number <= times else None

        with serving(lambda prompt: (list(prompt), True), decode, reply=reply) as server:
            if times == 1:
                assert [answer.ids for answer in ask(server.url, tokenizer)] == [[6, 7, 5], [6, 8, 5]]
                continue
            with pytest.raises(ModelError, match=r"does not answer .unreadable answer: .+; 5 times tried$"):
                ask(server.url, tokenizer)


GOOD = {"text": "look", "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"choices": [{**GOOD, "token_ids": ["abc"]}]}, "no completion .Expected `int`, got `str`"),
        ({"choices": [{**GOOD, "token_ids": [None, 3]}]}, "no completion .Expected `int`, got `null`"),
        ({"choices": [{**GOOD, "token_ids": [True]}]}, "no completion .Expected `int`, got `bool`"),
        ({"choices": [{**GOOD, "token_ids": "6 7"}]}, "no completion .Expected `array | null`, got `str`"),
        ({"choices": [{**GOOD, "logprobs": {"tokens": ["token_id:x"]}}]}, "no completion .invalid literal"),
        ({"choices": [{**GOOD, "logprobs": {"token_logprobs": [True]}}]}, "no completion .Expected `float | null`, got `bool`"),
        ({"choices": [{**GOOD, "text": None}]}, "no completion .Expected `str`, got `null`"),
        ({"choices": [{"text": "look"}]}, "no completion .Object missing required field `finish_reason`"),
        ({"choices": []}, "no completion .Expected `array` of length >= 1"),
        (["x"], "no completion .Expected `object`, got `array`"),
        ({"choices": [{**GOOD, "token_ids": [-1]}]}, "answers with token -1, and --model has 224; give the model that it serves"),
        ({"choices": [{**GOOD, "token_ids": [6, 224]}]}, "answers with token 224, and --model has 224"),
        ({"choices": [{**GOOD, "token_ids": [10**30]}]}, "answers with token 1000"),
    ],
)
def test_an_answer_of_another_form_is_refused_at_once(greedy, answer, told):
    _, decode, tokenizer = greedy
    with serving(lambda prompt: ([], True), decode, reply=lambda path, number: (200, json.dumps(answer).encode())) as server:
        with pytest.raises(ModelError, match=told):
            ask(server.url, tokenizer)
        assert len(server.asked) <= 2


def test_a_list_of_models_is_asked_for_again(greedy):
    _, decode, _ = greedy
    busy = (503, b"busy")
    with serving(lambda prompt: ([], True), decode, reply=lambda path, number: busy if number % 2 else None) as server:
        assert Server(server.url, "served").card()["root"] == "some/model"
        assert server.looked == 2
    for reply, told in (
        ((200, b'{"data": [3]}'), "does not tell its models"),
        ((401, b"bad key"), "refuses the request .401: bad key"),
    ):
        with (
            serving(lambda prompt: ([], True), decode, reply=lambda path, number, reply=reply: reply) as server,
            pytest.raises(ConfigError, match=told),
        ):
            Server(server.url, "served").card()


def test_a_key_that_is_none_is_told(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    with pytest.raises(ConfigError, match=r"cannot be asked .*correct the address, or OPENAI_API_KEY"):
        Server("http://127.0.0.1:1", "served").card()


@pytest.mark.parametrize("ended_by", ["a refusal", "an interrupt", "an interrupt of a pause"])
def test_nothing_waits_for_slow_answers(greedy, ended_by, monkeypatch):
    _, decode, tokenizer = greedy
    monkeypatch.setattr(module, "_PAUSE", 60.0)
    release = threading.Event()

    def reply(path, number):
        if number == 1:
            return None
        if ended_by != "a refusal":
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # which does not wake the main thread
        if ended_by == "an interrupt of a pause":
            return 503, b"busy"
        release.wait(60)
        return None

    def answer(prompt):
        return list(prompt), True

    with contextlib.ExitStack() as stack:
        # A shell's background jobs begin with the signal ignored.
        stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        server = stack.enter_context(serving(answer, decode, reply=reply))
        stack.callback(release.set)
        error, name = (ModelError, "other") if ended_by == "a refusal" else (KeyboardInterrupt, "served")
        clock = time.perf_counter()
        with pytest.raises(error):
            ask(server.url, tokenizer, name)
        assert time.perf_counter() - clock < 20
        assert not [thread for thread in threading.enumerate() if "run_forever" in thread.name]
