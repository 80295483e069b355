"""Stages in several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import gradprism
from gradprism.experiments import schedule
from gradprism.experiments.schedule import LOG, expected_seconds, run_stages, status
from gradprism.experiments.stage import Outcome, Stage, Store
from gradprism.runtime.errors import StageError
from helpers.stages import Resume, Words, Write, words


def diamond():
    first = Write("a")
    return Write("d", (Write("b", (first,)), Write("c", (first,)))), Write("e")


def labels(stages):
    return [stage.label for stage in stages]


def ran(folder):
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def test_every_stage_runs_once_after_what_it_needs(tmp_path, capfd):
    store, (last, other) = Store(tmp_path), diamond()
    assert words(store.pending([last])) == ["a", "b", "c", "d"]
    run_stages(store, [last], {last.name: "the last"}, jobs=2)
    assert store.found(last).words == "a b a c d"
    assert not store.is_done(other), "nobody asked for it"
    assert len(ran(tmp_path)) == 4 and all(row["tokens_forward"] == 7 for row in ran(tmp_path))
    assert "the last: 0.0 s · d by" in capfd.readouterr().err
    run_stages(store, [last, other], {}, jobs=1)
    assert len(ran(tmp_path)) == 5, "only what was pending"
    found = status(store, [last, other], {other.name: "e"}, 1)
    assert labels(found.done) == ["write"] * 4 + ["e"] and (found.running, found.pending, found.seconds_left) == ([], [], 0.0)
    assert all(stage.peak_memory_mib > 1 and stage.seconds is not None for stage in found.done)


def test_a_stage_that_fails_is_named_and_all_that_does_not_need_it_still_runs(tmp_path):
    store, first = Store(tmp_path), Write("a", fail="no such luck")
    second, third = Write("b", (first,)), Write("c")
    with pytest.raises(StageError, match=r"the first failed \(no such luck\); 2 of 3 stages are pending"):
        run_stages(store, [second, third], {first.name: "the first"}, jobs=1)
    assert store.is_done(third) and not store.is_done(first)
    assert "ModelError: no such luck" in (tmp_path / LOG).read_text()
    assert labels(status(store, [first], {}, 1).pending) == ["write"]
    # The same stages without the fault: what was done is kept.
    run_stages(store, [Write("b", (Write("a"),)), third], {}, jobs=1)
    assert store.found(second).words == "a b" and len(ran(tmp_path)) == 3


def test_a_process_that_dies_is_said_and_the_same_command_goes_on(tmp_path):
    store, last = Store(tmp_path), Resume("b", (Write("a"),), die=True)
    with pytest.raises(StageError, match=r"a process died .* in the second; give the same command again"):
        run_stages(store, [last], {last.name: "the second"}, jobs=1)
    found = status(store, [last], {}, 1)
    assert (len(found.done), found.running, len(found.pending)) == (1, [], 1), "its process is gone"
    run_stages(store, [last], {}, jobs=1)
    assert store.found(last).words == "a b"


def test_what_is_left_is_told_from_what_is_done(tmp_path):
    store, stages = Store(tmp_path), [Write("a"), Write("b"), Write("c")]
    assert expected_seconds(store, stages) is None
    found = status(store, stages, {}, 2)
    assert found.seconds_left is None and found.pending[0].seconds is None
    run_stages(store, stages[:1], {})
    took = store.record(stages[0]).cost.wall_seconds
    assert expected_seconds(store, [*stages[1:], Own(0)]) == pytest.approx([took] * 3), "of a kind that has not run the mean"
    found = status(store, stages, {}, 2)
    assert found.seconds_left == pytest.approx(took) and [s.seconds for s in found.pending] == pytest.approx([took, took])
    # With other settings of the same kind the run folder tells as much.
    assert status(store, [Write("d")], {}, 1).seconds_left == pytest.approx(took)


COMMAND = """
import sys
from pathlib import Path
from gradprism.experiments import schedule
from gradprism.experiments.schedule import run_stages
from gradprism.experiments.stage import Store
from helpers.stages import Write
if __name__ == "__main__":
    run_stages(Store(Path(sys.argv[1])), [Write("b", (Write("a"),), seconds=60)], {}, 1)
