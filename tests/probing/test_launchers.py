"""Several processes that probe one corpus; the reference is always one process."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from gradprism.models import ModelSpec, resolve_device
from gradprism.probing.api import probe
from gradprism.probing.folder import ProbeFolder
from gradprism.probing.plan import plan_items
from gradprism.probing.prepared import Prepared
from gradprism.probing.rays import Pool, Ray, connected, own_error
from gradprism.probing.work import ProbeOptions, Share, Work
from gradprism.runtime.errors import ConfigError, MissingDependencyError, MissingFileError, WorkerError
from gradprism.runtime.files import read_jsonl
from gradprism.runtime.ranks import Ranks
from gradprism.trajectories.corpus import write_messages_jsonl
from helpers.ranks import RankRun, environment, kill_processes
from helpers.tiny import sample_trajectories, tiny_llama, tiny_qwen3, tiny_tokenizer

N = 31  # batches of several sizes, and no multiple of 2 or 3 of them


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder with `model`, `corpus.jsonl`, and the probes of one process: `whole` (with turns) and `half` (bfloat16)."""
    folder = tmp_path_factory.mktemp("executors")
    tokenizer = tiny_tokenizer()
    tiny_qwen3(len(tokenizer), layers=3).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_messages_jsonl(folder / "corpus.jsonl", sample_trajectories(N))
    for out, options in (("whole", ["--per-turn"]), ("half", ["--dtype", "bfloat16"])):
        run = RankRun(folder / "log", 1, command(folder, folder / out, *options))
        assert run.wait() == [0], run.errors
    return folder


def command(shared: Path, out: Path | str, *options: object, model: str = "model") -> list[str]:
    files = ["--model", shared / model, "--data", shared / "corpus.jsonl", "--out", out]
    return list(map(str, ["probe", *files, "--batch-tokens", 150, "--device", "cpu", *options]))


def assert_same_rows(out: Path, expected: Path, turns: bool = False) -> None:
    for kind in ("whole", "turns")[: 1 + turns]:
        table, reference = ProbeFolder(out).read(kind), ProbeFolder(expected).read(kind)
        assert table.ids == reference.ids
        np.testing.assert_allclose(table.norms, reference.norms, rtol=1e-6)
        np.testing.assert_allclose(table.frame["loss"], reference.frame["loss"], rtol=1e-6)
        counts = ("index", "turn", "n_tokens", "n_response_tokens", "n_turns")
        assert table.frame.select(counts).equals(reference.frame.select(counts))


def assert_no_row_twice(out: Path) -> None:
    codes = np.concatenate([shard.codes for shard in ProbeFolder(out)._shards([])])
    assert len(codes) == len(np.unique(codes))


def test_processes_of_a_launcher_share_the_batches(shared, tmp_path):
    run = RankRun(tmp_path / "log", 3, command(shared, tmp_path / "probe", "--per-turn", "--json"))
    assert run.wait() == [0, 0, 0], run.errors
    assert run.outputs[1:] == ["", ""]
    assert run.errors == [""] * 3
    summary, turns = json.loads(run.outputs[0]), len(ProbeFolder(shared / "whole").read("turns").ids)
    assert (summary["probed"], summary["probed_turns"]) == (N, turns)
    assert_same_rows(tmp_path / "probe", shared / "whole", turns=True)
    assert_no_row_twice(tmp_path / "probe")
    lines = [line for path in (tmp_path / "probe").glob("attempts*.jsonl") for line in read_jsonl(path)]
    assert {line["process"] for line in lines} == {0, 1, 2}
    assert len({line["attempt"] for line in lines}) == 1


def test_only_the_first_process_speaks(shared, tmp_path):
    run = RankRun(tmp_path / "log", 2, command(shared, tmp_path / "probe"))
    assert run.wait() == [0, 0], run.errors
    assert f"{N} trajectories probed, 0 kept" in run.outputs[0]
    assert (run.outputs[1], run.errors[1]) == ("", "")


