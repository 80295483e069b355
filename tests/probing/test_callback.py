"""A training with the callback is the training without it, bit for bit, and its logs tell of the concentration."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gradprism.concentration import gini
from gradprism.probing.callback import ProbeCallback
from gradprism.probing.prober import Prober
from gradprism.runtime.errors import ConfigError
from gradprism.trajectories.rendering import Renderer
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROBED = sample_trajectories(7, seed=5)
LEARNED = sample_trajectories(16, seed=6)
QUIET = {"max_steps": 6, "logging_steps": 3, "learning_rate": 1e-2, "report_to": [], "save_strategy": "no", "disable_tqdm": True}


def by_transformers(folder, callbacks):
    rendered = [Renderer(TOKENIZER, 1024).render(t) for t in LEARNED]
    rows = [{"input_ids": r.input_ids.tolist(), "labels": r.input_ids.tolist()} for r in rendered]
    arguments = TrainingArguments(str(folder), per_device_train_batch_size=1, use_cpu=True, seed=3, **QUIET)
    model = tiny_qwen3(len(TOKENIZER))
    model.config.attention_dropout = 0.2  # takes random numbers in every step
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    return Trainer(model, arguments, train_dataset=Dataset.from_list(rows), callbacks=callbacks, processing_class=TOKENIZER)


def by_trl(folder, callbacks):
    rows = Dataset.from_list([{"messages": t.chat()} for t in LEARNED])
    arguments = SFTConfig(
        str(folder),
        per_device_train_batch_size=2,
        use_cpu=True,
        seed=3,
        bf16=False,
        max_length=256,
        assistant_only_loss=True,
        **QUIET,
    )
    return SFTTrainer(tiny_qwen3(len(TOKENIZER)), arguments, train_dataset=rows, callbacks=callbacks, processing_class=TOKENIZER)


class Logs(TrainerCallback):
    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **parts):
        self.rows.append(dict(logs or {}))


@pytest.mark.parametrize("make", [by_transformers, by_trl])
def test_a_training_is_the_same_with_and_without(make, tmp_path):
    plain = make(tmp_path / "plain", [])
    plain.train()
    heard = Logs()
    callback = ProbeCallback(PROBED, every=2, metrics=("gini", "cv"))
    before = tiny_qwen3(len(TOKENIZER))
    trainer = make(tmp_path / "probed", [callback, heard])
    trainer.train()
    weights, reference = trainer.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(weights[name].cpu(), reference[name].cpu()) for name in reference)
    losses = [[row["loss"] for row in each.state.log_history if "loss" in row] for each in (plain, trainer)]
    assert losses[0] == losses[1] and len(losses[0]) == 2

    rows = [row for row in trainer.state.log_history if "probe/gini_mean" in row]
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    rendered = [Renderer(TOKENIZER, 1024).render(t) for t in PROBED]
    for row, model in ((rows[0], before), (rows[-1], trainer.model.cpu())):
        scores = gini(Prober(model).probe(rendered).norms)
        assert row["probe/gini_mean"] == pytest.approx(scores.mean(), rel=1e-4)
        assert row["probe/gini_std"] == pytest.approx(scores.std(), rel=1e-3)
    assert rows[0]["probe/gini_split_agreement"] == rows[0]["probe/cv_split_agreement"] == 1.0
    assert all(0 <= row["probe/cv_split_agreement"] <= 1 for row in rows)
    assert rows[0]["probe/gini_mean"] != rows[-1]["probe/gini_mean"]
    assert any(row.get("probe/gini_mean") == rows[1]["probe/gini_mean"] for row in heard.rows)


def test_the_split_agreement_is_the_share_that_goes_the_same_way(tmp_path):
    callback = ProbeCallback(PROBED, TOKENIZER, every=1)
    norms = np.random.default_rng(0).random((4, 14))
    told = []
    callback.log = told.append
    for k, rows in enumerate(([0, 1, 2, 3], [0, 1, 2, 3], [1, 0, 3, 2])):
        callback._norms = lambda model, rows=rows: (norms[rows], {})
        callback._probe(TrainerState(global_step=k), None)
    above = gini(norms) > np.median(gini(norms))
    assert [row["probe/gini_split_agreement"] for row in told] == [1.0, 1.0, float((above == above[[1, 0, 3, 2]]).mean())]


def test_trackers_are_told_through_the_trainer(tmp_path):
    heard = Logs()
    callback = ProbeCallback(PROBED, every=3)
    trainer = by_transformers(tmp_path, [heard, callback])
    callback.log = trainer.log
    trainer.train()
    assert len([row for row in heard.rows if "probe/gini_mean" in row]) == 3


def test_what_cannot_be_probed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 1 step"):
        ProbeCallback(PROBED, every=0)
    with pytest.raises(ConfigError, match="metric 'size': choose one of"):
        ProbeCallback(PROBED, metrics=("size",))
    with pytest.raises(ConfigError, match="no metrics; give one or more of gini"):
        ProbeCallback(PROBED, metrics=())
    with pytest.raises(ConfigError, match="no trajectories"):
        ProbeCallback([])
    sharded = type("Arguments", (), {"fsdp": ["full_shard"], "deepspeed": None})
    with pytest.raises(ConfigError, match="no process holds the whole model"):
        ProbeCallback(PROBED).on_train_begin(sharded, None, None)  # pyright: ignore[reportArgumentType]