"""


def test_a_killed_command_leaves_no_process(tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path("tests").resolve()), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "command.py", "out"], cwd=tmp_path, env=environment)
    store, last = Store(tmp_path / "out"), Write("b", (Write("a"),))
    until(lambda: labels(status(store, [last], {last.name: "b"}, 1).running) == ["b"])
    worker = int(json.loads((tmp_path / "out" / "running" / f"{last.name}.json").read_text())["pid"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: len(status(store, [last], {}, 1).pending) == 1)
    assert not (psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE)
    run_stages(store, [last], {}, 1)
    assert store.found(last).words == "a b"


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@dataclass(frozen=True)
class Own(Stage[Words]):
    """Says in which process it ran, and what that had imported before the clock began."""

    kind = "own"
    Found = Words
    runner = "wave:open"  # a module that nothing else imports

    number: int

    def run(self, folder, store):
        return Outcome(Words(words=f"{os.getpid()} {'wave' in sys.modules}", left=[]))


def test_each_stage_has_a_process_of_its_own_that_has_imported_its_libraries(tmp_path):
    store, stages = Store(tmp_path), [Own(0), Own(1)]
    run_stages(store, stages, {}, jobs=1)
    (first, loaded), (second, also) = (store.found(stage).words.split() for stage in stages)
    assert len({first, second, str(os.getpid())}) == 3 and loaded == also == "True"
    machine = store.record(stages[0]).machine
    assert (machine.cores or 0) >= 1 and "torch" in machine.versions
    run_stages(store, [Own(2)], {})
    assert store.found(Own(2)).words.split()[0] == str(os.getpid()), "without jobs in this one"


@dataclass(frozen=True)
class Told(Stage[Words]):
    """Says who began its process and what it was told by the environment."""

    kind = "told"
    Found = Words
    runner = "helpers.stages:open"

    number: int

    def run(self, folder, store):
        return Outcome(Words(words=f"{psutil.Process().ppid()} {os.environ.get('WORDS')} {'GONE' in os.environ}", left=[]))


FORKED = """
import os, sys
from pathlib import Path
from gradprism.experiments.schedule import run_stages
from gradprism.experiments.stage import Store
from test_schedule import Told
if __name__ == "__main__":
    store, stages = Store(Path("out")), [Told(0), Told(1), Told(2)]
    run_stages(store, stages[:2], {}, jobs=1)
    assert "torch" not in sys.modules and "PYTHONSAFEPATH" not in os.environ
    os.environ["WORDS"] = "second"
    del os.environ["GONE"]
    run_stages(store, stages[2:], {}, jobs=1)
    print(os.getpid(), *(store.found(stage).words for stage in stages))
"""


def in_a_process_of_its_own(code, cwd):
    """Runs a script that finds the tests' modules, and what lies in its working directory last."""
    (cwd / "script.py").write_text(code)
    paths = [Path("tests"), Path("tests/experiments"), Path(gradprism.__file__).parents[1], *map(Path, filter(None, sys.path))]
    begun = f"import sys, runpy; sys.path[:] = {[str(path.resolve()) for path in paths]!r} + [{str(cwd)!r}]\nif __name__ == '__main__': "
    (cwd / "begun.py").write_text(begun + "runpy.run_path('script.py', run_name='__main__')")
    environment = {**os.environ, "WORDS": "first", "GONE": "not yet"}
    return subprocess.run([sys.executable, "begun.py"], cwd=cwd, env=environment, capture_output=True, text=True)


def test_workers_are_forked_from_one_server_unless_the_environment_is_another_than_it_began_in(tmp_path):
    done = in_a_process_of_its_own(FORKED, tmp_path)
    assert done.returncode == 0, done.stderr
    main, one, *first, two, _, _, three, second, gone = done.stdout.split()
    assert one == two != main and three == main
    assert (first, second, gone) == (["first", "True"], "second", "False")


def test_what_lies_in_the_working_directory_is_no_library_to_the_server(tmp_path):
    """Neither one that would be found there first, nor one that fails: the server ends silently without it."""
    (tmp_path / "torch.py").write_text("print('shadow'); raise OSError('no such library')")
    done = in_a_process_of_its_own(FORKED.replace('"torch" not in sys.modules', "True"), tmp_path)
    assert done.returncode == 0 and "shadow" not in done.stdout + done.stderr, done.stderr


def test_where_there_may_be_a_gpu_each_worker_begins_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "_GPU_DRIVERS", (str(tmp_path),))
    store = Store(tmp_path / "run")
    run_stages(store, [Told(0)], {}, jobs=1)
    assert store.found(Told(0)).words.split()[0] == str(os.getpid())
