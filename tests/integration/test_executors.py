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

from gradprism.probing.executors import actors
from gradprism.probing.executors.anywhere import Where, probe_anywhere
from gradprism.probing.executors.cluster import Cluster, Pool, connected, own_error
from gradprism.probing.executors.spec import ModelSpec
from gradprism.probing.manifest import Options
from gradprism.probing.plan import plan_items
from gradprism.probing.prepared import Prepared
from gradprism.probing.store import ProbeRow, ProbeStore
from gradprism.runtime.errors import ConfigError, MissingDependencyError, MissingFileError, WorkerError
from gradprism.runtime.files import read_json
from gradprism.runtime.ranks import Ranks
from gradprism.trajectories.readers import write_messages_jsonl
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


def command(shared: Path, out: Path, *options: object, model: str = "model") -> list[str]:
    files = ["--model", shared / model, "--data", shared / "corpus.jsonl", "--out", out]
    return list(map(str, ["probe", *files, "--batch-tokens", 150, "--device", "cpu", *options]))


def assert_same_rows(out: Path, expected: Path, turns: bool = False) -> None:
    for read in (ProbeStore.read, ProbeStore.read_turns)[: 1 + turns]:
        table, reference = read(ProbeStore(out)), read(ProbeStore(expected))
        assert table.ids == reference.ids
        np.testing.assert_allclose(table.norms, reference.norms, rtol=1e-6)
        np.testing.assert_allclose(table.columns["loss"], reference.columns["loss"], rtol=1e-6)
        counts = ("index", "turn", "n_tokens", "n_response_tokens", "n_turns")
        assert table.columns.select(counts).equals(reference.columns.select(counts))


def assert_no_row_twice(out: Path) -> None:
    codes = np.concatenate([shard.codes for shard in ProbeStore(out)._shards([])])
    assert len(codes) == len(np.unique(codes))


def test_processes_of_a_launcher_share_the_batches(shared, tmp_path):
    run = RankRun(tmp_path / "log", 3, command(shared, tmp_path / "probe", "--per-turn", "--json"))
    assert run.wait() == [0, 0, 0], run.errors
    assert run.outputs[1:] == ["", ""]
    assert run.errors == [""] * 3
    summary, turns = json.loads(run.outputs[0]), len(ProbeStore(shared / "whole").read_turns().ids)
    assert (summary["probed"], summary["probed_turns"]) == (N, turns)
    assert_same_rows(tmp_path / "probe", shared / "whole", turns=True)
    assert_no_row_twice(tmp_path / "probe")
    lines = [json.loads(line) for line in (tmp_path / "probe" / "attempts.jsonl").read_text().splitlines()]
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
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--rdzv-backend",
        "c10d",
    ]
    torchrun = [*torchrun[:5], "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
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
    done = len(ProbeStore(out).finished())
    assert 0 < done < N
    run = RankRun(tmp_path / "log-3", 3, command(shared, out, "--json"))
    assert run.wait() == [0, 0, 0], run.errors
    summary = json.loads(run.outputs[0])
    assert (summary["probed"], summary["kept"]) == (N - done, done)
    assert summary["earlier"]["attempts"] == 1
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
    assert 0 < len(ProbeStore(out).finished()) < N
    assert "".join(run.errors) == ""


@pytest.mark.parametrize("options", [[], ["--shard-model"]], ids=["each", "sharded"])
def test_an_error_of_one_process_is_said_once_and_ends_all(shared, tmp_path, options):
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    with torch.no_grad():  # only trajectories with this word fail
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("watch")] = torch.nan
    model.save_pretrained(shared / "broken")
    tokenizer.save_pretrained(shared / "broken")
    out = tmp_path / "probe"
    run = RankRun(tmp_path / "log", 2, command(shared, out, *options, model="broken"), pause=0.01)
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


def test_a_sharded_model_gives_the_same_rows(shared, tmp_path):
    run = RankRun(tmp_path / "log", 2, command(shared, tmp_path / "probe", "--per-turn", "--shard-model", "--json"))
    assert run.wait() == [0, 0], run.errors
    assert json.loads(run.outputs[0])["probed"] == N  # repeated batches do not count
    assert_same_rows(tmp_path / "probe", shared / "whole", turns=True)
    assert_no_row_twice(tmp_path / "probe")
    manifests = [read_json(folder / "manifest.json") for folder in (tmp_path / "probe", shared / "whole")]
    for key in ("weights_sha256", "weight_norms", "n_parameters", "units", "parameters", "device"):
        assert manifests[0][key] == manifests[1][key], key


