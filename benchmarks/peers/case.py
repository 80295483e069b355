"""The input of every method: a model with random weights, a batch, its response mask, and the loss.

Shapes: n samples, T positions that the model reads, R response tokens of each sample, H hidden features, N measured matrices.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradprism.probing.units import KINDS
from gradprism.trajectories.rendering import RenderedTrajectory

# Of the ALFWorld expert corpus's predicted tokens (3,554 trajectories, context 1,024) 17.7 % are response tokens, in turns of 5.2
# tokens on average.
RESPONSE_SHARE = 0.177
TURN_TOKENS = 5


@dataclass(frozen=True, slots=True)
class Sizes:
    """The widths of a Qwen3 model; `heads` · `head_dim` need not be `hidden`."""

    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One batch on one model, the same for every way.

    `input_ids` is int64 `[n, T]`; `columns` and `targets`, int64 `[n, R]`, say at which position which token is predicted;
    `trajectories` are the same samples in gradprism's form; `paths` name the N measured matrices' modules, in the order of its units.
    """

    model: Any
    input_ids: Tensor
    columns: Tensor
    targets: Tensor
    trajectories: list[RenderedTrajectory]
    paths: list[str]

    @property
    def modules(self) -> list[nn.Linear]:
        """The N measured modules."""
        return [self.model.get_submodule(path) for path in self.paths]

    @property
    def weights(self) -> list[Tensor]:
        """The N measured matrices."""
        return [module.weight for module in self.modules]

    def losses(self, samples: slice = slice(None), forward: Callable[..., Any] | None = None) -> Tensor:
        """Each sample's mean cross-entropy over its response tokens, `[n]`, with the head on response positions only.

        `forward` stands in for the model where a way wraps it.
        """
        return response_losses(
            forward or self.model,
            self.model.get_output_embeddings(),
            *(x[samples] for x in (self.input_ids, self.columns, self.targets)),
        )


def response_losses(
    forward: Callable[..., Any], head: nn.Module, input_ids_nT: Tensor, columns_nR: Tensor, targets_nR: Tensor
) -> Tensor:
    """Mean cross-entropy of each sample, `[n]`; `forward` runs the model whose output layer is `head`."""

    def keep_targets(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].gather(1, columns_nR[..., None].expand(-1, -1, args[0].shape[-1])),)

    handle = head.register_forward_pre_hook(keep_targets)
    try:
        logits_nRV = forward(input_ids=input_ids_nT, use_cache=False).logits
    finally:
        handle.remove()
    if logits_nRV.dtype in (torch.float16, torch.bfloat16):
        logits_nRV = logits_nRV.float()
    losses = nn.functional.cross_entropy(logits_nRV.flatten(0, 1), targets_nR.flatten(), reduction="none")
    return losses.unflatten(0, targets_nR.shape).mean(dim=1)


def build_model(sizes: Sizes, dtype: torch.dtype, device: str, seed: int) -> Any:
    """A Qwen3 model with random weights, in evaluation mode, made on the device itself."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        dtype=dtype,
    )
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Qwen3ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def build_case(model: Any, n: int, T: int, seed: int) -> Case:
    """`n` samples of `T` random tokens, each with the same number of response tokens, placed in turns by `seed`."""
    rng = np.random.default_rng(seed)
    vocabulary = model.config.vocab_size
    trajectories = [
        # The model reads all tokens but the last, which is only predicted.
        RenderedTrajectory(
            f"sample-{row}",
            rng.integers(0, vocabulary, T + 1, dtype=np.int32),
            response_mask(T, rng),
            0,
            np.zeros((0, 2), np.int32),
        )
        for row in range(n)
    ]

    def tensor(rows: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(rows).astype(np.int64)).to(model.device)

    positions = [np.flatnonzero(t.response_mask) for t in trajectories]
    return Case(
        model=model,
        input_ids=tensor([t.input_ids[:-1] for t in trajectories]),
        columns=tensor([p - 1 for p in positions]),
        targets=tensor([t.input_ids[p] for t, p in zip(trajectories, positions, strict=True)]),
        trajectories=trajectories,
        paths=[
            f"model.layers.{layer}.{'self_attn' if kind in ('q', 'k', 'v', 'o') else 'mlp'}.{kind}_proj"
            for layer in range(model.config.num_hidden_layers)
            for kind in KINDS
        ],
    )


def response_mask(T: int, rng: np.random.Generator) -> np.ndarray:
    """bool `[T + 1]`: `RESPONSE_SHARE` of the T predicted tokens, in turns of `TURN_TOKENS`, the last turn at the end."""
    n_response = max(1, round(RESPONSE_SHARE * T))
    n_turns = max(1, n_response // TURN_TOKENS)
    lengths = np.full(n_turns, n_response // n_turns)
    lengths[: n_response % n_turns] += 1
    # The prompt and the observations between turns share the rest in random proportions, each at least one token long.
    cuts = np.sort(rng.choice(np.arange(1, T + 1 - n_response), n_turns - 1, replace=False))
    gaps = np.diff(np.concatenate([[0], cuts, [T + 1 - n_response]]))
    return np.concatenate([np.repeat([False, True], [gap, length]) for gap, length in zip(gaps, lengths, strict=True)])


def gradient_norms(gradients_nOI: Tensor) -> Tensor:
    """Norm of each sample's gradient `[n, O, I]`, float64 `[n]`.

    Rows are summed in float32 or better and added up in float64, for every way alike: one float32 sum over millions of squares is off
    by 1e-4, and that would be no fault of the way.
    """
    wide = torch.promote_types(gradients_nOI.dtype, torch.float32)
    return torch.linalg.vector_norm(gradients_nOI, dim=2, dtype=wide).double().norm(dim=1)


@contextmanager
def trainable(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Freezes all parameters but these, and afterwards frees gradients and restores the flags."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.grad = None
            parameter.requires_grad_(flag)


@contextmanager
def input_gradients(model: Any) -> Iterator[None]:
    """Freezes the model and starts the gradient at the embeddings' output, so that the backward pass reaches every layer's output."""

    def require_gradient(module: nn.Module, args: Any, output: Tensor) -> None:
        output.requires_grad_(True)

    with trainable(model, []):
        handle = model.get_input_embeddings().register_forward_hook(require_gradient)
        try:
            yield
        finally:
            handle.remove()
