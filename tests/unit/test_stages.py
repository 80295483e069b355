import json

import pytest

from gradprism.experiments import stages
from gradprism.experiments.stages import Stage, StageGraph


class Log:
    """Stages that write a file, count their runs and can be told to fail."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.fail = ""

    def stage(self, name, needs=(), reads=None, resumes=False):
        def run(folder, inputs):
            self.runs.append(name)
            left = sorted(p.name for p in folder.iterdir())
            (folder / "partial").write_text("x")
            if self.fail == name:
                raise RuntimeError(name)
            assert sorted(inputs) == sorted(needs)
            assert all((path / "stage.json").is_file() for path in inputs.values())
            return {"found": left, "tokens_forward": 5}

        return Stage(name, run, reads or {}, {need: need for need in needs}, resumes)


def graph(log, folder, b=1, resumes=False):
    stages = [log.stage("a"), log.stage("b", ["a"], {"value": b}, resumes), log.stage("c", ["b"]), log.stage("d", ["a"])]
    return StageGraph(folder, stages)


def test_a_second_run_reuses_everything(tmp_path):
    log = Log()
    first = graph(log, tmp_path).run()
    second = graph(log, tmp_path).run()
    assert log.runs == ["a", "b", "c", "d"]
    assert [r.reused for r in first.values()] == [False] * 4
    assert [r.reused for r in second.values()] == [True] * 4
    assert {n: r.cost for n, r in first.items()} == {n: r.cost for n, r in second.items()}
    assert second["a"].cost["tokens_forward"] == 5


def test_a_changed_value_redoes_what_depends_on_it_and_nothing_else(tmp_path):
    log = Log()
    graph(log, tmp_path).run()
    graph(log, tmp_path, b=2).run()
    assert log.runs == ["a", "b", "c", "d", "b", "c"]
    graph(log, tmp_path, b=1).run()  # the earlier value's stages are still there
    assert len(log.runs) == 6


def test_a_stage_cut_short_is_run_again_from_an_empty_folder(tmp_path):
    log = Log()
    log.fail = "b"
    with pytest.raises(RuntimeError):
        graph(log, tmp_path).run()
    log.fail = ""
    records = graph(log, tmp_path).run()
    assert log.runs == ["a", "b", "b", "c", "d"]
    assert records["b"].summary["found"] == []


def test_a_stage_that_resumes_finds_what_it_wrote(tmp_path):
    log = Log()
    log.fail = "b"
    with pytest.raises(RuntimeError):
        graph(log, tmp_path, resumes=True).run()
    log.fail = ""
    assert graph(log, tmp_path, resumes=True).run()["b"].summary["found"] == ["partial"]


def test_the_ledger_has_one_line_a_stage_that_ran(tmp_path):
    log = Log()
    graph(log, tmp_path).run()
    graph(log, tmp_path, b=2).run()
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["a", "b", "c", "d", "b", "c"]
    assert all(row["wall_seconds"] >= 0 and row["peak_memory_mib"] > 1 and row["tokens_forward"] == 5 for row in rows)


def test_a_stage_that_used_a_gpu_holds_it_for_as_long_as_it_took(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "peak_gpu_memory_mib", lambda: 700.0)
    monkeypatch.setattr(stages, "gpu_name", lambda: "Some GPU")

    def run(folder, inputs):
        return {"earlier_cost": {"wall_seconds": 50.0, "cpu_seconds": 60.0}}

    [record] = StageGraph(tmp_path, [Stage("a", run)]).run().values()
    assert record.cost["gpu_seconds"] == record.cost["wall_seconds"] > 50
    assert (record.cost["peak_gpu_memory_mib"], record.machine["gpu"]) == (700.0, "Some GPU")