@pytest.mark.slow
def test_torchrun_a_killed_process_and_another_number(shared, tmp_path):
    out = tmp_path / "probe"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(
            [*torchrun, "-m", "helpers.ranks", *command(shared, out)], env=environment(), stdout=log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 240
        while not list(out.glob("norms-*.parquet")):
            assert launcher.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
        (second,) = [child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == "1"]
        kill_processes([second.pid])
        assert launcher.wait(timeout=120) != 0
    done = len(ProbeFolder(out).finished())
    assert 0 < done < N
    run = RankRun(tmp_path / "log-3", 3, command(shared, out, "--json"))
    assert run.wait() == [0, 0, 0], run.errors
    summary = json.loads(run.outputs[0])
    assert (summary["probed"], summary["kept"]) == (N - done, done)
    assert summary["earlier"]["tokens_forward"] > 0
    assert_same_rows(out, shared / "whole")
    assert_no_row_twice(out)


def test_a_process_told_to_stop_writes_what_it_has(shared, tmp_path):
    out = tmp_path / "probe"
    run = RankRun(tmp_path / "log", 2, command(shared, out), pause=0.1)
    while not list(out.glob("norms-*.parquet")):
        time.sleep(0.01)
    kill_processes([process.pid for process in run.processes], signal.SIGTERM)
    codes = run.wait()
    assert set(codes) <= {143, -signal.SIGTERM} and 143 in codes, codes  # −15: not at work yet
    assert 0 < len(ProbeFolder(out).finished()) < N
    assert "".join(run.errors) == ""


def test_an_error_of_one_process_is_said_once_and_ends_all(shared, tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    with torch.no_grad():  # only trajectories with this word fail
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("watch")] = torch.nan
    model.save_pretrained(shared / "broken")
    tokenizer.save_pretrained(shared / "broken")
    out = tmp_path / "probe"
    run = RankRun(tmp_path / "log", 2, command(shared, out, model="broken"), pause=0.01)
    codes = run.wait()
    assert 2 in codes and set(codes) <= {2, 143, -signal.SIGTERM}, codes
    said = [line for text in run.errors for line in text.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, run.errors
    assert "trajectory 'sample-" in said[0] and "the model's loss on it is nan" in said[0]
    assert "Traceback" not in "".join(run.errors)


def test_a_missing_model_is_said_once(shared, tmp_path):
    run = RankRun(tmp_path / "log", 2, command(shared, tmp_path / "probe", model="nothing/here"))
    assert 2 in (codes := run.wait()) and set(codes) <= {2, -signal.SIGTERM}
    assert "".join(run.errors).count("no such folder") == 1
    assert not (tmp_path / "probe").exists()


@pytest.mark.slow
def test_accelerate_launch(shared, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--cpu"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "gradprism"]
    done = subprocess.run(
        [*launch, *command(shared, tmp_path / "probe", "--json")], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["probed"] == N
    assert_same_rows(tmp_path / "probe", shared / "whole")


def test_processes_meet_behind_a_url(shared, tmp_path):
    """Each has a copy of its own; a torn shard there is pending again, and another number of processes goes on."""
    url, out = f"file://{tmp_path}/probe", tmp_path / "probe"
    run = RankRun(tmp_path / "log", 2, command(shared, url, "--per-turn", "--json"))
    assert run.wait() == [0, 0], run.errors
    assert json.loads(run.outputs[0])["probed"] == N
    assert_same_rows(out, shared / "whole", turns=True)
    assert_no_row_twice(out)
    torn = sorted(out.glob("norms-*.parquet"))[0]
    torn.write_bytes(torn.read_bytes()[:100])
    run = RankRun(tmp_path / "log-3", 3, command(shared, url, "--per-turn", "--json"))
    assert run.wait() == [0, 0, 0], run.errors
    summary = json.loads(run.outputs[0])
    assert 0 < summary["probed"] < N and summary["earlier"]["tokens_forward"] > 0
    assert_same_rows(out, shared / "whole", turns=True)
    assert_no_row_twice(out)


def test_shares_hold_every_batch_once(shared):
    work = Work(ProbeFolder(shared / "whole"), Prepared(shared / "whole"), ProbeOptions(batch_tokens=150, per_turn=True))
    nothing = np.empty(0, np.int64)
    assert sum(len(work.pending(work.probe.finished(), Share(k, 3))) for k in range(3)) == 0
    shares = [work.pending(nothing, Share(k, 3)) for k in range(3)]
    items = np.sort(np.concatenate([batch for share in shares for batch in share]))
    np.testing.assert_array_equal(items, np.arange(len(work.items)))
    whole = plan_items(work.items, 150)
    assert [batch.tolist() for batch in shares[1]] == [batch.tolist() for batch in whole[1::3]]


def test_what_one_process_tells_another_hears():
    store = HashStore()
    ranks = [Ranks(rank, 3, rank, store) for rank in range(3)]
    large = {"é": list(range(500_000))}
    ranks[2].publish("large", large)
    assert ranks[0].wait_for("large") == large
    assert [ranks[rank].gather("done", rank * rank) for rank in (2, 1, 0)] == [[], [], [0, 1, 4]]
    assert [ranks[rank]._is_first_error() for rank in (1, 0, 2)] == [True, False, False]


def test_each_process_has_its_own_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [resolve_device("auto", Ranks(k, 2, k)) for k in range(2)] == ["cuda:0", "cuda:1"]
    assert chosen == [0, 1]
    assert resolve_device("cpu", Ranks(5, 8, 1)) == "cpu"
    with pytest.raises(ConfigError, match="has no CUDA device of its own"):
        resolve_device("cuda", Ranks(2, 3, 2))
    with pytest.raises(ConfigError, match="each process takes the device of its number"):
        resolve_device("cuda:1", Ranks(0, 2, 0))


def test_who_a_process_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() is None
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() is None  # a cluster's scheduler, no launcher
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Ranks.from_environment() == Ranks(3, 4, 1)
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(ConfigError, match="must be numbers"):
        Ranks.from_environment()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert Ranks.from_environment() is None


def test_choices_that_do_not_go_together(shared, tmp_path, monkeypatch):
    spec = ModelSpec(str(shared / "model"))
    with pytest.raises(ConfigError, match="give the model by name"):
        probe(tiny_qwen3(50), tiny_tokenizer(), [], out=tmp_path / "probe", launcher=Ray())
    with pytest.raises(ConfigError, match="several processes meet in a probe folder"):
        probe(spec, None, [], launcher=Ray())
    monkeypatch.setattr(Ranks, "from_environment", lambda: Ranks(0, 2, 0, HashStore()))
    with pytest.raises(ConfigError, match="without torchrun"):
        probe(spec, None, [], out=tmp_path / "probe", launcher=Ray())
    with pytest.raises(ConfigError, match="several processes meet in a probe folder"):
        probe(spec, None, [])
    assert len(probe(spec, None, sample_trajectories(2), launcher="here")) == 2


def test_what_is_asked_of_a_cluster():
    pool = Pool(Ray(), {"CPU": 7.0})
    assert (pool.workers, pool.gpus, pool.device("auto")) == (7, 0.0, "auto")
    pool = Pool(Ray(), {"CPU": 64.0, "GPU": 8.0})
    assert (pool.workers, pool.gpus) == (8, 1.0)
    pool = Pool(Ray(gpus_per_worker=4, cpus_per_worker=2), {"CPU": 64.0, "GPU": 8.0})
    assert (pool.workers, pool.device("auto"), pool.device("cuda")) == (2, "auto-map", "auto-map")
    with pytest.raises(WorkerError, match="3 workers of 4 GPUs and 1 CPUs do not fit a cluster that has 8 GPUs"):
        Pool(Ray(workers=3, gpus_per_worker=4), {"CPU": 64.0, "GPU": 8.0})
    for wrong in (
        {"workers": 0},
        {"gpus_per_worker": 1.5},
        {"gpus_per_worker": -1},
        {"cpus_per_worker": 0},
        {"gpus_per_worker": math.inf},
        {"cpus_per_worker": math.nan},
    ):
        with pytest.raises(ConfigError):
            Ray(**wrong)  # pyright: ignore[reportArgumentType]


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gradprism\[ray\]'"), connected(Ray()):
        pass


def test_errors_of_a_worker_keep_their_class():
    class WrappedError(RuntimeError):
        cause = MissingFileError("model 'x': no such folder")

    error = own_error(WrappedError("ray says"))
    assert type(error) is MissingFileError and str(error) == "model 'x': no such folder"
    other = own_error(RuntimeError("Traceback (most recent call last):\n  File …\nValueError: four"))
    assert type(other) is WorkerError and str(other) == "Ray: ValueError: four; finished trajectories are kept"


@pytest.mark.slow
def test_ray_tasks_and_a_killed_one(shared, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "probe"
    with open(tmp_path / "err", "w") as errors:
        variables = environment()
        variables.pop("RAY_ADDRESS", None)
        driver = subprocess.Popen(
            [sys.executable, "-m", "helpers.slow_ray", shared, out], env=variables, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        deadline = time.monotonic() + 300
        while not list(out.glob("norms-*.parquet")):
            assert driver.poll() is None and time.monotonic() < deadline, (tmp_path / "err").read_text()
            time.sleep(0.01)
        workers = [child for child in psutil.Process(driver.pid).children(recursive=True) if "ray::_do_share" in _title(child)]
        assert workers
        kill_processes([workers[0].pid])
        printed, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, (tmp_path / "err").read_text()
    summary = json.loads(printed)
    assert 0 < summary["probed"] <= N
    assert_same_rows(out, shared / "whole", turns=True)
    assert_no_row_twice(out)
    # Two workers, and the one that took over; who is killed before its first shard has no account.
    assert len(list(out.glob("attempts-*.jsonl"))) in (2, 3)
    assert psutil.wait_procs(workers, timeout=60)[1] == []  # nothing is left running


def _title(process: psutil.Process) -> str:
    try:
        return process.name() + " ".join(process.cmdline())
    except psutil.Error:
        return ""
