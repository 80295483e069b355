"""SFT: which tokens are trained on, with what loss, and what is refused before anything is trained."""

import json
import re
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from datasets import Dataset
from safetensors import SafetensorError

from gradprism.models import load_model
from gradprism.runtime.errors import ConfigError, MissingDependencyError, ModelError, WriteError
from gradprism.runtime.files import read_json
from gradprism.training import frame, settings, sft
from gradprism.training.adapters import peft_config
from gradprism.training.folder import read_log
from gradprism.training.sft import keeps_packed_apart, train_sft
from gradprism.training.sft_config import SftConfig
from gradprism.training.sft_data import Plan, fingerprint, loss_weights, tensors, token_weights
from gradprism.trajectories.corpus import load_corpus, write_messages_jsonl
from gradprism.trajectories.parallel import render_all
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer, load_tokenizer
from helpers.cli import assert_refused
from helpers.families import family_model
from helpers.tiny import sample_trajectories, tiny_llama, tiny_qwen3
from helpers.training import loss_by_hand, sft_command

# What is trained on


@pytest.mark.parametrize("packed", [False, True])
def test_exactly_the_tokens_are_trained_on_that_the_probe_counts(tokenizer, packed):
    """What is scored in the batches of an epoch is the response mask of the renderer, token for token, each trajectory once."""
    trajectories = sample_trajectories(7, seed=2)
    answered = (trajectories[0].messages[0], Message("assistant", "look", weight=0.0), *trajectories[0].messages)
    trajectories.append(Trajectory("untrained-turn", answered))
    rendered = render_all(Renderer(tokenizer, 60), trajectories)
    expected = [r.response_mask[1:].tolist() for r in rendered]
    plan = Plan(len(rendered), 1, SftConfig(batch_size=3))
    for step in range(plan.steps_per_epoch):
        [batch] = plan.batches_of(step)
        inputs, chosen = tensors([[rendered[i]] for i in batch], torch.device("cpu"), packed)
        ids = [rendered[i].input_ids.tolist() for i in batch]
        if packed:
            assert inputs["input_ids"][0].tolist() == list(chain(*ids))
            assert inputs["position_ids"][0].tolist() == [n for row in ids for n in range(len(row))]
            assert chosen[0].tolist() == list(chain(*([False, *expected[i]] for i in batch)))
        else:
            lengths = inputs["attention_mask"].sum(1).tolist()
            assert [row[:n] for row, n in zip(inputs["input_ids"].tolist(), lengths, strict=True)] == ids
            assert [row[:n] for row, n in zip(chosen.tolist(), lengths, strict=True)] == [[False, *expected[i]] for i in batch]
            assert not (chosen & ~inputs["attention_mask"].bool()).any()
        for i in batch:
            expected[i] = []
    assert not any(expected)


def test_the_loss_is_the_mean_over_response_tokens(tokenizer, tmp_path):
    renderer, model = Renderer(tokenizer, 512), tiny_llama(len(tokenizer))
    [trajectory] = sample_trajectories(1, seed=4)
    by_hand, count = loss_by_hand(model, renderer, [trajectory])
    summary = train_sft(model, tokenizer, [trajectory], SftConfig(epochs=1, batch_size=1), out=tmp_path / "out")
    assert summary.values("loss")[0] == pytest.approx(by_hand, abs=1e-4)
    [row] = summary.history
    assert (row["response_tokens"], row["tokens"]) == (count, len(renderer.render(trajectory).input_ids))
    assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    assert row["response_tokens_per_second"] == pytest.approx(row["response_tokens"] / row["seconds"])


