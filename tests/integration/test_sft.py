"""SFT through TRL: which tokens are learnt, and what a kill, several processes, adapters and packing do not change."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from gradprism.experiments import pipeline, steps
from gradprism.experiments.config import build_config
from gradprism.models import check_model_name, load_model
from gradprism.runtime.errors import ConfigError, FolderInUseError, MissingDependencyError, ModelError
from gradprism.runtime.files import read_json, sha256_file, write_json
from gradprism.training import checkpoints, sft
from gradprism.training.adapters import merged_state, peft_config
from gradprism.training.callbacks import LogCallback
from gradprism.training.checkpoints import claim_training_folder, finished_training, latest_checkpoint, sole_training
from gradprism.training.sft import SftConfig, build_dataset, keeps_packed_apart, split_held_out, train_sft
from gradprism.training.tracking import read_log
from gradprism.trajectories.readers import write_messages_jsonl
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer, load_tokenizer
from helpers.cli import assert_refused
from helpers.ranks import RankRun, environment, kill_processes
from helpers.tiny import sample_trajectories, tiny_llama, tiny_qwen3, tiny_tokenizer

N = 22


@pytest.fixture(autouse=True, scope="module")
def no_bars():
    """The command line turns them off before it loads what draws them; here that is loaded already."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder with the models `qwen3` and `llama`, and `corpus.jsonl`."""
    folder, tokenizer = tmp_path_factory.mktemp("sft"), tiny_tokenizer()
    for name, model in (("qwen3", tiny_qwen3(len(tokenizer))), ("llama", tiny_llama(len(tokenizer)))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_messages_jsonl(folder / "corpus.jsonl", sample_trajectories(N))
    return folder


def command(shared: Path, out: Path, *options: object, model: str = "qwen3") -> list[str]:
    files = ["--model", shared / model, "--data", shared / "corpus.jsonl", "--out", out]
    return list(map(str, ["sft", *files, "--device", "cpu", "--learning-rate", 1e-3, *options]))


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def without_times(out: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "second" not in k and "runtime" not in k} for row in read_log(out)]


# What is learnt


def test_exactly_the_tokens_are_learnt_that_the_probe_counts(tokenizer, tmp_path):
    """The labels of the batches that the trainer feeds are the response mask of the renderer, token for token."""
    renderer = Renderer(tokenizer, 60)
    trajectories = sample_trajectories(7, seed=2)
    answered = (trajectories[0].messages[0], Message("assistant", "look", train=False), *trajectories[0].messages)
    trajectories.append(Trajectory("untrained-turn", answered))
    rendered = renderer.render_all(trajectories)
    trainer = sft.build_trainer(tiny_qwen3(len(tokenizer)), renderer, build_dataset(rendered), SftConfig(batch_size=4), tmp_path)
    expected = {tuple(r.input_ids): r.response_mask for r in rendered}
    seen = 0
    for batch in trainer.get_train_dataloader():
        for ids, labels, attention in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(attention.sum())
            mask = expected[tuple(ids[:length].tolist())]
            assert ((labels != -100).numpy() == np.pad(mask, (0, len(ids) - length))).all()
            assert (labels[labels != -100] == ids[labels != -100]).all()
            seen += 1
    assert seen == len(trajectories)


def loss_by_hand(model, renderer: Renderer, trajectories: list[Trajectory]) -> tuple[float, int]:
    """Mean loss over all response tokens of all trajectories, and their number."""
    total, count = 0.0, 0
    for rendered in map(renderer.render, trajectories):
        ids = torch.tensor(rendered.input_ids, dtype=torch.long)
        with torch.no_grad():
            logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        losses = -logprobs[torch.arange(len(ids) - 1), ids[1:]][torch.tensor(rendered.response_mask[1:])]
        total, count = total + losses.sum().item(), count + len(losses)
    return total / count, count


