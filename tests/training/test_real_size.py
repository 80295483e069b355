"""What trains 8B models on a node, on models of a few thousand parameters and two CPU processes; vLLM by a stand-in."""

import copy
import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl.generation import vllm_generation

from gradprism.environments.pool import SessionPool
from gradprism.experiments.config import load_config
from gradprism.models import load_model
from gradprism.rollouts.config import RolloutConfig
from gradprism.rollouts.player import Player
from gradprism.rollouts.vllm import TrainedVllm
from gradprism.runtime.files import read_json, sha256_file, write_jsonl
from gradprism.training.folder import read_log
from gradprism.training.loss import CORRECTION_LIMIT
from gradprism.training.rl_config import RlConfig
from gradprism.training.rounds import Rounds
from gradprism.training.tasks import TaskStream
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.rendering import Renderer
from helpers.broken_games import BrokenGames
from helpers.ranks import RankRun, environment, kill_processes
from helpers.tiny import sample_trajectories, tiny_llama, tiny_qwen3, tiny_tokenizer
from training.test_rl import GROUP, TASK, Given, expected_gradients, gradients_of, training_on

CONFIGS = sorted(Path("configs").glob("*-*b.toml"))
# What makes an 8B run one of seconds; everything else stays the file's.
SMALL = [
    "model.dtype=float32",
    "model.context_length=512",
    "rl.rounds=2",
    "rl.tasks_per_round=2",
    "rl.updates_per_round=1",
    "rl.rollouts_per_task=4",
    "rl.max_steps=3",
    "rl.max_action_tokens=6",
    "rl.vllm=off",
    "rl.bf16=false",
    "rl.evaluate_tasks=4",
    "rl.evaluate_every=1",
    "rl.save_every=1",
    "rl.invalid_penalty=0.1",
    "rl.reward=environment",
    "rl.learning_rate=1e-3",
]
ENVIRONMENTS = {
    "alfworld": ('environment={name="alfworld", options={difficulty="tiny"}}', {"id": "tiny/train/pick_and_place_simple/%d"}),
    "broken": ('environment={name="helpers.broken_games:BrokenGames", options={by_length=true}}', {"id": "train/%d"}),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("real-size"), tiny_tokenizer()
    for name, model in (("qwen3", tiny_qwen3(len(tokenizer))), ("llama", tiny_llama(len(tokenizer)))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, (_, task) in ENVIRONMENTS.items():
        write_jsonl(
            folder / f"{name}.jsonl", [{"id": str(i), "prompt": [], "task": {"env": name, "id": task["id"] % i}} for i in range(4)]
        )
    return folder


def command(shared: Path, out: Path, config: str, env: str, model: str, *options: str) -> list[str]:
    split = "unseen" if env == "alfworld" else "test"  # the file's are of the file's environment
    splits = [f"rl.evaluate_split={split}", f"evaluation.splits={{{split}=4}}"]
    sets = [part for value in [*SMALL, *splits, ENVIRONMENTS[env][0]] for part in ("--set", value)]
    files = ["--model", str(shared / model), "--tasks", str(shared / f"{env}.jsonl"), "--out", str(out)]
    return ["rl", "--config", f"configs/{config}.toml", *sets, *files, "--device", "cpu", "--workers", "1", *options]


def without_times(out: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "second" not in k and "runtime" not in k} for row in read_log(out)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_are_valid_and_say_what_was_published(path):
    config = load_config(path)
    rl = config.rl
    assert (rl.tasks_per_round, rl.rollouts_per_task, rl.rounds, rl.learning_rate, rl.kl, rl.clip, rl.gamma) == (
        16,
        8,
        150,
        1e-6,
        0.01,
        0.2,
        0.95,
    )
    assert (rl.reward, rl.reward_scale, rl.malformed_penalty, rl.temperature) == ("success", 10, 0.1, 1.0)
    assert rl.max_steps == (50 if "alfworld" in path.stem else 15) == config.evaluation.max_steps
    assert config.evaluation.temperature == 0.4 and sum(config.evaluation.splits.values()) == 256
    assert rl.prompt == config.evaluation.prompt
    assert config.model.path in ("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct")


def test_there_are_four_configurations():
    assert len(CONFIGS) == 4


def test_accelerate_reads_its_configuration():
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config: Any = load_config_from_file("configs/accelerate/fsdp-8gpu.yaml")
    assert (config.num_processes, config.mixed_precision, config.distributed_type) == (8, "bf16", "FSDP")
    assert config.fsdp_config["fsdp_version"] == 2
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= known.keys()


def kill_after(run: RankRun, wanted: Path) -> None:
    deadline = time.monotonic() + 200
    while not wanted.exists():
        assert time.monotonic() < deadline and all(process.is_alive() for process in run.processes), run.errors
        time.sleep(0.01)
    kill_processes([process.pid for process in run.processes])
    for process in run.processes:
        process.join()


@pytest.mark.parametrize(("world", "model", "env"), [(1, "qwen3", "alfworld"), (2, "llama", "broken")])
def test_a_killed_rl_goes_on_to_the_same_bits(shared, tmp_path, world, model, env):
    arguments = command(shared, tmp_path / "whole", "alfworld-qwen3-8b", env, model, "--rounds", "4", "--json")
    whole = RankRun(tmp_path / "log", world, arguments)
    assert whole.wait() == [0] * world, whole.errors
    summary = json.loads(whole.outputs[0])
    assert summary["counts"]["episodes"] == 4 * 2 * 4 and not summary["reused"]
    assert summary["usage"]["environment_steps"] <= 4 * 2 * 4 * 3
    assert all(text == "" for text in whole.outputs[1:])  # the first process alone prints
    log = without_times(tmp_path / "whole")
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in log if "evaluation/success" in row] == [0, 1, 2, 3, 4]
    assert all(row["episodes"] == 8 for row in log if "loss" in row)
    assert read_json(tmp_path / "whole" / "manifest.json")["processes"] == world

    out = tmp_path / "out"
    arguments[arguments.index("--out") + 1] = str(out)
    run = RankRun(tmp_path / "killed", world, arguments)
    kill_after(run, out / "checkpoints" / "checkpoint-1")
    assert not (out / "summary.json").exists() and not (out / "config.json").exists()
    again = RankRun(tmp_path / "again", world, arguments)
    assert again.wait() == [0] * world, again.errors
    assert sha256_file(out / "model.safetensors") == sha256_file(tmp_path / "whole" / "model.safetensors")
    assert without_times(out) == log
    told = json.loads(again.outputs[0])
    assert told["counts"]["episodes"] == summary["counts"]["episodes"]
    # A random model is refused whatever it says in ALFWorld, and learns nothing of it.
    assert env == "alfworld" or any(
        not torch.equal(value, load_file(shared / model / "model.safetensors")[name])
        for name, value in load_file(out / "model.safetensors").items()
    )


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.parametrize(("config", "model"), [("webshop-llama3.1-8b", "llama"), ("alfworld-qwen3-8b", "qwen3")])
def test_accelerate_launches_sft(shared, tmp_path, config, model):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision", "no"]
    launch += ["--num_machines", "1", "--dynamo_backend", "no", "-m", "gradprism"]
    write_messages_jsonl(tmp_path / "sft.jsonl", sample_trajectories(11))
    sets = [part for value in ("model.dtype=float32", "model.context_length=512", "sft.bf16=false") for part in ("--set", value)]
    files = ["--model", str(shared / model), "--data", str(tmp_path / "sft.jsonl"), "--out", str(tmp_path / "out")]
    arguments = ["sft", "--config", f"configs/{config}.toml", *sets, *files, "--device", "cpu", "--epochs", "2", "--json"]
    done = subprocess.run([*launch, *arguments], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # of the first process alone
    assert summary["examples"] == 11 and summary["steps"] == [row["step"] for row in read_log(tmp_path / "out")][-1]
    assert read_json(tmp_path / "out" / "manifest.json")["processes"] == 2
    assert load_model(str(tmp_path / "out")).num_parameters() == load_model(str(shared / model)).num_parameters()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "model"),
    [pytest.param("webshop-llama3.1-8b", "llama", marks=pytest.mark.rare), ("alfworld-qwen3-8b", "qwen3")],
)
def test_accelerate_launches_rl(shared, tmp_path, config, model):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision", "no"]
    launch += ["--num_machines", "1", "--dynamo_backend", "no", "-m", "gradprism"]
    arguments = command(shared, tmp_path / "out", config, "alfworld", model)
    done = subprocess.run([*launch, *arguments], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out'}: 16 episodes in 2 rounds on 4 tasks") and done.stdout.count("\n") == 1
    assert load_model(str(tmp_path / "out")).num_parameters() == load_model(str(shared / model)).num_parameters()


@pytest.mark.slow
@pytest.mark.rare
def test_a_sharded_model_without_vllm_is_refused(shared, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "helpers.fsdp_on_cpu"]
    arguments = command(shared, tmp_path / "out", "alfworld-qwen3-8b", "broken", "qwen3")
    done = subprocess.run([*launch, *arguments], env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    assert "error: a sharded model cannot play" in done.stderr


@pytest.mark.slow
@pytest.mark.rare
def test_a_sharded_model_learns_from_vllms_episodes_what_whole_copies_learn(shared, tmp_path):
    """FSDP2 against DDP over two processes, with the published divergence: the reference model is the start, on every process."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "helpers.vllm_on_cpu"]
    more = ["--vllm", "colocate", "--reward", "environment", "--env-option", "by_length=true", "--evaluate-every", "0"]
    logs, weights = {}, {}
    for name, variables in (("whole", {}), ("sharded", {"SHARDED": "1"})):
        arguments = command(shared, tmp_path / name, "alfworld-qwen3-8b", "broken", "qwen3", *more)
        variables |= {"WEIGHTS": str(tmp_path / f"weights-{name}")}
        done = subprocess.run([*launch, *arguments], env=environment(**variables), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{tmp_path / name}: 16 episodes in 2 rounds on 4 tasks") and done.stdout.count("\n") == 1
        logs[name], weights[name] = read_log(tmp_path / name), load_file(tmp_path / name / "model.safetensors")
    whole = {path.read_text() for path in (tmp_path / "weights-whole").iterdir()}
    assert len(list((tmp_path / "weights-whole").iterdir())) == 2 and len(whole) == 1  # both processes hold the same
    assert {path.read_text() for path in (tmp_path / "weights-sharded").iterdir()} == {"sharded"}
    for row, sharded in zip(logs["whole"], logs["sharded"], strict=True):
        for key in ("loss", "kl", "grad_norm", "reward", "episodes", "tokens"):
            assert sharded[key] == pytest.approx(row[key], rel=1e-3, abs=1e-6), key
    assert logs["sharded"][0]["kl"] == pytest.approx(0, abs=1e-6) and logs["sharded"][1]["kl"] > 1e-6
    for name, value in weights["whole"].items():
        torch.testing.assert_close(weights["sharded"][name], value, rtol=1e-3, atol=1e-5)


def test_groups_that_processes_would_share_are_refused(shared, tmp_path):
    run = RankRun(
        tmp_path / "log", 2, command(shared, tmp_path / "out", "alfworld-qwen3-8b", "broken", "qwen3", "--tasks-per-round", "3")
    )
    assert 2 in run.wait()
    [line] = "".join(run.errors).splitlines()
    assert line.startswith("error: tasks_per_round 3: must be a multiple of the 2 processes")


class StandIn:
    """Answers as TRL's `VLLMGeneration` does, greedily and with the model's own log-probabilities."""

    def __init__(self, model, processing_class, **_) -> None:
        self.model, self.end, self.temperature, self.synced = model, processing_class.eos_token_id, 1.0, 0
        self.asked: list[float] = []

    def sync_weights(self) -> None:
        self.synced += 1

    sync = sync_weights

    def generate(self, prompts, images, num_generations):
        assert images is None and num_generations == 1
        self.asked.append(self.temperature)
        completions, logprobs = [], []
        for prompt in prompts:
            ids, of_ids = list(prompt), []
            while len(of_ids) < 5 and (not of_ids or ids[-1] != self.end):
                with torch.no_grad():
                    row = self.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                ids.append(int(row.argmax()))
                of_ids.append([float(row.max())])
            completions.append(ids[len(prompt) :])
            logprobs.append(of_ids)
        return prompts, completions, logprobs, None


def test_vllm_plays_episodes_through_trls_client(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    model = tiny_qwen3(len(tokenizer), seed=3)
    monkeypatch.setattr(vllm_generation, "VLLMGeneration", StandIn)
    vllm = TrainedVllm(model, None, tokenizer, url=None, memory=0.3, max_tokens=5, context_length=256)
    config = RolloutConfig(max_steps=3, max_action_tokens=5, context_length=256)
    renderer, games = Renderer(tokenizer, 256), BrokenGames(str(tmp_path))
    with SessionPool(games, 1) as pool:
        tasks = games.tasks("train", 5)
        by_engine = Player(model, renderer, pool, config, lambda slots: vllm.generator(0.25)).play(tasks)
        own = Player(model, renderer, pool, config.model_copy(update={"temperature": 0.0})).play(tasks)
    assert [e.actions for e in by_engine] == [e.actions for e in own]
    pairs = zip(by_engine, own, strict=True)
    for a, b in (turns for pair in pairs for turns in zip(pair[0].turns, pair[1].turns, strict=True)):
        assert a.completion_ids == b.completion_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert set(vllm._generation.asked) == {0.25}  # pyright: ignore[reportAttributeAccessIssue]


def test_what_another_engine_sampled_is_weighed_by_the_ratio_of_probabilities(tmp_path):
    """Sampled log-probabilities 0.3 too high: every gradient counts exp(-0.3) times; far too low: no more than C times."""
    tokenizer = tiny_tokenizer()
    config = RlConfig(rounds=1, tasks_per_round=1, rollouts_per_task=4, max_grad_norm=1e9, learning_rate=1e-9)
    for shift in (0.3, -5.0):
        model = tiny_llama(len(tokenizer), seed=5)
        episodes = copy.deepcopy(GROUP)
        for made in episodes:
            ids = [token for turn in made.turns for token in (*turn.prompt_ids, *turn.completion_ids)]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            at = 0
            for turn in made.turns:
                at += len(turn.prompt_ids)
                turn.logprobs = [logits[at + i - 1, token].item() + shift for i, token in enumerate(turn.completion_ids)]
                at += len(turn.completion_ids)
        if shift > 0:
            episodes[0].turns[0].logprobs[0] = math.nan  # the engine could not tell one
        rows = Rounds(TaskStream([TASK], 0), Given(episodes), config, 1).next().rows
        training = training_on(model, tokenizer, episodes, config, tmp_path)
        training.vllm = engine = StandIn(model, tokenizer)
        [seen] = gradients_of(training, model)
        assert engine.synced == 1
        factor = min(math.exp(-shift), CORRECTION_LIMIT)
        assert factor != math.exp(-shift) or shift > 0
        weighed = [
            dataclasses.replace(
                row,
                advantages=[a * (1 if math.isnan(p) else factor) for a, p in zip(row.advantages, row.logprobs, strict=True)],
            )
            for row in rows
        ]
        for name, gradient in expected_gradients(tiny_llama(len(tokenizer), seed=5), weighed, "dapo").items():
            torch.testing.assert_close(seen[name], gradient, atol=2e-6, rtol=2e-3)