@pytest.mark.parametrize("option", [None, "bf16", "activation_checkpointing"])
def test_a_model_is_written_that_has_been_trained(tokenizer, tmp_path, option):
    model = tiny_qwen3(len(tokenizer))
    config = SftConfig(epochs=8, learning_rate=5e-3, batch_size=4).model_copy(update={option: True} if option else {})
    summary = train_sft(model, tokenizer, sample_trajectories(8, seed=1), config, out=tmp_path / "out")
    assert summary.steps == len(summary.history) == 16
    losses = summary.values("loss")
    assert losses[-1] < 0.8 * losses[0]
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
        summary = train_sft(model, tokenizer, sample_trajectories(16), config, out=out)
        results.append([row["loss"] for row in summary.history])
    assert len(results[0]) == 3
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_mixture_of_experts_is_also_trained_to_balance_its_load(tokenizer, tmp_path, weight):
    """The first gradient's norm is that of the loss, and of the load-balancing loss by its weight, by `transformers` itself."""
    model = family_model("mixtral", len(tokenizer), dtype=torch.float32)
    model.router_aux_loss_coef = model.config.router_aux_loss_coef = weight
    [trajectory] = sample_trajectories(1, seed=4)
    rendered = Renderer(tokenizer, 512).render(trajectory)
    ids = torch.tensor(rendered.input_ids)[None].long()
    labels = ids.masked_fill(~torch.tensor(rendered.response_mask)[None], -100)
    model.train()(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, output_router_logits=weight > 0
    ).loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    model.zero_grad()
    summary = train_sft(model, tokenizer, [trajectory], SftConfig(max_steps=1), out=tmp_path / "out")
    assert summary.values("grad_norm") == [pytest.approx(norm.item(), rel=1e-4)]


# The held-out loss


def test_the_held_out_loss_is_the_mean_over_all_its_response_tokens(tokenizer, tmp_path):
    renderer, model = Renderer(tokenizer, 512), tiny_llama(len(tokenizer))
    trajectories, held = sample_trajectories(8, seed=1), sample_trajectories(5, seed=9)
    before, count = loss_by_hand(model, renderer, held)
    config = SftConfig(max_steps=5, learning_rate=1e-3, batch_size=3, eval_steps=2)
    summary = train_sft(model, tokenizer, trajectories, config, out=tmp_path / "out", held_out=held)
    rows = [row for row in read_log(tmp_path / "out") if "eval_loss" in row]
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert {row["eval_tokens"] for row in rows} == {count}
    assert rows[0]["eval_loss"] == summary.evaluations[0]["eval_loss"] == pytest.approx(before, abs=1e-5)
    after, _ = loss_by_hand(load_model(str(tmp_path / "out")), renderer, held)
    assert rows[-1]["eval_loss"] == summary.evaluations[-1]["eval_loss"] == pytest.approx(after, abs=1e-5)
    assert after < before
    assert (summary.examples, summary.counts["held_out"]) == (8, 5)
    read = sum(len(renderer.render(t).input_ids) for t in held)
    assert summary.usage.tokens_forward == summary.usage.tokens_backward + 4 * read


# What is refused


def test_a_loss_that_is_no_number_ends_the_training_at_its_step(tokenizer, tmp_path):
    config = SftConfig(epochs=9, batch_size=2, learning_rate=1e20, max_grad_norm=1e30, warmup_ratio=0, save_steps=1)
    out = tmp_path / "out"
    with pytest.raises(ModelError, match=r"^step [23]: training diverged: the (loss|norm of the gradient) is (nan|inf); lower"):
        train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(8, seed=1), config, out=out)
    assert not (out / "config.json").exists()
    assert len(read_log(out)) < 3
    with pytest.raises(ModelError, match=r"training diverged: .* is not finite"):  # the last step's own harm
        last = config.model_copy(update={"epochs": 1, "max_steps": 1, "learning_rate": 1e38})
        train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(2), last, out=tmp_path / "last")
    assert not (tmp_path / "last" / "model.safetensors").exists()