def test_a_sharded_model_with_fewer_batches_than_processes(shared, tmp_path):
    arguments = command(shared, tmp_path / "probe", "--limit", 2, "--batch-tokens", 10_000, "--json")
    run = RankRun(tmp_path / "log", 3, arguments, ACCELERATE_USE_FSDP="true")
    assert run.wait() == [0, 0, 0], run.errors
    assert json.loads(run.outputs[0])["probed"] == 2
    assert len(ProbeStore(tmp_path / "probe").read().ids) == 2
    reference = ProbeStore(shared / "whole").read().norms[:2]
    np.testing.assert_allclose(ProbeStore(tmp_path / "probe").read().norms, reference, rtol=1e-4)  # another batch


def test_a_sharded_half_precision_model_with_checkpointed_activations(shared, tmp_path):
    arguments = command(shared, tmp_path / "probe", "--shard-model", "--dtype", "bfloat16", "--checkpoint-activations")
    run = RankRun(tmp_path / "log", 2, arguments)
    assert run.wait() == [0, 0], run.errors
    assert_same_rows(tmp_path / "probe", shared / "half")


@pytest.mark.slow
def test_accelerate_launch_with_fsdp(shared, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--use_fsdp", "--fsdp_version", "2", "-m", "gradprism"]
    done = subprocess.run(
        [*launch, *command(shared, tmp_path / "probe", "--json")], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["probed"] == N
    assert_same_rows(tmp_path / "probe", shared / "whole")


def test_what_one_process_tells_another_hears():
    from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

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
    assert [Ranks(k, 2, k).device("auto") for k in range(2)] == ["cuda:0", "cuda:1"]
    assert chosen == [0, 1]
    assert Ranks(5, 8, 1).device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="has no CUDA device of its own"):
        Ranks(2, 3, 2).device("cuda")
    with pytest.raises(ConfigError, match="each process takes the device of its number"):
        Ranks(0, 2, 0).device("cuda:1")


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


@pytest.mark.parametrize(
    ("spec", "where", "launched", "words"),
    [
        ({}, {"executor": "ray"}, True, "without torchrun"),
        ({}, {"executor": "ray", "shard_model": True}, False, "--gpus-per-worker"),
        ({}, {"shard_model": True}, False, "needs several processes"),
        ({"quantise": "4bit"}, {"shard_model": True}, True, "not with --quantise"),
    ],
)
def test_choices_that_do_not_go_together(shared, tmp_path, monkeypatch, spec, where, launched, words):
    monkeypatch.setattr(Ranks, "from_environment", lambda: Ranks(0, 2, 0) if launched else None)
    with pytest.raises(ConfigError, match=words):
        probe_anywhere(ModelSpec(str(shared / "model"), **spec), Where(**where), list, tmp_path / "probe", Options())


def test_what_is_asked_of_a_cluster():
    pool = Pool(Cluster(), {"CPU": 7.0})
    assert (pool.workers, pool.gpus, pool.device("auto")) == (7, 0.0, "auto")
    pool = Pool(Cluster(), {"CPU": 64.0, "GPU": 8.0})
    assert (pool.workers, pool.gpus) == (8, 1.0)
    pool = Pool(Cluster(gpus_per_worker=4, cpus_per_worker=2), {"CPU": 64.0, "GPU": 8.0})
    assert (pool.workers, pool.device("auto"), pool.device("cuda")) == (2, "auto-map", "auto-map")
    with pytest.raises(WorkerError, match="3 workers of 4 GPUs and 1 CPUs do not fit a cluster that has 8 GPUs"):
        Pool(Cluster(workers=3, gpus_per_worker=4), {"CPU": 64.0, "GPU": 8.0})
    for wrong in (
        {"workers": 0},
        {"gpus_per_worker": 1.5},
        {"gpus_per_worker": -1},
        {"cpus_per_worker": 0},
        {"gpus_per_worker": math.inf},
        {"cpus_per_worker": math.nan},
    ):
        with pytest.raises(ConfigError):
            Cluster(**wrong)  # pyright: ignore[reportArgumentType]


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gradprism\[ray\]'"), connected(Cluster()):
        pass


def test_errors_of_a_worker_keep_their_class():
    class WrappedError(RuntimeError):
        cause = MissingFileError("model 'x': no such folder")

    error = own_error(WrappedError("ray says"))
    assert type(error) is MissingFileError and str(error) == "model 'x': no such folder"
    other = own_error(RuntimeError("Traceback (most recent call last):\n  File …\nValueError: four"))
    assert type(other) is WorkerError and str(other) == "Ray: ValueError: four; finished trajectories are kept"


def test_batches_and_rows_survive_the_way(shared):
    prepared = Prepared(shared / "whole")
    items = prepared.items(per_turn=True)
    batches = plan_items(items, 150)
    table = actors._pack(prepared, items, batches)
    assert len(table) == len(batches)
    for row, batch in enumerate(batches):
        shipped = actors._Shipped(table.slice(row, 1))
        np.testing.assert_array_equal(shipped.items.index, items.index[batch])
        np.testing.assert_array_equal(shipped.items.turn, items.turn[batch])
        np.testing.assert_array_equal(shipped.items.length, items.length[batch])
        for index, turn in zip(items.index[batch].tolist(), items.turn[batch].tolist(), strict=True):
            sent, kept = shipped.sequence(index, turn), prepared.sequence(index, turn)
            assert sent.id == kept.id
            np.testing.assert_array_equal(sent.input_ids, kept.input_ids)
            np.testing.assert_array_equal(sent.response_mask, kept.response_mask)
            assert shipped.n_turns[index] == prepared.n_turns[index]

    rows = [ProbeRow(k, f"é{k}", -1, 5, 3, 1, 0.1 * k, 0.3, np.array([k, 1e-30, 3], np.float32)) for k in range(3)]
    for wrong in (None, "bad"):
        for some in (rows, []):
            if some or wrong:
                back, said = actors._unpack(actors._rows_table(some, wrong, 3, 0.5))
                assert said == wrong
                assert [str(row) for row in back] == [str(row) for row in some]
                assert all(row.norms.dtype == np.float32 for row in back)


def test_rounds_hold_every_batch_once(shared, monkeypatch):
    prepared = Prepared(shared / "whole")
    items = prepared.items(per_turn=True)
    batches = plan_items(items, 150)
    monkeypatch.setattr(actors, "ROUND_TOKENS", 500)
    rounds = list(actors._rounds(items, batches))
    assert len(rounds) > 3
    np.testing.assert_array_equal(np.concatenate([batch for some in rounds for batch in some]), np.concatenate(batches))
    assert all(sum(items.length[batch].sum() for batch in some[:-1]) < 500 for some in rounds)


@pytest.mark.slow
def test_ray_actors_and_a_killed_one(shared, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "probe"
    arguments = [*command(shared, out, "--per-turn", "--json"), "--executor", "ray", "--workers", "2"]
    variables = environment()
    variables.pop("RAY_ADDRESS", None)
    with open(tmp_path / "err", "w") as errors:
        driver = subprocess.Popen(
            [sys.executable, "-m", "helpers.ranks", *arguments], env=variables, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        deadline = time.monotonic() + 300
        while not list(out.glob("norms-*.parquet")):  # then both actors work, as each batch comes back at once
            assert driver.poll() is None and time.monotonic() < deadline, (tmp_path / "err").read_text()
            time.sleep(0.01)
        workers = [
            child for child in psutil.Process(driver.pid).children(recursive=True) if "MapWorker" in child.name() + _title(child)
        ]
        assert len(workers) == 2
        kill_processes([workers[0].pid])
        printed, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, (tmp_path / "err").read_text()
    summary = json.loads(printed)
    assert summary["probed"] == N
    assert_same_rows(out, shared / "whole", turns=True)
    assert_no_row_twice(out)
    assert psutil.wait_procs(workers, timeout=60)[1] == []  # nothing is left running


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
