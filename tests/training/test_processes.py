"""Trainings that are killed, and trainings of several processes: the same numbers, the same bits."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from gradprism.models import load_model
from gradprism.runtime.files import read_json, sha256_file
from gradprism.training.folder import read_log
from helpers.families import family_model
from helpers.ranks import RankRun, environment, kill_processes
from helpers.tiny import tiny_tokenizer
from helpers.training import sft_command as command


def without_times(out: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "second" not in k and "runtime" not in k} for row in read_log(out)]


def kill_after(run: RankRun, wanted: Path) -> None:
    """SIGKILL to all processes as soon as a path is there."""
    deadline = time.monotonic() + 120
    while not wanted.exists():
        assert time.monotonic() < deadline and run.processes[0].is_alive(), run.errors
        time.sleep(0.01)
    kill_processes([process.pid for process in run.processes])
    for process in run.processes:
        process.join()
    assert run.processes[0].exitcode == -signal.SIGKILL


KILLED = {
    # In the middle of an epoch of 6 steps, with batches that are summed and evaluations between.
    "whole": ["--batch-size", 2, "--gradient-accumulation", 2, "--save-steps", 4, "--eval-share", 0.1, "--eval-steps", 3],
    # At the end of an epoch, with dropout.
    "lora": ["--batch-size", 4, "--save-steps", 6, "--lora-rank", 4, "--lora-dropout", 0.3],
}


@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_training_goes_on_and_gives_the_same_bits(sft_folder, tmp_path, kind):
    options = ["--epochs", 3, *KILLED[kind]]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    reference = RankRun(tmp_path / "log", 1, command(sft_folder, whole, *options))
    assert reference.wait() == [0], reference.errors
    every = KILLED[kind][KILLED[kind].index("--save-steps") + 1]
    for step in (every, 2 * every):
        run = RankRun(tmp_path / "log", 1, command(sft_folder, out, *options), pause=0.05)
        kill_after(run, out / "checkpoints" / f"checkpoint-{step}")
        assert not (out / "summary.json").exists() and not (out / "config.json").exists()
        with open(out / "log.jsonl", "a") as file:
            file.write('{"step": 99, "torn')
    run = RankRun(tmp_path / "log", 1, command(sft_folder, out, *options, "--json"))
    assert run.wait() == [0], run.errors
    assert sha256_file(out / "model.safetensors") == sha256_file(whole / "model.safetensors")
    if kind == "lora":
        assert sha256_file(out / "adapter/adapter_model.safetensors") == sha256_file(whole / "adapter/adapter_model.safetensors")
    assert without_times(out) == without_times(whole)
    summary = json.loads(run.outputs[0])
    assert summary["resumed_at"] >= 2 * every
    assert 0 < summary["earlier"]["wall_seconds"] < summary["usage"]["wall_seconds"]
    assert summary["usage"]["tokens_backward"] >= read_json(whole / "summary.json")["usage"]["tokens_backward"]
    assert [row["loss"] for row in summary["history"]] == [row["loss"] for row in read_log(whole) if "loss" in row]
    assert not (out / "checkpoints").exists()


def test_two_processes_train_as_one_with_batches_of_twice_the_size(sft_folder, tmp_path):
    """Rounding apart: losses, held-out losses and weights. The first process alone writes and prints; a kill changes no bit."""
    # 16 trajectories to learn and 6 held out: all batches of the first are full, those of the second are not.
    one = RankRun(
        tmp_path / "log", 1, command(sft_folder, tmp_path / "one", "--max-steps", 8, "--eval-share", 0.27, "--batch-size", 4)
    )
    options = ["--max-steps", 8, "--eval-share", 0.27, "--batch-size", 2, "--save-steps", 3, "--json"]
    two = RankRun(tmp_path / "two-log", 2, command(sft_folder, tmp_path / "two", *options))
    assert one.wait() == [0] and two.wait() == [0, 0], [*one.errors, *two.errors]
    assert json.loads(two.outputs[0])["steps"] == 8
    assert two.outputs[1] == two.errors[1] == ""
    rows = [read_log(tmp_path / name) for name in ("one", "two")]
    assert [row["step"] for row in rows[1]] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    for single, double in zip(*rows, strict=True):
        assert double.get("tokens") == single.get("tokens") and double.get("eval_tokens") == single.get("eval_tokens")
        assert double.keys() == single.keys()
        for key in {"loss", "eval_loss", "grad_norm"} & single.keys():
            assert double[key] == pytest.approx(single[key], rel=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)

    out = tmp_path / "killed"
    run = RankRun(tmp_path / "killed-log", 2, command(sft_folder, out, *options), pause=0.1)
    kill_after(run, out / "checkpoints" / "checkpoint-3")
    run = RankRun(tmp_path / "killed-log", 2, command(sft_folder, out, *options))
    assert run.wait() == [0, 0], run.errors
    assert json.loads(run.outputs[0])["resumed_at"] == 3
    assert sha256_file(out / "model.safetensors") == sha256_file(tmp_path / "two" / "model.safetensors")
    assert without_times(out) == without_times(tmp_path / "two")

    again = RankRun(tmp_path / "again-log", 2, command(sft_folder, out, *options[:-1]))
    assert again.wait() == [0, 0] and "had finished already" in again.outputs[0] and again.outputs[1] == ""
    other = RankRun(tmp_path / "other-log", 1, command(sft_folder, out, *options))
    assert other.wait() == [2] and "processes: 2 → 1" in other.errors[0]


def test_weights_that_get_no_gradient_are_no_hindrance_to_several_processes(sft_folder, tmp_path):
    """The image encoder of a model that is shown no image: two processes, with summed batches and a kill's checkpoints, train as one."""
    tokenizer = tiny_tokenizer()
    model = family_model("gemma3_with_vision", len(tokenizer), dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    weights, losses = {}, {}
    for world, size in ((1, 4), (2, 2)):
        out = tmp_path / f"out-{world}"
        options = ["--max-steps", 3, "--batch-size", size, "--gradient-accumulation", 2, "--save-steps", 1]
        run = RankRun(tmp_path / f"log-{world}", world, command(sft_folder, out, *options, "--model", tmp_path / "model"))
        assert run.wait() == [0] * world, run.errors
        weights[world], losses[world] = load_file(out / "model.safetensors"), [row["loss"] for row in read_log(out)]
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[2][name], value, rtol=1e-3, atol=1e-5)
    before = load_file(tmp_path / "model" / "model.safetensors")
    still = [name for name, value in weights[2].items() if torch.equal(value, before[name])]
    assert still and all("vision" in name or "multi_modal" in name for name in still)


