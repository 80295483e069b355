"""A training's folder: one training, whole checkpoints, and what a kill leaves in it."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gradprism.checkpoints import check_model_name
from gradprism.models import load_model
from gradprism.runtime.errors import ConfigError, DataError, FolderInUseError, ModelError
from gradprism.runtime.files import read_json, sha256_file, write_json, write_jsonl
from gradprism.runtime.folders import exclusive_lock
from gradprism.training import folder, sft
from gradprism.training.folder import claim_training, finished_training, latest_checkpoint, read_log
from gradprism.training.frame import LOCK
from gradprism.training.loop import Loop
from gradprism.training.sft import train_sft
from gradprism.training.sft_config import SftConfig
from helpers.tiny import sample_trajectories, tiny_llama, tiny_qwen3


def interrupted(step: int, monkeypatch) -> None:
    """Makes trainings end with `KeyboardInterrupt` after a step."""
    log = Loop.log

    def stop(self, figures, note=""):
        log(self, figures, note)
        if self.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "log", stop)


def test_a_model_that_is_half_written_is_none_and_is_written_again(tokenizer, tmp_path, monkeypatch):
    trajectories = sample_trajectories(8)
    config = SftConfig(max_steps=4, learning_rate=1e-3, batch_size=4, save_steps=2)
    train_sft(tiny_qwen3(len(tokenizer)), tokenizer, trajectories, config, out=tmp_path / "whole")
    out, rename, renamed = tmp_path / "out", Path.rename, []

    def die(self, target):
        if self.parent.name == ".model.tmp":
            renamed.append(self.name)
            if len(renamed) == 3:
                raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(folder.Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            train_sft(tiny_qwen3(len(tokenizer)), tokenizer, trajectories, config, out=out)
    assert "model.safetensors" in {p.name for p in out.rglob("*")}
    with pytest.raises(ModelError, match="is a training that has not finished"):
        check_model_name(str(out))
    assert finished_training(out) is None
    summary = train_sft(tiny_qwen3(len(tokenizer)), tokenizer, trajectories, config, out=out)
    assert (summary.resumed_at, summary.reused) == (2, False)
    assert sha256_file(out / "model.safetensors") == sha256_file(tmp_path / "whole" / "model.safetensors")
    assert not list(out.glob(".*.tmp"))


def test_a_training_that_has_finished_is_not_repeated(tokenizer, tmp_path, monkeypatch):
    trajectories, out = sample_trajectories(8), tmp_path / "out"
    config = SftConfig(max_steps=3, batch_size=4, save_steps=1, keep_checkpoints=True)
    summary = train_sft(tiny_qwen3(len(tokenizer)), tokenizer, trajectories, config, out=out)
    # None at the last step: the model itself follows.
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["checkpoint-1", "checkpoint-2"]
    monkeypatch.setattr(sft, "Loop", None)
    again = train_sft(tiny_qwen3(len(tokenizer)), tokenizer, trajectories, config, out=out)
    assert (summary.reused, again.reused) == (False, True)
    assert again.history == summary.history
    assert replace(again, reused=False, earlier=summary.earlier) == summary
    assert again.earlier == summary.usage


def test_old_checkpoints_are_deleted_while_training_goes_on(tokenizer, tmp_path, monkeypatch):
    out, config = tmp_path / "out", SftConfig(max_steps=8, batch_size=4, save_steps=1)
    interrupted(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(8), config, out=out)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-5"]
    assert not [
        path for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".md")
    ]  # no pickle, no form to fill in


def test_torn_checkpoints_are_passed_over(tokenizer, tmp_path, monkeypatch):
    out, config = tmp_path / "out", SftConfig(max_steps=8, batch_size=4, save_steps=1)
    interrupted(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(8), config, out=out)
    within = out / "checkpoints"
    last = within / "checkpoint-2"
    assert latest_checkpoint(within) == last
    shutil.copytree(last, within / ".checkpoint.tmp")
    shutil.copytree(last, within / "checkpoint-10")
    (within / "checkpoint-10" / "rank-0.json").unlink()
    shutil.copytree(last, within / "checkpoint-11")
    (within / "checkpoint-11" / "rank-0.safetensors").write_bytes(b"torn")
    (within / "checkpoint-12").mkdir()
    (within / "checkpoint-13").touch()
    assert latest_checkpoint(within) == last
    (last / "rank-0.safetensors").unlink()
    assert latest_checkpoint(within) == within / "checkpoint-1"
    assert latest_checkpoint(tmp_path / "none") is None


def test_a_folder_keeps_to_one_training(tokenizer, tmp_path):
    out = tmp_path / "out"
    config = SftConfig(max_steps=1, batch_size=4)

    def train(config=config, n=8, **options):
        return train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(n), config, out=out, **options)

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
    assert (summary.steps, summary.reused) == (2, False)
    assert [row["step"] for row in read_log(out)] == [1, 2]
    assert (out / "mine.txt").exists()
    # What changes no weight may change.
    assert train(config.model_copy(update={"max_steps": 2, "keep_checkpoints": True})).reused


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thing").touch()
    for choice in ("resume", "replace"):
        with pytest.raises(FolderInUseError, match="is in use and holds no training"):
            claim_training(tmp_path, {"command": "sft"}, choice)
    write_json(tmp_path / "manifest.json", {"tasks_sha256": "an evaluation"})
    with pytest.raises(FolderInUseError, match="is in use and holds no training"):
        claim_training(tmp_path, {"command": "sft"})
    with pytest.raises(FolderInUseError, match="is not a folder"):
        claim_training(tmp_path / "thing", {"command": "sft"})
    assert claim_training(tmp_path / "new", {"command": "sft"}) == (0, None)
    assert claim_training(tmp_path / "new", {"command": "rl"}) == (0, None), "what has not begun holds no folder"
    for file in ("log.jsonl", "attempts.jsonl"):
        out = tmp_path / file.partition(".")[0]
        claim_training(out, {"command": "rl"})
        write_jsonl(out / file, [{"step": 1}])
        with pytest.raises(FolderInUseError, match='command: "rl" → "sft"'):
            claim_training(out, {"command": "sft"})


def test_one_command_at_a_time_trains_into_a_folder(tokenizer, tmp_path):
    out = tmp_path / "out"
    in_use = pytest.raises(FolderInUseError, match=r"is being trained by process \d+ on \S+; let it end")
    with exclusive_lock(out, LOCK, "is being trained"), in_use:
        train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(4), SftConfig(max_steps=1), out=out)
    assert not out.exists()
    assert train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(4), SftConfig(max_steps=1), out=out).steps == 1
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_manifest_says_what_was_trained(tokenizer, tmp_path):
    train_sft(
        tiny_llama(len(tokenizer)),
        tokenizer,
        sample_trajectories(4),
        SftConfig(max_steps=1),
        out=tmp_path / "out",
        context_length=99,
    )
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert (manifest["command"], manifest["config"]["max_steps"], manifest["context_length"]) == ("sft", 1, 99)
    assert {"weights_sha256", "config_sha256", "tokenizer_sha256", "template_sha256", "data_sha256", "versions"} <= manifest.keys()
    assert SftConfig(**manifest["config"]) == SftConfig(max_steps=1)


def test_a_training_that_goes_on_tells_what_all_attempts_cost(tokenizer, tmp_path, monkeypatch):
    out, config = tmp_path / "out", SftConfig(max_steps=4, batch_size=4, save_steps=2)
    with monkeypatch.context() as patch:
        interrupted(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(8), config, out=out)
    summary = train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(8), config, out=out)
    assert (summary.resumed_at, summary.steps, len(summary.history)) == (2, 4, 4)
    assert 0 < summary.earlier.wall_seconds < summary.usage.wall_seconds
    assert 0 < summary.earlier.tokens_backward < summary.usage.tokens_backward
    assert load_model(str(out))


def test_loading_and_saving_print_nothing_and_leave_the_users_settings(tmp_path):
    """In a process of its own: what other libraries print at their first import is part of it."""
    code = """
import logging
from pathlib import Path
import gradprism as gp
from transformers.utils import logging as bars
from gradprism.training.folder import save_model
import gradprism.training.adapters
path = gp.shipped("alfworld-tiny")
save_model(gp.ModelSpec(str(path)).load(), gp.load_tokenizer(path), Path("saved"))
print(bars.is_progress_bar_enabled(), logging.getLogger("bitsandbytes").level)
"""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=keep, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["True", "0"], "")


@pytest.mark.parametrize("content", [{}, [], {"usage": 3, "earlier": {}}, {"usage": {}, "earlier": {}, "warnings": None}, {"x": 1}])
def test_a_summary_that_is_none_is_refused_in_one_line(tmp_path, content):
    write_json(tmp_path / "summary.json", content)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(DataError, match=r"summary\.json: is no summary of a training[^\n]*$"):
        finished_training(tmp_path)
