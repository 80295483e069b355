"""Whether RL can play a corpus is asked before anything is paid for, and changes no stage."""

import json
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from gradprism.environments.registry import make_environment
from gradprism.experiments import experiment
from gradprism.experiments.config import load_config
from gradprism.experiments.experiment import Job, job_status, run_job
from gradprism.experiments.playable import check_tasks
from gradprism.experiments.stage import with_needs
from gradprism.experiments.stages import Base, Files, OwnFiles, PassRates, Probe, Rl, World
from gradprism.rollouts.config import RolloutConfig
from gradprism.runtime.errors import DataError
from gradprism.training.rl_config import RlConfig
from gradprism.trajectories.chat_options import ChatOptions

MESSAGES = [{"role": "user", "content": "Book it."}, {"role": "assistant", "content": "Booked."}]
CONFIG = f"""
name = "small"
base_arm = "sft"
reference_arms = ["sft"]
sft_arm = "sft"
full_rl_arm = "rl"
arms = [{{ name = "sft", sft = "all", rl = "none" }}, {{ name = "rl", sft = "none" }}]
[model]
path = "{Path("models/dialogue-tiny").resolve()}"
[corpus]
files = ["corpus.jsonl"]
[environment]
name = "dialogue"
[evaluation]
splits = {{ unseen = 2 }}
"""
KNOWN = make_environment("dialogue").tasks("train", 3)
TASKS = {f"t{number}": task.reference() for number, task in enumerate(KNOWN)}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a corpus with such tasks, and an experiment on it; returns the corpus."""
    monkeypatch.chdir(tmp_path)

    def write(tasks):
        (tmp_path / "small.toml").write_text(CONFIG)
        records = [{"id": id, "messages": MESSAGES, **({"task": task} if task else {})} for id, task in tasks.items()]
        Path("corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return Files.of(SimpleNamespace(files=["corpus.jsonl"], format=None, map={}, on_bad="fail"))  # pyright: ignore[reportArgumentType]

    return write


@pytest.fixture
def ran(monkeypatch):
    """The kinds of the stages that would have been run."""
    calls = []
    monkeypatch.setattr(
        experiment, "run_stages", lambda store, wanted, *_: calls.extend(stage.kind for stage in with_needs(wanted).values())
    )
    return calls


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"env": "dialogue", "id": "train/x"}, r"does not know its task \(.*train/x"),
        ({"env": "webshop", "id": "train/1"}, r"does not know its task \(.*expected env 'dialogue'"),
        (None, r"names no task"),
    ],
)
def test_the_first_trajectory_that_cannot_be_played_is_named(write, task, message):
    corpus = write(TASKS | {"odd": task, "other": None})
    with pytest.raises(DataError, match=rf"^corpus\.jsonl:4: trajectory 'odd': .*{message}.*; give its 'task' ") as caught:
        check_tasks(corpus, make_environment("dialogue"))
    assert "\n" not in str(caught.value)
    check_tasks(write(TASKS), make_environment("dialogue"))


def test_a_task_is_told_as_text_or_under_a_name_of_the_users_own(tmp_path):
    tasks = [task.reference() for task in KNOWN]
    lines = [{"id": "a", "messages": MESSAGES, "task": json.dumps(tasks[0])}, {"messages": MESSAGES}, "no record"]
    (path := tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"a\.jsonl:2: the trajectory: names no task"):
        check_tasks(Files(("",), None, (path,)), make_environment("dialogue"))
    own = [{"id": "a", "dialog": MESSAGES, "goal": tasks[1]}, {"id": "b", "dialog": MESSAGES, "goal": {"env": "x", "id": "1"}}]
    path.write_text(json.dumps(own))
    with pytest.raises(DataError, match=r"a\.jsonl:record 2: trajectory 'b': environment 'dialogue' does not know"):
        check_tasks(OwnFiles(("",), None, (path,), (("task", "goal"), ("turns", "dialog")), "fail"), make_environment("dialogue"))


def test_the_task_that_is_asked_for_is_the_one_that_is_read(tmp_path):
    """Under its own name alone, though another stands where corpora have theirs; what is no object is left to who reads it."""
    known = KNOWN[0].reference()
    record = {"id": "a", "messages": MESSAGES, "task": known, "goal": {"env": "dialogue", "id": "train/x"}}
    (path := tmp_path / "a.jsonl").write_text(f'{json.dumps(record)}\n"note"\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: trajectory 'a': .*train/x"):
        check_tasks(OwnFiles(("",), None, (path,), (("task", "goal"),), "skip"), make_environment("dialogue"))
    check_tasks(OwnFiles(("",), None, (path,), (), "skip"), make_environment("dialogue"))


def test_what_a_persons_own_environment_raises_is_told(tmp_path):
    class Own(type(make_environment("dialogue"))):
        def task(self, reference):
            return {}[reference["id"]]

    (path := tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "messages": MESSAGES, "task": KNOWN[0].reference()}))
    with pytest.raises(DataError, match=rf"trajectory 'a': .* does not know its task \(KeyError: '{KNOWN[0].id}'\)"):
        check_tasks(Files(("",), None, (path,)), Own())  # pyright: ignore[reportAbstractUsage]


def test_sixty_thousand_trajectories_take_seconds(tmp_path):
    """Turns, on which reading would spend a minute, are not read; of the processor's time, so that other work does not count."""
    record = json.dumps({"id": "ID", "messages": MESSAGES * 6, "task": KNOWN[0].reference()})
    (path := tmp_path / "big.jsonl").write_text("".join(record.replace("ID", str(n)) + "\n" for n in range(60_000)))
    begin = time.process_time()
    check_tasks(Files(("",), None, (path,)), make_environment("dialogue"))
    assert time.process_time() - begin < 10


