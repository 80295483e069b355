"""Dry runs of SFT and RL, against what a training then does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradprism import estimate
from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.play import play
from gradprism.environments.pool import SessionPool
from gradprism.environments.prompts import PromptTemplate
from gradprism.estimate import (
    DEVICES,
    GIB,
    UTILISATION,
    Estimate,
    add_memory,
    estimate_rl,
    estimate_sft,
    hardware,
    imagined,
    sample_episodes,
)
from gradprism.evaluation.agents import RandomPolicy
from gradprism.models import ModelSpec, load_model
from gradprism.runtime.errors import ConfigError, ModelError
from gradprism.runtime.files import write_jsonl
from gradprism.training.adapters import add_adapters
from gradprism.training.footprint import Footprint
from gradprism.training.loop import Loop
from gradprism.training.rl import train_rl
from gradprism.training.rl_config import RlConfig
from gradprism.training.rows import row_lengths
from gradprism.training.settings import LoraSettings
from gradprism.training.sft import train_sft
from gradprism.training.sft_config import SftConfig
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer, load_tokenizer
from helpers.cli import assert_refused
from helpers.families import FAMILIES, family_model
from helpers.tiny import sample_trajectories, tiny_gemma3, tiny_llama, tiny_mistral, tiny_qwen3, tiny_tokenizer

CONFIGS = sorted(Path("configs").glob("*-*b.toml"))
TINY_ROOMS = ["--set", 'environment={name="alfworld", options={difficulty="tiny"}}']
TINY_ROOMS += [
    "--set",
    "rl.evaluate_split=unseen",
    "--set",
    "evaluation.splits={unseen=4}",
]  # the file's are of the file's environment


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("estimate"), tiny_tokenizer()
    models = {"qwen3": tiny_qwen3(len(tokenizer)), "llama": tiny_llama(len(tokenizer), layers=3), "gemma3": tiny_gemma3()}
    for name, model in (models | {"mistral": tiny_mistral()}).items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_messages_jsonl(folder / "corpus.jsonl", sample_trajectories(21))
    tasks = AlfworldEnvironment("tiny").tasks("train", 5)
    write_jsonl(folder / "rl.jsonl", [{"id": t.id, "prompt": [], "task": t.reference()} for t in tasks])
    return folder


def machine(devices=1, tflops=None):
    return hardware(devices, tflops, "cpu")


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3", "mistral"])
def test_parameters_are_those_of_the_loaded_model(shared, name):
    model = load_model(str(shared / name))
    counted = Footprint(ModelSpec(str(shared / name)), LoraSettings(), bf16=False)
    assert counted.parameters == counted.trained == model.num_parameters()
    assert counted.trained_tensors == len(list(model.parameters()))
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in n)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert counted.linear == matrices + tied * model.get_input_embeddings().weight.numel()

    settings = LoraSettings(lora_rank=3)
    adapted = add_adapters(model, settings)
    counted = Footprint(ModelSpec(str(shared / name), "bfloat16"), settings, bf16=True)
    assert counted.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert counted.trained_element == 4 and counted.element == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted_without_its_weights(tmp_path, family):
    model = family_model(family, 150, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    counted = Footprint(ModelSpec(str(tmp_path)), LoraSettings(), bf16=False)
    assert counted.parameters == model.num_parameters()
    assert 0 < counted.linear < counted.parameters + 150 * 32 and counted.layers == 2
    assert counted.activations(100, True) < counted.activations(100, False)


def test_real_models_have_the_parameters_that_their_makers_give(tmp_path):
    from transformers import LlamaConfig, Qwen3Config

    Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ).save_pretrained(tmp_path / "qwen3")
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ).save_pretrained(tmp_path / "llama")
    for name, parameters in (("qwen3", 8_190_735_360), ("llama", 8_030_261_248)):
        counted = Footprint(ModelSpec(str(tmp_path / name), "bfloat16"), LoraSettings(), bf16=True, sharded=True)
        assert counted.parameters == parameters
        config, told = RlConfig(bf16=True, kl=0.1), Estimate()
        add_memory(told, counted, config, machine(8), 100)
        assert told["weights"].value == told["gradients"].value == parameters * 4 / 8 / GIB
        assert told["reference model"].value == parameters * 2 / 8 / GIB
        # Each process loads the model in bfloat16, copies it, and has the weights that are trained in float32 before it shards.
        assert told["host memory"].value == 8 * parameters * (4 + 2) / GIB
        assert counted.key_value == 2 * counted.layers * 8 * 128


@pytest.mark.parametrize("name", ["qwen3", "llama"])
@pytest.mark.parametrize("tokens", [40, 100])
def test_activations_are_what_a_forward_pass_saves(shared, name, tokens):
    counted = Footprint(ModelSpec(str(shared / name)), LoraSettings(), bf16=False)
    model = load_model(str(shared / name)).train()
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    assert counted.activations(tokens, False) == sum(t.untyped_storage().nbytes() for t in saved.values())
    assert counted.activations(tokens, True) < counted.activations(tokens, False)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}])
def test_weights_gradients_and_optimizer_are_the_tensors_that_training_holds(shared, tmp_path, monkeypatch, options):
    name, config, held = str(shared / "llama"), SftConfig(max_steps=1, batch_size=2, save_steps=0, **options), {}

    def size(tensors):
        return sum(t.numel() * t.element_size() for t in tensors)

    update, save_model = Loop.update, Loop.save_model

    def watch(self, *shares):
        held["gradients"] = size(p.grad for p in self.model.parameters() if p.grad is not None)
        return update(self, *shares)

    def watch_end(self, tokenizer):
        held["weights"] = size(self.model.parameters())
        held["optimizer"] = size(value for state in self.optimizer.state.values() for value in state.values())
        save_model(self, tokenizer)

    monkeypatch.setattr(Loop, "update", watch)
    monkeypatch.setattr(Loop, "save_model", watch_end)
    train_sft(load_model(name), load_tokenizer(name), sample_trajectories(4), config, out=tmp_path / "out", device="cpu")
    counted = Footprint(ModelSpec(name), config, bf16=False)
    add_memory(told := Estimate(), counted, config, machine(), 100)
    assert {key: told[key].value * GIB for key in held} == pytest.approx(held, rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 2, "batch_size": 4, "gradient_accumulation": 2},
        {"epochs": 1, "batch_size": 2, "packing": "on"},
        {"epochs": 3, "batch_size": 8, "eval_share": 0.2, "lora_rank": 2},
        {"max_steps": 6, "batch_size": 7},
    ],
)
def test_tokens_and_steps_are_those_of_sft(shared, tmp_path, options):
    name, config = str(shared / "qwen3"), SftConfig.model_validate(options)
    renderer, trajectories = Renderer(load_tokenizer(name), 256), sample_trajectories(21)
    told = estimate_sft(ModelSpec(name), renderer, trajectories, [], config, machine(tflops=1.0))
    done = train_sft(
        load_model(name), renderer.tokenizer, trajectories, config, out=tmp_path / "out", context_length=256, device="cpu"
    )
    assert told["optimizer steps"].value == done.steps
    assert told["tokens"].value == done.usage.tokens_backward
    assert told["trajectories"].value == done.examples
    assert told["trained parameters"].value == done.parameters_trained
    assert told["rows"].value == done.counts["rows"]


def test_steps_of_several_devices_share_the_rows(shared):
    name = str(shared / "qwen3")
    renderer = Renderer(load_tokenizer(name), 256)
    config = SftConfig(epochs=3, batch_size=2, gradient_accumulation=2)
    one, eight = (estimate_sft(ModelSpec(name), renderer, sample_trajectories(64), [], config, machine(n, 1.0)) for n in (1, 8))
    assert (one["optimizer steps"].value, eight["optimizer steps"].value) == (48, 6)
    assert eight["hours"].value == pytest.approx(one["hours"].value / 8)
    assert eight["weights"].value == one["weights"].value / 8


def test_episodes_and_steps_are_those_of_rl(shared, tmp_path):
    name, environment = str(shared / "qwen3"), AlfworldEnvironment("tiny")
    config = RlConfig(
        rounds=2,
        tasks_per_round=2,
        rollouts_per_task=4,
        updates_per_round=2,
        max_steps=3,
        max_action_tokens=5,
        evaluate_every=1,
        evaluate_tasks=4,
        evaluate_sampled=True,
        kl=0.1,
    )
    renderer, tasks = Renderer(load_tokenizer(name), 512), environment.tasks("train", 5)
    told = estimate_rl(ModelSpec(name), renderer, environment, tasks, config, machine(), 1)
    assert "measured" in told["rollout hours"].source and "measured" in told["throughput"].source
    played = train_rl(
        load_model(name),
        renderer.tokenizer,
        environment,
        tasks,
        config.model_copy(update={"context_length": 512}),
        out=tmp_path / "out",
        workers=1,
        device="cpu",
    )
    assert told["episodes"].value == played.counts["episodes"] == 16
    assert told["optimizer steps"].value == played.steps == 4
    assert told["evaluation episodes"].value == 2 * 4 * len(played.evaluations)
    assert told["tasks"].value == played.examples
    with pytest.raises(ConfigError, match="no tasks to train on"):
        estimate_rl(ModelSpec(name), renderer, environment, [], config, machine(), 1)
    # A random model never wins, so every episode takes all its steps; how many tokens it says is chance.
    assert told["environment steps"].value == played.usage.environment_steps == 16 * 3
    assert told["trained tokens"].value == pytest.approx(played.usage.tokens_backward, rel=0.1)


@pytest.mark.parametrize("prompt", [PromptTemplate(), PromptTemplate(history=2, form="tags", admissible=True)])
def test_random_episodes_have_the_tokens_that_they_would_have_in_training(prompt):
    environment, renderer = AlfworldEnvironment("tiny"), Renderer(load_tokenizer("models/alfworld-tiny"), 1024)
    config, tasks = RlConfig(max_steps=4, max_action_tokens=16, prompt=prompt), environment.tasks("train", 3)
    with SessionPool(environment, 1) as pool:
        played = play(pool, tasks, [RandomPolicy(task.id) for task in tasks], config.max_steps)
    for one in played:
        episode = imagined(one, renderer, config)
        assert 1 <= len(episode.turns) == len(one.actions) <= 4
        read = sum(len(turn.prompt_ids) for turn in episode.turns)
        said, rows = sum(len(turn.completion_ids) for turn in episode.turns), row_lengths([episode])
        assert sum(rows) == read + said
        if prompt.history is None:
            messages = [Message("user", one.steps[0].observation)]
            for action, step in zip(one.actions, one.steps[1:], strict=True):
                messages += [Message("assistant", action), Message("user", step.observation)]
            whole = renderer.render(Trajectory("x", tuple(messages[:-1]), {}, ""))
            assert rows == [len(whole.input_ids)]
            assert said == whole.response_mask.sum()
        else:
            assert len(rows) == len(episode.turns) and said == 16 * len(rows)


def test_an_episode_ends_where_the_context_does():
    environment, renderer = AlfworldEnvironment("tiny"), Renderer(load_tokenizer("models/alfworld-tiny"), 1024)
    config = RlConfig(max_steps=50, max_action_tokens=16, context_length=130)
    with SessionPool(environment, 1) as pool:
        sampled, _, _ = sample_episodes(None, renderer, pool, environment.tasks("train", 2), config)
    assert all(row_lengths([episode])[0] <= 130 and 0 < len(episode.turns) < 50 for episode in sampled)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_has_a_dry_run(cli, shared, tmp_path, path):
    model = ["--model", shared / ("qwen3" if "qwen3" in path.stem else "llama"), "--set", "model.context_length=1024"]
    common = ["--config", path, *model, "--devices", 8, "--device-tflops", 100, "--out", tmp_path / "out", "--dry-run", "--json"]
    results = [
        cli("sft", *common, "--data", shared / "corpus.jsonl"),
        cli("rl", *common, *TINY_ROOMS, "--tasks", shared / "rl.jsonl", "--workers", 1, "--max-steps", 3),
    ]
    for code, out, err in results:
        assert (code, err) == (0, ""), err
        figures = json.loads(out)
        assert all(figure["source"] and np.isfinite(figure["value"]) for figure in figures.values())
        assert figures["throughput"] == {"value": 100.0, "unit": "TFLOP/s", "source": "--device-tflops"}
        assert {"weights", "gradients", "optimizer", "activations", "device memory", "hours"} <= figures.keys()
    sft, rl = (json.loads(out) for _, out, _ in results)
    assert sft["optimizer steps"]["value"] == 3  # 21 trajectories, 64 a step, 3 epochs
    assert rl["episodes"]["value"] == 150 * 16 * 8
    assert rl["vLLM"]["value"] == pytest.approx(0.3 * 80)
    assert "reference model" in rl and "reference model" not in sft
    assert not (tmp_path / "out").exists()


def test_a_dry_run_for_people(cli, shared, tmp_path):
    code, out, err = cli(
        "sft", "--model", shared / "qwen3", "--data", shared / "corpus.jsonl", "--out", tmp_path / "out", "--dry-run", "--epochs", 1
    )
    assert code == 0, err
    lines = {line[:22].strip(): line for line in out.splitlines()}
    assert "the configuration, on the meta device" in lines["parameters"]
    assert "measured: forward and backward" in lines["throughput"]
    assert not (tmp_path / "out").exists()


def test_the_device_is_this_machines_or_assumed(monkeypatch):
    assumed = machine(8)
    assert (assumed.devices, assumed.sharded, assumed.gib) == (8, True, 80.0)
    assert assumed.tflops == UTILISATION * DEVICES["A100"][0] and "A100, assumed: no GPU here" in assumed.source
    properties = type("Properties", (), {"name": "NVIDIA H100 80GB HBM3", "total_memory": 79 * GIB})
    monkeypatch.setattr(estimate, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    found = machine()
    assert (found.tflops, found.gib, found.measures) == (UTILISATION * 989, 79.0, False)


def test_what_cannot_be_estimated_is_one_line(cli, shared, tmp_path, monkeypatch):
    rl = ["rl", "--model", shared / "qwen3", "--tasks", shared / "rl.jsonl", "--out", tmp_path / "out", "--dry-run"]
    rl += ["--env-option", "difficulty=tiny", "--device", "cpu"]
    assert_refused(cli(*rl, "--devices", 3), "tasks_per_round 16: must be a multiple of the 3 devices")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert_refused(cli(*rl, "--devices", 4), "the launcher has started 2 processes")
    (shared / "odd").mkdir()
    (shared / "odd" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match="odd"):
        Footprint(ModelSpec(str(shared / "odd")), LoraSettings(), bf16=False)
