"""Log-probabilities of chosen tokens, without the logits of all others.

Letters: B rows, T tokens of the longest, K chosen tokens, H width of the hidden states.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from gradprism.passes import failures_named


def add_head(model: Any, temperature: float = 1.0) -> None:
    """Gives a `transformers` model, before adapters and shards, the output head that `score_tokens` asks; its own forward pass stays."""
    add_fused_lm_head(model, temperature, outputs=("log_probs", "entropy", "is_top1"))


def router_weight(model: Any) -> float:
    """Weight of the load-balancing loss that the configuration of a mixture of experts names; 0 for any other model."""
    config = model.config.get_text_config()
    return float(getattr(config, "router_aux_loss_coef", None) or 0.0) if hasattr(config, "output_router_logits") else 0.0


class Places(NamedTuple):
    """Chosen tokens, each [K]: its row, the column of the token before it, and itself."""

    rows: Tensor
    before: Tensor
    tokens: Tensor


def places_of(ids: Tensor, chosen: Tensor) -> Places:
    """The tokens of `ids` [B, T] that `chosen` [B, T] marks, row by row. No row's first token may be marked: nothing predicts it."""
    rows, columns = chosen.nonzero(as_tuple=True)
    return Places(rows, columns - 1, ids[rows, columns])


def score_tokens(
    model: Any, unwrapped: Any, inputs: Mapping[str, Any], places: Places, routers: bool = False
) -> FusedCausalLMOutput:
    """`log_probs`, `entropy` and `is_top1` [1, K] of the tokens `places` of a forward pass of `inputs`.

    The head sees the K hidden states before these tokens alone, [1, K, H]: most tokens of an episode are observations, and with a small
    model the head is most of the work. `unwrapped` is `model` without what DDP or FSDP has put around it. With `routers` a mixture of
    experts also gives its load-balancing `aux_loss`.
    """
    more = {"output_router_logits": True} if routers else {}

    def pick(module: Any, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[places.rows, places.before][None]
        return output

    base = unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped
    handle = base.base_model.register_forward_hook(pick)
    try:
        with failures_named(unwrapped):
            return model(**inputs, shift_labels=places.tokens[None], fused_lm_head=True, **more)
    finally:
        handle.remove()
