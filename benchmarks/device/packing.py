"""Two things that the trainers rely on: the head on action tokens alone, and packed rows of which no part sees another."""

from typing import Any

import torch
from transformers import utils

from device import families
from device.machine import installed
from device.results import Report

HEAD_BOUND = 0.05  # nats: a log-probability in bfloat16 may differ by the rounding of its logit
PACKED_BOUND = 0.05  # of what the first of two sequences does to the second in one running text


def head(device: str) -> Report:
    """Log-probabilities of action tokens with the head on them alone, against those of the whole logits."""
    if not installed("trl"):
        return Report([], "trl is not installed")
    from gradprism.training.head import add_head, places_of, score_tokens

    rows, failure = [], ""
    for family, dtype, bound in (
        ("llama", torch.float32, 1e-4),
        ("qwen3", torch.float32, 1e-4),
        ("qwen3", torch.bfloat16, HEAD_BOUND),
    ):
        model = families.build(family, device, dtype)
        ids = torch.arange(2 * 48, device=device).reshape(2, 48) % families.VOCABULARY
        chosen = torch.zeros_like(ids, dtype=torch.bool)
        chosen[0, 5:9] = chosen[0, 20:23] = chosen[1, 40:] = True
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            add_head(model)
            found: Any = score_tokens(model, model, {"input_ids": ids}, places_of(ids, chosen))
        rows_, columns = chosen.nonzero(as_tuple=True)
        expected = logits[rows_, columns - 1, ids[rows_, columns]]
        largest = float((found.log_probs[0].float() - expected).abs().max())
        rows.append(
            {
                "family": family,
                "dtype": str(dtype)[6:],
                "tokens": len(expected),
                "largest difference, nats": largest,
                "bound": bound,
            }
        )
        if not largest <= bound:
            failure = failure or f"{family}: log-probabilities differ by {largest:.2g} nats, above {bound}"
    return Report(rows, failure)


def flash_attention() -> str | None:
    """The name under which transformers takes the flash attention that is installed, the newest first; None where there is none."""
    for number in (4, 3, 2):
        available = getattr(utils, f"is_flash_attn_{number}_available", None)  # of 4, older versions know nothing
        if available and available():
            return f"flash_attention_{number}"
    return None


def packed(attention: str, device: str) -> Report:
    """The logits of the second of two packed sequences against those that it has alone; `flash` is whichever flash attention there is."""
    name = flash_attention() if attention == "flash" else attention
    if name is None:
        hub = "; kernels is installed, but what it would fetch is on a network" if installed("kernels") else ""
        return Report([], f"transformers finds no flash attention (flash-attn, flash-attn-3, flash-attn-4){hub}")
    dtype = torch.bfloat16 if attention == "flash" else torch.float32
    rows, failure = [], ""
    for family in ("llama", "qwen3"):
        model = families.build(family, device, dtype)
        model.set_attn_implementation(name)
        first, second = torch.arange(40, device=device) % 91, torch.arange(5, 37, device=device) * 3 % 89
        joined, positions = torch.cat([first, second])[None], torch.cat([torch.arange(40), torch.arange(32)])[None].to(device)
        with torch.no_grad():
            alone = model(input_ids=second[None], use_cache=False).logits[0].float()
            apart = model(input_ids=joined, position_ids=positions, use_cache=False).logits[0, 40:].float()
            together = model(input_ids=joined, use_cache=False).logits[0, 40:].float()
        share = float((apart - alone).abs().max() / (together - alone).abs().max())
        rows.append({"attention": name, "family": family, "difference, of that in running text": share, "bound": PACKED_BOUND})
        if not share <= PACKED_BOUND:
            failure = failure or f"{family}: packed sequences see one another ({share:.2g})"
    return Report(rows, failure)
