"""A folder to train on from the command line, and the loss by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer
from helpers.tiny import sample_trajectories, tiny_llama, tiny_qwen3, tiny_tokenizer


def make_sft_folder(folder: Path) -> Path:
    """Writes the models `qwen3` and `llama`, and 22 trajectories `corpus.jsonl`."""
    tokenizer = tiny_tokenizer()
    for name, model in (("qwen3", tiny_qwen3(len(tokenizer))), ("llama", tiny_llama(len(tokenizer)))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_messages_jsonl(folder / "corpus.jsonl", sample_trajectories(22))
    return folder


def sft_command(folder: Path, out: Path, *options: object, model: str = "qwen3") -> list[str]:
    """Arguments of `gradprism sft` on such a folder."""
    files = ["--model", folder / model, "--data", folder / "corpus.jsonl", "--out", out]
    return list(map(str, ["sft", *files, "--device", "cpu", "--learning-rate", 1e-3, *options]))


def loss_by_hand(model: Any, renderer: Renderer, trajectories: Sequence[Trajectory]) -> tuple[float, int]:
    """Mean loss over all response tokens of all trajectories, and their number: one trajectory at a time, by all its logits."""
    total, count = 0.0, 0
    for rendered in map(renderer.render, trajectories):
        ids = torch.tensor(rendered.input_ids, dtype=torch.long)
        with torch.no_grad():
            logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        losses = -logprobs[torch.arange(len(ids) - 1), ids[1:]][torch.tensor(rendered.response_mask[1:])]
        total, count = total + losses.sum().item(), count + len(losses)
    return total / count, count