def test_the_loss_is_the_mean_over_response_tokens(tokenizer, tmp_path):
    renderer, model = Renderer(tokenizer, 512), tiny_llama(len(tokenizer))
    [trajectory] = sample_trajectories(1, seed=4)
    by_hand, count = loss_by_hand(model, renderer, [trajectory])
    summary = train_sft(model, renderer, [trajectory], SftConfig(epochs=1, batch_size=1), tmp_path / "out")
    assert summary["first_loss"] == pytest.approx(by_hand, abs=1e-4)
    [row] = summary["history"]
    assert (row["response_tokens"], row["tokens"]) == (count, len(renderer.render(trajectory).input_ids))
    assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    assert row["response_tokens_per_second"] == pytest.approx(row["response_tokens"] / row["seconds"])


@pytest.mark.parametrize("option", [None, "bf16", "activation_checkpointing"])
def test_a_checkpoint_is_written_that_has_learnt(tokenizer, tmp_path, option):
    renderer, model = Renderer(tokenizer, 512), tiny_qwen3(len(tokenizer))
    config = SftConfig(epochs=8, learning_rate=5e-3, batch_size=4).model_copy(update={option: True} if option else {})
    summary = train_sft(model, renderer, sample_trajectories(8, seed=1), config, tmp_path / "out")
    assert summary["steps"] == len(summary["history"]) == 16
    assert summary["last_loss"] < 0.8 * summary["first_loss"]
    loaded = load_model(str(tmp_path / "out"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    assert load_tokenizer(tmp_path / "out").chat_template == tokenizer.chat_template
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"manifest.json", "log.jsonl", "summary.json", "config.json", "model.safetensors"} <= names
    assert not names & {"checkpoints", "README.md", "training_args.bin"}
    assert not [name for name in names if name.startswith(".") or name.endswith((".bin", ".pt"))]


def test_steps_may_be_given_in_place_of_epochs_and_accumulated(tokenizer, tmp_path):
    """Four batches of 2 that are summed give the step of one batch of 8."""
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        model, out = tiny_qwen3(len(tokenizer)), tmp_path / str(size)
        config = SftConfig(max_steps=3, learning_rate=1e-3, batch_size=size, gradient_accumulation=accumulation)
        summary = train_sft(model, Renderer(tokenizer, 512), sample_trajectories(16), config, out)
        results.append([row["loss"] for row in summary["history"]])
    assert len(results[0]) == 3
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


# The held-out loss


def test_the_held_out_loss_is_the_mean_over_all_its_response_tokens(tokenizer, tmp_path):
    renderer, model = Renderer(tokenizer, 512), tiny_llama(len(tokenizer))
    trajectories, held = sample_trajectories(8, seed=1), sample_trajectories(5, seed=9)
    before, count = loss_by_hand(model, renderer, held)
    config = SftConfig(max_steps=5, learning_rate=1e-3, batch_size=3, eval_steps=2)
    summary = train_sft(model, renderer, trajectories, config, tmp_path / "out", held_out=held)
    rows = [row for row in read_log(tmp_path / "out") if "eval_loss" in row]
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert {row["eval_tokens"] for row in rows} == {count}
    assert rows[0]["eval_loss"] == summary["first_held_out_loss"] == pytest.approx(before, abs=1e-5)
    after, _ = loss_by_hand(load_model(str(tmp_path / "out")), renderer, held)
    assert rows[-1]["eval_loss"] == summary["last_held_out_loss"] == pytest.approx(after, abs=1e-5)
    assert after < before
    assert (summary["trajectories"], summary["held_out"]) == (8, 5)


def test_the_held_out_share_depends_on_ids_and_seed_alone():
    trajectories = sample_trajectories(40)
    config = SftConfig(eval_share=0.2, seed=3)
    learnt, held = split_held_out(trajectories, (), config)
    assert (len(learnt), len(held)) == (32, 8)
    assert {t.id for t in learnt}.isdisjoint(t.id for t in held)
    assert {t.id for t in split_held_out(trajectories[::-1], (), config)[1]} == {t.id for t in held}
    assert {t.id for t in split_held_out(trajectories, (), SftConfig(eval_share=0.2))[1]} != {t.id for t in held}
    assert split_held_out(trajectories, (), SftConfig()) == (trajectories, [])


# What a kill leaves


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
def test_a_killed_training_goes_on_and_gives_the_same_bits(shared, tmp_path, kind):
    options = ["--epochs", 3, *KILLED[kind]]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    reference = RankRun(tmp_path / "log", 1, command(shared, whole, *options))
    assert reference.wait() == [0], reference.errors
    every = KILLED[kind][KILLED[kind].index("--save-steps") + 1]
    for step in (every, 2 * every):
        run = RankRun(tmp_path / "log", 1, command(shared, out, *options), pause=0.05)
        kill_after(run, out / "checkpoints" / f"checkpoint-{step}")
        assert not (out / "summary.json").exists() and not (out / "config.json").exists()
        with open(out / "log.jsonl", "a") as file:
            file.write('{"step": 99, "torn')
    run = RankRun(tmp_path / "log", 1, command(shared, out, *options, "--json"))
    assert run.wait() == [0], run.errors
    assert sha256_file(out / "model.safetensors") == sha256_file(whole / "model.safetensors")
    if kind == "lora":
        assert sha256_file(out / "adapter/adapter_model.safetensors") == sha256_file(whole / "adapter/adapter_model.safetensors")
    assert without_times(out) == without_times(whole)
    summary = json.loads(run.outputs[0])
    assert summary["resumed_at"] >= 2 * every
    assert summary["earlier_cost"]["wall_seconds"] > 0
    assert summary["tokens_backward"] >= read_json(whole / "summary.json")["tokens_backward"]
    assert [row["loss"] for row in summary["history"]] == [row["loss"] for row in read_log(whole) if "loss" in row]
    assert not (out / "checkpoints").exists()


def interrupted(step: int, monkeypatch) -> None:
    """Makes trainings end with `KeyboardInterrupt` after a step."""
    on_log = LogCallback.on_log

    def stop(self, args, state, control, logs=None, **kwargs):
        on_log(self, args, state, control, logs, **kwargs)
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(LogCallback, "on_log", stop)


def test_a_model_that_is_half_written_is_none_and_is_written_again(tokenizer, tmp_path, monkeypatch):
    renderer, trajectories = Renderer(tokenizer, 512), sample_trajectories(8)
    config = SftConfig(max_steps=4, learning_rate=1e-3, batch_size=4, save_steps=2)
    train_sft(tiny_qwen3(len(tokenizer)), renderer, trajectories, config, tmp_path / "whole")
    out, rename, renamed = tmp_path / "out", Path.rename, []

    def die(self, target):
        if self.parent.name == ".partial-model":
            renamed.append(self.name)
            if len(renamed) == 3:
                raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            train_sft(tiny_qwen3(len(tokenizer)), renderer, trajectories, config, out)
    assert "model.safetensors" in {p.name for p in out.rglob("*")}
    with pytest.raises(ModelError, match=r"no config\.json"):
        check_model_name(str(out))
    assert finished_training(out) is None
    summary = train_sft(tiny_qwen3(len(tokenizer)), renderer, trajectories, config, out)
    assert (summary["resumed_at"], summary["reused"]) == (2, False)
    assert sha256_file(out / "model.safetensors") == sha256_file(tmp_path / "whole" / "model.safetensors")
    assert not list(out.glob(".partial*"))


def test_a_training_that_has_finished_is_not_repeated(tokenizer, tmp_path, monkeypatch):
    renderer, trajectories, out = Renderer(tokenizer, 512), sample_trajectories(8), tmp_path / "out"
    config = SftConfig(max_steps=3, batch_size=4, save_steps=1, keep_checkpoints=True)
    summary = train_sft(tiny_qwen3(len(tokenizer)), renderer, trajectories, config, out)
    # None at the last step: the model itself follows.
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["checkpoint-1", "checkpoint-2"]
    monkeypatch.setattr(sft, "build_trainer", None)
    again = train_sft(tiny_qwen3(len(tokenizer)), renderer, trajectories, config, out)
    assert (summary["reused"], again["reused"]) == (False, True)
    assert again["history"] == summary["history"]
    for key in ("steps", "first_loss", "last_loss", "tokens_forward"):
        assert again[key] == summary[key]


def test_old_checkpoints_are_deleted_while_training_goes_on(tokenizer, tmp_path, monkeypatch):
    out, config = tmp_path / "out", SftConfig(max_steps=8, batch_size=4, save_steps=1)
    interrupted(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_sft(tiny_qwen3(len(tokenizer)), Renderer(tokenizer, 512), sample_trajectories(8), config, out)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-5"]
    assert not list(out.rglob("README.md")) and not list(out.rglob("training_args.bin"))


def test_torn_checkpoints_are_passed_over(tokenizer, tmp_path, monkeypatch):
    out, config = tmp_path / "out", SftConfig(max_steps=8, batch_size=4, save_steps=1)
    interrupted(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_sft(tiny_qwen3(len(tokenizer)), Renderer(tokenizer, 512), sample_trajectories(8), config, out)
    folder = out / "checkpoints"
    last = folder / "checkpoint-2"
    assert latest_checkpoint(folder) == last
    shutil.copytree(last, folder / ".partial-checkpoint-9")
    shutil.copytree(last, folder / "checkpoint-10")
    (folder / "checkpoint-10" / "optimizer.pt").unlink()
    shutil.copytree(last, folder / "checkpoint-11")
    (folder / "checkpoint-11" / "model.safetensors").write_bytes(b"torn")
    (folder / "checkpoint-12").mkdir()
    (folder / "checkpoint-13").touch()
    assert latest_checkpoint(folder) == last
    (last / "rng_state.pth").unlink()
    assert latest_checkpoint(folder) == folder / "checkpoint-1"
    assert latest_checkpoint(tmp_path / "none") is None


# The folder


def test_a_folder_keeps_to_one_training(tokenizer, tmp_path):
    renderer, out = Renderer(tokenizer, 512), tmp_path / "out"
    config = SftConfig(max_steps=1, batch_size=4)

    def train(config=config, n=8, **options):
        return train_sft(tiny_qwen3(len(tokenizer)), renderer, sample_trajectories(n), config, out, **options)

    train()
    with pytest.raises(FolderInUseError, match=r"another training \(config\.learning_rate: 1e-05 → 0\.1\); choose another --out"):
        train(config.model_copy(update={"learning_rate": 0.1}))
    with pytest.raises(FolderInUseError, match=r"another training \(data_sha256: "):
        train(n=7)
    with pytest.raises(FolderInUseError, match="is not empty"):
        train(on_existing="fail")
    with pytest.raises(ConfigError, match="choose resume, replace or fail"):
        train(on_existing="ask")  # pyright: ignore[reportArgumentType]
    (out / "mine.txt").write_text("kept")
    summary = train(config.model_copy(update={"max_steps": 2}), on_existing="replace")
    assert (summary["steps"], summary["reused"]) == (2, False)
    assert [row["step"] for row in read_log(out)] == [1, 2]
    assert (out / "mine.txt").exists()
    # What changes no weight may change.
    assert train(config.model_copy(update={"max_steps": 2, "keep_checkpoints": True}))["reused"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thing").touch()
    for choice in ("resume", "replace"):
        with pytest.raises(FolderInUseError, match="is in use and no training"):
            claim_training_folder(tmp_path, {"command": "sft"}, choice)
    write_json(tmp_path / "manifest.json", {"tasks_sha256": "an evaluation"})
    with pytest.raises(FolderInUseError, match="is in use and no training"):
        claim_training_folder(tmp_path, {"command": "sft"})
    with pytest.raises(FolderInUseError, match="is not a folder"):
        claim_training_folder(tmp_path / "thing", {"command": "sft"})
    assert claim_training_folder(tmp_path / "new", {"command": "sft"}) is None
    with pytest.raises(FolderInUseError, match='command: "sft" → "rl"'):
        claim_training_folder(tmp_path / "new", {"command": "rl"})


def test_one_command_at_a_time_trains_into_a_folder(tokenizer, tmp_path):
    renderer, out = Renderer(tokenizer, 512), tmp_path / "out"
    with sole_training(out, None), pytest.raises(FolderInUseError, match=r"is being trained by process \d+ on \S+; let it end"):
        train_sft(tiny_qwen3(len(tokenizer)), renderer, sample_trajectories(4), SftConfig(max_steps=1), out)
    assert not out.exists()
    assert train_sft(tiny_qwen3(len(tokenizer)), renderer, sample_trajectories(4), SftConfig(max_steps=1), out)["steps"] == 1
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_manifest_says_what_was_trained(tokenizer, tmp_path):
    train_sft(tiny_llama(len(tokenizer)), Renderer(tokenizer, 99), sample_trajectories(4), SftConfig(max_steps=1), tmp_path / "out")
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert (manifest["command"], manifest["config"]["max_steps"], manifest["context_length"]) == ("sft", 1, 99)
    assert {"weights_sha256", "config_sha256", "tokenizer_sha256", "template_sha256", "data_sha256", "versions"} <= manifest.keys()
    assert SftConfig(**manifest["config"]) == SftConfig(max_steps=1)


# What is refused


def test_a_loss_that_is_no_number_ends_the_training_at_its_step(tokenizer, tmp_path):
    config = SftConfig(epochs=9, batch_size=2, learning_rate=1e20, max_grad_norm=1e30, warmup_ratio=0, save_steps=1)
    out = tmp_path / "out"
    with pytest.raises(ModelError, match=r"^step [23]: training diverged: the (loss|norm of the gradient) is (nan|inf); lower"):
        train_sft(tiny_qwen3(len(tokenizer)), Renderer(tokenizer, 512), sample_trajectories(8, seed=1), config, out)
    assert not (out / "config.json").exists()
    assert len(read_log(out)) < 3
    with pytest.raises(ModelError, match=r"training diverged: .* is not finite"):  # the last step's own harm
        last = config.model_copy(update={"epochs": 1, "max_steps": 1, "learning_rate": 1e38})
        train_sft(tiny_qwen3(len(tokenizer)), Renderer(tokenizer, 512), sample_trajectories(2), last, tmp_path / "last")
    assert not (tmp_path / "last" / "model.safetensors").exists()


def test_settings_and_data_that_cannot_be_met_are_refused_before_training(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "build_trainer", None)
    renderer = Renderer(tokenizer, 512)

    def refused(kind, match, trajectories=None, vocabulary=None, held_out=(), **settings):
        with pytest.raises(kind, match=match):
            model = tiny_qwen3(vocabulary or len(tokenizer))
            data = sample_trajectories(8) if trajectories is None else trajectories
            train_sft(model, renderer, data, SftConfig(**settings), tmp_path / "out", held_out=held_out)
        assert not (tmp_path / "out").exists()

    refused(ConfigError, "no trajectories to train on", [])
    refused(ModelError, "past the model's 40 embeddings; the tokenizer is not the model's", vocabulary=40)
    refused(ConfigError, "not both", held_out=sample_trajectories(2), eval_share=0.1)
    refused(ConfigError, "nothing is held out", eval_steps=3)
    refused(ConfigError, "leaves none of 8 trajectories", eval_share=0.99)
    for tracker in ("tensorboard", "trackio", "wandb"):
        monkeypatch.setattr(sft.check_trackers.__globals__["importlib"].util, "find_spec", lambda name: None)
        refused(
            MissingDependencyError, f"track: {tracker} is not installed; install it with: pip install {tracker}", track=[tracker]
        )
    with pytest.raises(ConfigError, match="training takes the first device it sees"):
        train_sft(None, renderer, sample_trajectories(1), SftConfig(), tmp_path / "out", device="cuda:1")
    with pytest.raises(ValueError, match="lora_dropout needs lora_rank"):
        SftConfig(lora_dropout=0.1)


def test_trackers_reach_the_trainer(tokenizer, tmp_path, monkeypatch):
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((args.report_to, args.run_name, Path(args.output_dir), sorted(logs or {})))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(sft, "check_trackers", lambda config: None)
    config = SftConfig(max_steps=1, batch_size=4, track=("wandb",))
    train_sft(tiny_qwen3(len(tokenizer)), Renderer(tokenizer, 512), sample_trajectories(4), config, tmp_path / "out")
    report_to, run_name, folder, names = seen[0]
    assert (report_to, run_name, folder) == (["wandb"], "out", tmp_path / "out")
    assert {"loss", "tokens_per_second", "response_tokens", "learning_rate"} <= set(names)
    trainer = sft.build_trainer(
        tiny_qwen3(len(tokenizer)),
        Renderer(tokenizer, 512),
        build_dataset(Renderer(tokenizer, 512).render_all(sample_trajectories(4))),
        SftConfig(),
        tmp_path,
    )
    assert trainer.args.report_to == []


# Adapters


def test_an_adapter_is_saved_and_merged_into_a_whole_model(tokenizer, tmp_path):
    base = tmp_path / "base"
    tiny_llama(len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = SftConfig(epochs=8, batch_size=4, learning_rate=1e-2, lora_rank=4, lora_alpha=12, lora_targets=("q_proj", "down_proj"))
    out = tmp_path / "out"
    summary = train_sft(load_model(str(base)), Renderer(tokenizer, 512), sample_trajectories(8), config, out)
    assert summary["last_loss"] < summary["first_loss"]
    assert summary["parameters_trained"] == 2 * 4 * ((32 + 32) + (80 + 32))
    merged, adapted = load_model(str(out)), load_model(str(out / "adapter"))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, adapted(input_ids=ids).logits)
    before, after = load_model(str(base)).state_dict(), merged.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")}
    assert not (out / "adapter" / "README.md").exists()
    for targets in (("lm_head",), ("nothing",)):
        with pytest.raises(ConfigError, match=r"^lora_targets: "):
            peft_config(SftConfig(lora_rank=2, lora_targets=targets), load_model(str(base)))
    assert peft_config(SftConfig(), None) is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merging_equals_pefts(family):
    from peft import get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    def build():
        torch.manual_seed(0)
        if family == "llama":
            return tiny_llama(64)
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))

    model = build()
    model = get_peft_model(model, peft_config(SftConfig(lora_rank=3, lora_alpha=5.0), model))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    merged = merged_state(model, model.state_dict())
    expected = model.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    assert any(not torch.equal(value, build().state_dict()[name]) for name, value in expected.items())
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value)


# Packing


def test_packed_rows_keep_trajectories_apart_and_give_the_same_loss(tokenizer, tmp_path):
    """One batch of everything, packed and not: the same tokens have a loss, in positions that start anew, and its mean is the same."""
    trajectories, renderer = sample_trajectories(8, seed=3), Renderer(tokenizer, 200)
    rendered = renderer.render_all(trajectories)
    packed = SftConfig(max_steps=2, batch_size=8, packing="on", learning_rate=1e-3, warmup_ratio=0)
    trainer = sft.build_trainer(tiny_qwen3(len(tokenizer)), renderer, build_dataset(rendered), packed, tmp_path, packs=True)
    assert len(trainer.train_dataset) < len(trajectories)
    [batch] = trainer.get_train_dataloader()
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], batch["input_ids"].shape[1]]
    expected = {tuple(r.input_ids.tolist()): r.response_mask for r in rendered}
    for start, end in zip(starts, ends, strict=True):
        mask = expected.pop(tuple(batch["input_ids"][0, start:end].tolist()))
        assert batch["position_ids"][0, start:end].tolist() == list(range(end - start))
        assert ((batch["labels"][0, start + 1 : end] != -100).numpy() == mask[1:]).all()
    assert not expected
    losses = []
    for config in (packed, packed.model_copy(update={"packing": "off"})):
        summary = train_sft(tiny_qwen3(len(tokenizer)), renderer, trajectories, config, tmp_path / config.packing)
        losses.append([row["loss"] for row in summary["history"]])
        assert summary["history"][0]["tokens"] == sum(len(r.input_ids) for r in rendered)
        assert (summary["packed_rows"] is not None) == (config.packing == "on")
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_packing_is_refused_where_trajectories_would_see_one_another(tokenizer, tmp_path):
    """Attention of `transformers` 5 makes a mask of positions that start anew; OPT and Bloom have masks of their own."""
    from transformers import BloomConfig, BloomForCausalLM, OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    size = len(tokenizer)
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4}
    opt = OPTForCausalLM(OPTConfig(vocab_size=size, hidden_size=32, ffn_dim=64, word_embed_proj_dim=32, eos_token_id=5, **layers))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=size, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=5))
    opt.eval()
    bloom.eval()
    for model in (opt, bloom):
        assert not keeps_packed_apart(model)
        with pytest.raises(ConfigError, match=r"packing: with (sdpa|eager) attention .* lets packed trajectories see one another"):
            train_sft(model, Renderer(tokenizer, 128), sample_trajectories(4), SftConfig(packing="on"), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    for model in (tiny_qwen3(size), tiny_llama(size)):
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation(attention)
            assert keeps_packed_apart(model)
            assert not sft.packs_rows(model, SftConfig(packing="auto"))
        model.config._attn_implementation_internal = "flash_attention_2"
        assert sft.packs_rows(model, SftConfig(packing="auto"))


# Several processes


def test_two_processes_train_as_one_with_batches_of_twice_the_size(shared, tmp_path):
    """Rounding apart: losses, held-out losses and weights. The first process alone writes and prints; a kill changes no bit."""
    # 16 trajectories to learn and 6 held out: all batches of the first are full, those of the second are not.
    one = RankRun(tmp_path / "log", 1, command(shared, tmp_path / "one", "--max-steps", 8, "--eval-share", 0.27, "--batch-size", 4))
    options = ["--max-steps", 8, "--eval-share", 0.27, "--batch-size", 2, "--save-steps", 3, "--json"]
    two = RankRun(tmp_path / "two-log", 2, command(shared, tmp_path / "two", *options))
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
    run = RankRun(tmp_path / "killed-log", 2, command(shared, out, *options), pause=0.1)
    kill_after(run, out / "checkpoints" / "checkpoint-3")
    run = RankRun(tmp_path / "killed-log", 2, command(shared, out, *options))
    assert run.wait() == [0, 0], run.errors
    assert json.loads(run.outputs[0])["resumed_at"] == 3
    assert sha256_file(out / "model.safetensors") == sha256_file(tmp_path / "two" / "model.safetensors")
    assert without_times(out) == without_times(tmp_path / "two")

    again = RankRun(tmp_path / "again-log", 2, command(shared, out, *options[:-1]))
    assert again.wait() == [0, 0] and "had finished already" in again.outputs[0] and again.outputs[1] == ""
    other = RankRun(tmp_path / "other-log", 1, command(shared, out, *options))
    assert other.wait() == [2] and "processes: 2 → 1" in other.errors[0]


def test_an_error_of_several_processes_is_one_line(shared, tmp_path):
    out = tmp_path / "out"
    run = RankRun(tmp_path / "log", 2, command(shared, out, "--learning-rate", 1e30, "--max-grad-norm", 1e30, "--warmup-ratio", 0))
    codes = run.wait()
    assert 2 in codes and 0 not in codes
    [line] = "".join(run.errors).splitlines()
    assert line.startswith("error: step ") and "training diverged" in line
    assert not (out / "config.json").exists()


@pytest.mark.slow
def test_accelerate_launches_a_training(shared, tmp_path):
    """`accelerate launch --cpu` would start one process; what it starts for devices works on a CPU too."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision", "no"]
    launch += ["--num_machines", "1", "--dynamo_backend", "no", "-m", "gradprism"]
    arguments = command(shared, tmp_path / "out", "--max-steps", 3, "--batch-size", 2, "--lora-rank", 2, model="llama")
    done = subprocess.run([*launch, *arguments], env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path / 'out'}: loss ")
    assert [row["step"] for row in read_log(tmp_path / "out")] == [1, 2, 3]
    assert read_json(tmp_path / "out" / "manifest.json")["processes"] == 2
    assert load_model(str(tmp_path / "out")).num_parameters() == load_model(str(shared / "llama")).num_parameters()
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [("FULL_STATE_DICT", []), ("SHARDED_STATE_DICT", ["--lora-rank", 2])])
def test_sharded_weights_are_trained_saved_and_resumed_like_whole_ones(shared, tmp_path, kind, options):
    """FSDP2 over two processes against DDP: the same losses and weights, also after a kill."""
    arguments = ["--max-steps", 6, "--batch-size", 2, "--save-steps", 2, "--eval-share", 0.27, *options]
    whole, out = tmp_path / "whole", tmp_path / "sharded"
    run = RankRun(tmp_path / "log", 2, command(shared, whole, *arguments))
    assert run.wait() == [0, 0], run.errors
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "helpers.fsdp_on_cpu"]
    launch += command(shared, out, *arguments)
    process = subprocess.Popen(launch, env=environment(FSDP_STATE_DICT_TYPE=kind, PAUSE="2"))
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / "checkpoint-2").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.kill()
    process.wait()
    refused = RankRun(tmp_path / "refused", 1, command(shared, out, *arguments))  # the workers live on without their launcher
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


# The run


def test_the_stage_of_a_run_goes_on_and_tells_what_all_attempts_cost(shared, tmp_path, monkeypatch):
    write_messages_jsonl(tmp_path / "route-stage" / "route" / "sft.jsonl", sample_trajectories(8))
    values = {
        "name": "x",
        "model": {"path": str(shared / "qwen3"), "context_length": 512},
        "corpus": {"files": [str(shared / "corpus.jsonl")]},
        "sft": {"max_steps": 4, "batch_size": 4, "save_steps": 2, "lora_targets": ["all-linear"]},
    }
    config = build_config(values, tmp_path, "test")
    folder, inputs = tmp_path / "stage", {"route": tmp_path / "route-stage"}
    folder.mkdir()
    with monkeypatch.context() as patch:
        interrupted(3, patch)
        with pytest.raises(KeyboardInterrupt):
            steps.sft(config, folder, inputs)
    summary = steps.sft(config, folder, inputs)
    assert (summary["resumed_at"], summary["steps"], len(summary["history"])) == (2, 4, 4)
    assert summary["earlier_cost"]["wall_seconds"] > 0
    assert summary["headline"].endswith("on 8 trajectories")
    assert load_model(str(folder))
    assert next(stage for stage in pipeline.build_graph(config).stages if stage.name == "sft").resumes


def test_options_of_the_command(shared, tmp_path, cli):
    out = tmp_path / "out"
    options = ["--max-steps", 1, "--lora-rank", 2, "--lora-targets", "q_proj", "--lora-targets", "v_proj"]
    code, printed, said = cli(*command(shared, out, *options, "--json"))
    assert (code, said) == (0, "")
    assert json.loads(printed)["steps"] == 1
    config = read_json(out / "manifest.json")["config"]
    assert (config["lora_targets"], config["track"]) == (["q_proj", "v_proj"], [])
    code, printed, _ = cli(*command(shared, out, *options))
    assert (code, printed.startswith(f"{out}: had finished already: loss ")) == (0, True)
    write_messages_jsonl(tmp_path / "held.jsonl", sample_trajectories(3, seed=8))
    code, printed, _ = cli(*command(shared, tmp_path / "held", "--max-steps", 1, "--eval-data", tmp_path / "held.jsonl"))
    assert code == 0 and ", held out 4." in printed
    assert_refused(cli(*command(shared, out, "--track", "paper")), "--track", "'tensorboard', 'trackio' or 'wandb'; got 'paper'")
    assert_refused(cli(*command(shared, out, "--lora-alpha", 4)), "lora_alpha needs lora_rank")
    assert_refused(cli(*command(shared, out, "--max-steps", 2)), "holds another training", "config.max_steps: 1 → 2")
    assert_refused(cli(*command(shared, out, "--on-existing", "fail")), "is not empty")
    assert_refused(cli(*command(shared, tmp_path / "new", "--attention", "paper")), "cannot be loaded")
    assert_refused(cli(*command(shared, tmp_path / "new", "--context-length", 4)), "past the context length 4")
    assert_refused(cli(*command(shared, tmp_path / "new", "--device", "cuda:1")), "training takes the first device it sees")
    (tmp_path / "empty.jsonl").touch()
    assert_refused(cli("sft", "--model", shared / "qwen3", "--data", tmp_path / "empty.jsonl", "--out", tmp_path / "new"), "empty")
    assert not (tmp_path / "new").exists()
