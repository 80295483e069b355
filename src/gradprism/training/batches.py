"""Rows of tokens to micro-batches of tensors in the form that TRL's GRPO loss reads.

Suffixes: B rows, P prompt tokens (padded left), C completion tokens (padded right).
"""

import random
from collections.abc import Sequence
from typing import Any

import torch

from gradprism.training.rounds import Row


def split_rows(rows: Sequence[Row], parts: int, seed: int) -> list[list[Row]]:
    """The rows, shuffled, in `parts` lists of nearly equal length."""
    order = list(rows)
    if parts > 1:
        random.Random(seed).shuffle(order)
    return [order[len(order) * i // parts : len(order) * (i + 1) // parts] for i in range(parts)]


def pack(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Rows of similar shape together, each list of at most `budget` padded tokens or of a single row."""
    batches: list[list[Row]] = []
    prompt = completion = 0
    for row in sorted(rows, key=lambda row: (len(row.completion_ids), len(row.prompt_ids))):
        wider = max(prompt, len(row.prompt_ids)), max(completion, len(row.completion_ids))
        if batches and sum(wider) * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
            prompt, completion = wider
        else:
            batches.append([row])
            prompt, completion = len(row.prompt_ids), len(row.completion_ids)
    return batches


def tensors(rows: Sequence[Row], pad: int, device: torch.device) -> dict[str, Any]:
    """One micro-batch: prompt_ids, prompt_mask [B, P]; completion_ids, completion_mask, tool_mask, sampled logprobs, advantages [B, C]."""

    def left(values: list[list[int]], fill: int) -> torch.Tensor:
        width = max(map(len, values))
        return torch.tensor([[fill] * (width - len(v)) + v for v in values], device=device)

    def right(values: Sequence[list[Any]], fill: float, dtype: torch.dtype) -> torch.Tensor:
        width = max(map(len, values))
        return torch.tensor([[*v, *[fill] * (width - len(v))] for v in values], dtype=dtype, device=device)

    completions = [row.completion_ids for row in rows]
    return {
        "prompt_ids": left([row.prompt_ids for row in rows], pad),
        "prompt_mask": left([[1] * len(row.prompt_ids) for row in rows], 0),
        "completion_ids": right(completions, pad, torch.long),
        "completion_mask": right([[1] * len(ids) for ids in completions], 0, torch.long),
        "tool_mask": right([row.mask for row in rows], 0, torch.long),
        "sampling_per_token_logps": right([row.logprobs for row in rows], 0.0, torch.float32),
        "advantages": right([row.advantages for row in rows], 0.0, torch.float32),
    }