def test_it_is_said_before_the_first_stage_where_rl_is_to_play(write, ran):
    write(TASKS | {"odd": {"env": "dialogue", "id": "train/x"}})
    job = Job(load_config("small.toml"), Path("out"))
    for start in (run_job, partial(job_status, as_run=True)):
        with pytest.raises(DataError, match="trajectory 'odd'"):
            start(job)
    assert job_status(job).pending, "who only asks for the state is told it"
    assert ran == [] and not Path("runs").exists()
    without = load_config("small.toml", ["arms=[{name='sft', rl='none', sft='all'}]", "full_rl_arm=sft"])
    run_job(Job(without, Path("out")))
    assert "sft" in ran and "rl" not in ran, "SFT needs no task"
    ran.clear()
    write(TASKS)
    run_job(job)
    assert "rl" in ran


def test_a_corpus_that_is_collected_is_not_asked(write, ran, monkeypatch):
    write(TASKS)
    monkeypatch.setattr(experiment, "check_tasks", lambda *_: pytest.fail("the environment's own"))
    run_job(Job(load_config("small.toml", ["corpus={collect={count=3}}"]), Path("out")))
    assert "collect" in ran


def test_keys_are_those_from_before_tasks_were_asked():
    """Written down then: results that are there are found again."""
    base = Base("weights", None, "float32", "cpu", 64, None, "models/x", ChatOptions())
    files = Files(("hash",), None, (Path("corpus.jsonl"),))
    own = OwnFiles(("hash",), None, (Path("corpus.jsonl"),), (("turns", "dialog"),), "skip")
    world = World("dialogue", {}, {"rules": "1"}, {}, None)
    played = RolloutConfig()
    stages = [
        kind
        for corpus in (files, own)
        for kind in (Probe(base, corpus, None), PassRates(base, corpus, world, 2, played, 0), Rl(base, world, RlConfig(), corpus))
    ]
    assert [stage.name for stage in stages] == [
        "probe-dbd44c2e38361928",
        "pass-rates-b7a957c6c0b332b9",
        "rl-89f51bc7bbe5880e",
        "probe-0a23369ae3476232",
        "pass-rates-44d31dcb59240380",
        "rl-02d20406675c247b",
    ]