def test_settings_and_data_that_cannot_be_met_are_refused_before_training(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "Loop", None)

    def refused(kind, match, trajectories=None, vocabulary=None, held_out=(), **settings):
        with pytest.raises(kind, match=match):
            model = tiny_qwen3(vocabulary or len(tokenizer))
            data = sample_trajectories(8) if trajectories is None else trajectories
            train_sft(model, tokenizer, data, SftConfig(**settings), out=tmp_path / "out", held_out=held_out)
        assert not (tmp_path / "out").exists()

    refused(ConfigError, "no trajectories to train on", [])
    refused(ModelError, "past the model's 40 embeddings; the tokenizer is not the model's", vocabulary=40)
    refused(ConfigError, "not both", held_out=sample_trajectories(2), eval_share=0.1)
    refused(ConfigError, "nothing is held out", eval_steps=3)
    refused(ConfigError, "leaves none of 8 trajectories", eval_share=0.99)
    for tracker in ("tensorboard", "trackio", "wandb"):
        monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
        refused(
            MissingDependencyError, f"track: {tracker} is not installed; install it with: pip install {tracker}", track=[tracker]
        )
    with pytest.raises(ConfigError, match="training takes the first device it sees"):
        train_sft(None, tokenizer, sample_trajectories(1), SftConfig(), out=tmp_path / "out", device="cuda:1")
    with pytest.raises(ValueError, match="lora_dropout needs lora_rank"):
        SftConfig(lora_dropout=0.1)


def test_trackers_are_sent_what_the_log_holds(tokenizer, tmp_path, monkeypatch):
    seen = []

    class Tracker(tracking.GeneralTracker):
        name, requires_logging_directory = "wandb", False
        tracker = None

        def __init__(self, run_name, **kwargs):
            super().__init__()
            seen.append((run_name, kwargs))

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **kwargs):
            seen.append({"step": step, **values})

        def finish(self):
            seen.append("finished")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.WANDB])
    monkeypatch.setattr(frame, "check_trackers", lambda config: None)
    config = SftConfig(max_steps=1, batch_size=4, track=("wandb",))
    train_sft(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(4), config, out=tmp_path / "out")
    assert seen == [("gradprism", {"name": "out"}), *read_log(tmp_path / "out"), "finished"]


# Adapters