def test_an_error_of_several_processes_is_one_line(sft_folder, tmp_path):
    out = tmp_path / "out"
    run = RankRun(
        tmp_path / "log", 2, command(sft_folder, out, "--learning-rate", 1e30, "--max-grad-norm", 1e30, "--warmup-ratio", 0)
    )
    codes = run.wait()
    assert 2 in codes and 0 not in codes
    [line] = "".join(run.errors).splitlines()
    assert line.startswith("error: step ") and "training diverged" in line
    assert not (out / "config.json").exists()


def test_what_would_keep_a_group_is_imported_before_there_is_one():
    """The helpers' processes are forked from one that has imported everything, so that only a fresh one can tell."""
    code = "import sys, gradprism.training.processes; print('torch.distributed.nn.functional' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


def test_a_torch_without_processes_is_no_error_of_the_import():
    """Stood in for by one that says so, and that has none of the modules."""
    missing = ["torch.distributed.nn", "torch.distributed.nn.functional", "torch.distributed.tensor"]
    code = f"import sys, torch; torch.distributed.is_available = lambda: False; sys.modules.update(dict.fromkeys({missing}))\n"
    code += "from gradprism.training.processes import fsdp_version; print(fsdp_version())"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.slow
@pytest.mark.rare
def test_accelerate_launches_a_training(sft_folder, tmp_path):
    """`accelerate launch --cpu` would start one process; what it starts for devices works on a CPU too."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision", "no"]
    launch += ["--num_machines", "1", "--dynamo_backend", "no", "-m", "gradprism"]
    arguments = command(sft_folder, tmp_path / "out", "--max-steps", 3, "--batch-size", 2, "--lora-rank", 2, model="llama")
    done = subprocess.run([*launch, *arguments], env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path / 'out'}: loss ")
    assert [row["step"] for row in read_log(tmp_path / "out")] == [1, 2, 3]
    assert read_json(tmp_path / "out" / "manifest.json")["processes"] == 2
    assert load_model(str(tmp_path / "out")).num_parameters() == load_model(str(sft_folder / "llama")).num_parameters()
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [("SHARDED_STATE_DICT", ["--lora-rank", 2]), pytest.param("FULL_STATE_DICT", [], marks=pytest.mark.rare)],
)
def test_sharded_weights_are_trained_saved_and_resumed_like_whole_ones(sft_folder, tmp_path, kind, options):
    """FSDP2 over two processes against DDP: the same losses and weights, also after a kill."""
    arguments = ["--max-steps", 6, "--batch-size", 2, "--save-steps", 2, "--eval-share", 0.27, *options]
    whole, out = tmp_path / "whole", tmp_path / "sharded"
    run = RankRun(tmp_path / "log", 2, command(sft_folder, whole, *arguments))
    assert run.wait() == [0, 0], run.errors
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "helpers.fsdp_on_cpu"]
    launch += command(sft_folder, out, *arguments)
    process = subprocess.Popen(launch, env=environment(FSDP_STATE_DICT_TYPE=kind, PAUSE="2"))
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / "checkpoint-2").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.kill()
    process.wait()
    refused = RankRun(tmp_path / "refused", 1, command(sft_folder, out, *arguments))  # the workers live on without their launcher
    assert refused.wait() == [2] and "is being trained by process" in refused.errors[0]
    kill_processes(workers)
    done = subprocess.run(launch, env=environment(FSDP_STATE_DICT_TYPE=kind), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert read_json(out / "summary.json")["resumed_at"] >= 2
    weights, expected = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)
    for sharded, row in zip(read_log(out), read_log(whole), strict=True):
        assert {k: sharded[k] for k in ("step", "loss", "eval_loss") if k in row} == pytest.approx(
            {k: row[k] for k in ("step", "loss", "eval_loss") if k in row}, rel=1e-5
        )
