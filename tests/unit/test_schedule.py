"""Stages in several processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gradprism.experiments.schedule import LOG, owed_stages, run_jobs, state_of, summary, time_left
from gradprism.experiments.stages import Stage, StageGraph
from gradprism.runtime.errors import FolderInUseError, StageError
from helpers.stages import stage


def diamond(folder, **last):
    return StageGraph(
        folder,
        [stage("a"), stage("b", ("a",)), stage("c", ("a",)), stage("d", ("b", "c"), **last), stage("e")],
    )


def words(graph, name):
    return (graph.path(name) / "words").read_text()


def test_every_stage_runs_once_after_what_it_needs(tmp_path, capfd):
    graph = diamond(tmp_path)
    assert owed_stages(graph, ["d"]) == ["a", "b", "c", "d"]
    run_jobs(graph, ["d"], {"d": "the last"}, jobs=2)
    assert words(graph, "d") == "a b a c d"
    assert not graph.is_done("e"), "nobody asked for it"
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert sorted(row["stage"] for row in rows) == ["a", "b", "c", "d"]
    assert all(row["tokens_forward"] == 7 for row in rows)
    assert "the last: 0 s · d" in capfd.readouterr().err
    run_jobs(graph, ["d", "e"], {}, jobs=1)
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 5, "only what was owed"
    assert summary(graph, ["d", "e"], {}, 1) == {"done": ["a", "b", "c", "d", "e"], "running": [], "owed": [], "seconds_left": 0.0}


def test_a_stage_that_fails_is_named_and_all_that_does_not_need_it_still_runs(tmp_path):
    graph = StageGraph(tmp_path, [stage("a", fail="no such luck"), stage("b", ("a",)), stage("c")])
    with pytest.raises(StageError, match=r"the first failed \(no such luck\); 2 of 3 stages are owed"):
        run_jobs(graph, ["b", "c"], {"a": "the first"}, jobs=1)
    assert graph.is_done("c") and not graph.is_done("a")
    assert "ModelError: no such luck" in (tmp_path / LOG).read_text()
    assert state_of(graph, "a") == "owed"
    # The same stages without the fault: what was done is kept.
    graph = StageGraph(tmp_path, [stage("a"), stage("b", ("a",)), stage("c")])
    run_jobs(graph, ["b", "c"], {}, jobs=1)
    assert words(graph, "b") == "a b"


def test_a_process_that_dies_is_said_and_the_same_command_goes_on(tmp_path):
    graph = StageGraph(tmp_path, [stage("a"), stage("b", ("a",), resumes=True, die=True)])
    with pytest.raises(StageError, match=r"a process died .* in the second; give the same command again"):
        run_jobs(graph, ["b"], {"b": "the second"}, jobs=1)
    assert state_of(graph, "a") == "done" and state_of(graph, "b") == "owed", "its process is gone"
    run_jobs(graph, ["b"], {}, jobs=1)
    assert words(graph, "b") == "a b"


def test_what_is_left_is_told_from_what_is_done(tmp_path):
    graph = StageGraph(tmp_path, [stage("a"), stage("b"), stage("c")])
    assert time_left(graph, ["a"], 1) is None
    run_jobs(graph, ["a"], {}, jobs=1)
    took = graph.record("a").cost["wall_seconds"]
    assert time_left(graph, ["b", "c"], 2) == pytest.approx(took)


COMMAND = """
import sys
from pathlib import Path
from gradprism.experiments.schedule import run_jobs
from gradprism.experiments.stages import Stage, StageGraph
from helpers.stages import stage
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_jobs(StageGraph(folder, [stage("a"), stage("b", ("a",), seconds=60)]), ["b"], {}, 1)
"""


def test_a_killed_command_leaves_no_process_and_nobody_else_runs_meanwhile(tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    process = subprocess.Popen([sys.executable, "command.py", "out"], cwd=tmp_path, env={"PYTHONPATH": "tests", **_environment()})
    graph = StageGraph(tmp_path / "out", [stage("a"), stage("b", ("a",), seconds=60)])
    until(lambda: state_of(graph, "b") == "running")
    with pytest.raises(FolderInUseError, match="the experiment is being run by process"):
        run_jobs(graph, ["b"], {}, 1)
    worker = int(json.loads((tmp_path / "out" / "running" / "b.json").read_text())["pid"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: state_of(graph, "b") == "owed")
    assert not _alive(worker)
    quick = StageGraph(tmp_path / "out", [stage("a"), stage("b", ("a",))])
    run_jobs(quick, ["b"], {}, 1)
    assert words(quick, "b") == "a b"


def _environment():
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path("tests").resolve())}


def _alive(pid):
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def own_process(folder, inputs):
    loaded = "wave" in sys.modules
    return {"headline": f"{os.getpid()} {loaded}"}


def test_each_stage_has_a_process_of_its_own_that_has_imported_its_libraries(tmp_path):
    # A module that nothing else imports.
    imports = {"a": (), "b": ("wave",)}
    graph = StageGraph(tmp_path, [Stage(name, own_process, {"name": name}, imports=names) for name, names in imports.items()])
    run_jobs(graph, ["a", "b"], {}, jobs=1)
    (first, without), (second, with_it) = (graph.record(name).summary["headline"].split() for name in ("a", "b"))
    assert first != second and (without, with_it) == ("False", "True")
    assert graph.record("a").machine["cores"] >= 1 and "torch" in graph.record("a").machine["versions"]