def test_an_adapter_is_saved_and_merged_into_a_whole_model(tokenizer, tmp_path):
    base = tmp_path / "base"
    tiny_llama(len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = SftConfig(epochs=8, batch_size=4, learning_rate=1e-2, lora_rank=4, lora_alpha=12, lora_targets=("q_proj", "down_proj"))
    out = tmp_path / "out"
    summary = train_sft(load_model(str(base)), tokenizer, sample_trajectories(8), config, out=out)
    losses = summary.values("loss")
    assert losses[-1] < losses[0]
    assert summary.parameters_trained == 2 * 4 * ((32 + 32) + (80 + 32))
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


# Packing


def test_packed_rows_give_the_same_loss(tokenizer, tmp_path):
    """One batch of everything, packed and not: the same tokens have a loss, and its mean is the same."""
    trajectories = sample_trajectories(8, seed=3)
    rendered = render_all(Renderer(tokenizer, 200), trajectories)
    packed = SftConfig(max_steps=2, batch_size=8, packing="on", learning_rate=1e-3, warmup_ratio=0)
    losses = []
    for config in (packed, packed.model_copy(update={"packing": "off"})):
        out = tmp_path / config.packing
        summary = train_sft(tiny_qwen3(len(tokenizer)), tokenizer, trajectories, config, out=out, context_length=200)
        losses.append(summary.values("loss"))
        assert summary.history[0]["tokens"] == sum(len(r.input_ids) for r in rendered)
        assert (summary.counts["rows"] < len(trajectories)) == (config.packing == "on")
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
    packs = SftConfig(packing="on")
    for model in (opt, bloom):
        assert not keeps_packed_apart(model)
        with pytest.raises(ConfigError, match=r"packing: with (sdpa|eager) attention .* lets packed trajectories see one another"):
            train_sft(model, tokenizer, sample_trajectories(4), packs, out=tmp_path / "out", context_length=128)
        assert not (tmp_path / "out").exists()
    for model in (tiny_qwen3(size), tiny_llama(size)):
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation(attention)
            assert keeps_packed_apart(model)
            assert not sft.packs_rows(model, SftConfig(packing="auto"))
        model.config._attn_implementation_internal = "flash_attention_2"
        assert sft.packs_rows(model, SftConfig(packing="auto"))


# The command


def test_options_of_the_sft_command(sft_folder, tmp_path, cli):
    out = tmp_path / "out"
    options = ["--max-steps", 1, "--lora-rank", 2, "--lora-targets", "q_proj", "--lora-targets", "v_proj"]
    code, printed, said = cli(*sft_command(sft_folder, out, *options, "--json"))
    assert (code, said) == (0, "")
    assert json.loads(printed)["steps"] == 1
    config = read_json(out / "manifest.json")["config"]
    assert (config["lora_targets"], config["track"]) == (["q_proj", "v_proj"], [])
    code, printed, _ = cli(*sft_command(sft_folder, out, *options))
    assert (code, printed.startswith(f"{out}: had finished already: loss ")) == (0, True)
    write_messages_jsonl(tmp_path / "held.jsonl", sample_trajectories(3, seed=8))
    code, printed, _ = cli(*sft_command(sft_folder, tmp_path / "held", "--max-steps", 1, "--eval-data", tmp_path / "held.jsonl"))
    assert code == 0 and ", held out 4." in printed
    assert_refused(
        cli(*sft_command(sft_folder, out, "--track", "paper")), "--track", "'tensorboard', 'trackio' or 'wandb'; got 'paper'"
    )
    assert_refused(cli(*sft_command(sft_folder, out, "--lora-alpha", 4)), "lora_alpha needs lora_rank")
    assert_refused(cli(*sft_command(sft_folder, out, "--max-steps", 2)), "holds another training", "config.max_steps: 1 → 2")
    assert_refused(cli(*sft_command(sft_folder, out, "--on-existing", "fail")), "is not empty")
    assert_refused(cli(*sft_command(sft_folder, tmp_path / "new", "--attention", "paper")), "cannot be loaded")
    assert_refused(cli(*sft_command(sft_folder, tmp_path / "new", "--context-length", 4)), "past the context length 4")
    assert_refused(cli(*sft_command(sft_folder, tmp_path / "new", "--device", "cuda:1")), "training takes the first device it sees")
    (tmp_path / "empty.jsonl").touch()
    assert_refused(
        cli("sft", "--model", sft_folder / "qwen3", "--data", tmp_path / "empty.jsonl", "--out", tmp_path / "new"), "empty"
    )
    assert not (tmp_path / "new").exists()


def test_unknown_tokens_are_counted_and_said(sft_folder, tmp_path, cli, tokenizer):
    trajectory = Trajectory("a", (Message("user", "open the zyzzyva"), Message("assistant", "go qwertz")), {})
    write_messages_jsonl(tmp_path / "corpus.jsonl", [trajectory])
    arguments = ["sft", "--model", sft_folder / "qwen3", "--data", tmp_path / "corpus.jsonl", "--out", tmp_path / "out"]
    code, out, err = cli(*arguments, "--device", "cpu", "--max-steps", 1)
    assert code == 0 and re.search(r"^2 of \d+ tokens are unknown to the tokenizer", err, re.MULTILINE), err
    assert re.search(r": loss \d+\.\d{4} before the step in 1 step$", out.strip()), out
    assert read_json(tmp_path / "out" / "summary.json")["counts"]["unknown_tokens"] == 2


def test_one_step_has_a_learning_rate_and_moves_the_weights(tokenizer, tmp_path):
    summary = train_sft(
        tiny_llama(len(tokenizer)),
        tokenizer,
        sample_trajectories(2, seed=4),
        SftConfig(max_steps=1, warmup_ratio=0.5),
        out=tmp_path / "x",
    )
    assert summary.history[0]["learning_rate"] > 0 and summary.counts["moved_share"] > 0.9 and summary.warnings == ()


def test_updates_that_round_away_and_text_that_is_cut_are_said(tokenizer, tmp_path, capfd):
    model = tiny_llama(len(tokenizer)).bfloat16()
    config = SftConfig(max_steps=3, learning_rate=1e-7)
    summary = train_sft(model, tokenizer, sample_trajectories(4, seed=4), config, out=tmp_path / "x", context_length=60)
    assert summary.counts["moved_share"] < 0.5
    cut, rounded = summary.warnings
    assert f"{summary.counts['cut_tokens']:,} tokens of {summary.counts['cut_trajectories']} trajectories" in cut
    assert "of the weights have changed: bfloat16 rounds steps of this size away" in rounded or "no weight has changed" in rounded
    assert capfd.readouterr().err.count("warning: ") == 2
    assert train_sft(tiny_llama(len(tokenizer)).bfloat16(), tokenizer, sample_trajectories(4, seed=4), config, out=tmp_path / "x",
                     context_length=60).warnings == summary.warnings  # fmt: skip


@pytest.mark.parametrize(("emulated", "config", "told"), [(True, {"bf16": True}, 1), (True, {}, 0), (False, {"bf16": True}, 0)])
def test_bfloat16_that_a_processor_emulates_is_said_once(tokenizer, tmp_path, monkeypatch, capfd, emulated, config, told):
    monkeypatch.setattr(frame, "lacks_bfloat16", lambda: emulated)
    run = partial(train_sft, config=SftConfig(max_steps=1, **config), out=tmp_path / "x", device="cpu")
    for _ in range(2):  # the second finds it finished
        summary = run(tiny_llama(len(tokenizer)), tokenizer, sample_trajectories(2, seed=4))
        assert len(summary.warnings) == told and all("leave bf16 out" in line for line in summary.warnings)
        assert capfd.readouterr().err.count("bf16") == 2 * told  # two words of one line


def test_nothing_is_said_of_the_processor_where_a_gpu_trains(monkeypatch):
    monkeypatch.setattr(frame, "lacks_bfloat16", lambda: True)
    monkeypatch.setattr(frame, "resolve_device", lambda device: "cuda")
    assert frame.of_precision(SftConfig(bf16=True), "auto") == []
    monkeypatch.setattr(frame, "resolve_device", lambda device: "cpu")
    assert len(frame.of_precision(SftConfig(bf16=True), "auto")) == 1


def test_a_corpus_in_the_older_alfworld_text_is_said_before_training(tokenizer, tmp_path, monkeypatch, capfd):
    messages = (Message("user", "You see a desk 1."), Message("assistant", "put mug 1 in/on desk 1"))
    data, config = [Trajectory("a", messages), *sample_trajectories(1)], SftConfig(max_steps=1)
    (line,) = train_sft(tiny_llama(len(tokenizer)), tokenizer, data, config, out=tmp_path / "x").warnings
    assert line.startswith("1 trajectories with actions of the older ALFWorld") and "gradprism alfworld replay" in line
    assert capfd.readouterr().err.count(line) == 1
    monkeypatch.setattr(sft, "_train", lambda *arguments: (_ for _ in ()).throw(ConfigError("not trained")))
    with pytest.raises(ConfigError, match="not trained"):
        train_sft(tiny_llama(len(tokenizer)), tokenizer, data, config, out=tmp_path / "y")
    assert line in capfd.readouterr().err


def test_a_full_disk_is_one_line(tokenizer, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    trajectories = sample_trajectories(2, seed=4)
    monkeypatch.setattr("gradprism.training.loop.save_file", full)
    with pytest.raises(WriteError, match=r"checkpoint.*No space left on device.*make room"):
        train_sft(tiny_llama(len(tokenizer)), tokenizer, trajectories, SftConfig(max_steps=2, save_steps=1), out=tmp_path / "x")
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(WriteError, match=r"No space left on device.*make room"):
        train_sft(tiny_llama(len(tokenizer)), tokenizer, trajectories, SftConfig(max_steps=1), out=tmp_path / "y")


def test_records_and_data_sets_train_as_the_trajectories_that_they_hold(tokenizer, tmp_path):
    trajectories, config = sample_trajectories(6, seed=4), SftConfig(batch_size=3, epochs=1)
    records: list[Any] = [{"id": t.id, "messages": t.chat()} for t in trajectories]
    logs = []
    for name, given in {"a": trajectories, "b": records, "c": Dataset.from_list(records), "d": load_corpus(records)}.items():
        torch.manual_seed(0)
        model = tiny_qwen3(len(tokenizer))
        train_sft(model, tokenizer, given, config, out=tmp_path / name, context_length=128, device="cpu")
        logs.append([row["loss"] for row in read_log(tmp_path / name)])
    assert all(log == logs[0] for log in logs)


# Weights of trajectories


def _trained(tokenizer, trajectories, out, **config):
    model = tiny_llama(len(tokenizer))
    settings = SftConfig(epochs=2, batch_size=8, learning_rate=1e-3, warmup_ratio=0.0, **config)
    summary = train_sft(model, tokenizer, trajectories, settings, out=out, device="cpu")
    return model.state_dict(), summary


@pytest.mark.parametrize("packing", ["off", "on"])
def test_a_weight_of_two_is_the_trajectory_twice(tokenizer, tmp_path, packing):
    """All are in one batch, so that both have the same steps."""
    first, *others = sample_trajectories(4, seed=3)
    weighted, heavy = _trained(tokenizer, [replace(first, weight=2.0), *others], tmp_path / "weighted", packing=packing)
    doubled, twice = _trained(tokenizer, [first, replace(first, id="again"), *others], tmp_path / "doubled", packing=packing)
    np.testing.assert_allclose(heavy.values("loss"), twice.values("loss"), rtol=1e-5)
    for name, value in weighted.items():
        torch.testing.assert_close(value, doubled[name], rtol=1e-4, atol=1e-5)


def test_equal_weights_change_no_bit(tokenizer, tmp_path):
    trajectories = sample_trajectories(5, seed=3)
    plain, _ = _trained(tokenizer, trajectories, tmp_path / "plain")
    equal, _ = _trained(tokenizer, [replace(t, weight=0.3) for t in trajectories], tmp_path / "equal")
    assert all(torch.equal(value, equal[name]) for name, value in plain.items())


def test_a_weight_of_zero_is_a_trajectory_left_out(tokenizer, tmp_path):
    first, *others = sample_trajectories(4, seed=3)
    without, _ = _trained(tokenizer, others, tmp_path / "without")
    zero, _ = _trained(tokenizer, [replace(first, weight=0.0), *others], tmp_path / "zero")
    for name, value in zero.items():
        torch.testing.assert_close(value, without[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="all trajectories have the weight 0"):
        _trained(tokenizer, [replace(first, weight=0.0)], tmp_path / "none")


def test_the_mean_token_weighs_one(tokenizer):
    trajectories = [replace(t, weight=float(i)) for i, t in enumerate(sample_trajectories(6, seed=5))]
    rendered = render_all(Renderer(tokenizer, 200), trajectories)
    mean = loss_weights(rendered)
    assert mean is not None
    each = token_weights([[r] for r in rendered], mean, torch.device("cpu"))
    assert len(each) == sum(r.n_targets for r in rendered) and float(each.mean()) == pytest.approx(1)
    _, chosen = tensors([[r] for r in rendered], torch.device("cpu"), False)
    assert each.tolist() == pytest.approx([row / mean for row in chosen.nonzero()[:, 0].tolist()]), "in the order of the tokens"
    assert fingerprint(rendered) != fingerprint([replace(r, weight=1.0) for r in rendered])
