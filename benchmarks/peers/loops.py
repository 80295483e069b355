"""Ways that form weight gradients with autograd: sample by sample, or for all samples at once."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from peers.case import Case, gradient_norms, response_losses, trainable


def norms_by_autograd(case: Case) -> Tensor:
    """The reference, float64 `[n, N]`: whole logits, one sample at a time, straight from the definition."""
    rows = []
    with trainable(case.model, case.weights):
        for ids, columns, targets in zip(case.input_ids, case.columns, case.targets, strict=True):
            logits_RV = case.model(input_ids=ids[None], use_cache=False).logits[0, columns]
            if logits_RV.dtype in (torch.float16, torch.bfloat16):
                logits_RV = logits_RV.float()
            loss = -logits_RV.log_softmax(dim=-1).gather(1, targets[:, None]).mean()
            rows.append(torch.stack([gradient.double().norm() for gradient in torch.autograd.grad(loss, case.weights)]))
    return torch.stack(rows)


@contextmanager
def loop(case: Case) -> Iterator[Callable[[], Tensor]]:
    """One forward and backward pass a sample, with the gradients of the N matrices and of nothing else."""
    weights = case.weights

    def run() -> Tensor:
        rows = []
        for sample in range(len(case.input_ids)):
            case.losses(slice(sample, sample + 1)).sum().backward()
            rows.append(_norms(_gradients(weights)))
            case.model.zero_grad()
        return torch.stack(rows)

    with trainable(case.model, weights):
        yield run


@contextmanager
def less(case: Case) -> Iterator[Callable[[], Tensor]]:
    """LESS (arXiv 2402.04333) before its random projection: the model's own loss on one sample, a full backward pass,
    all gradients joined into one vector.

    LESS does this for LoRA's matrices; here it is done for the N matrices, since theirs are the norms that are wanted. The model's own
    loss takes labels, so the head runs on every position.
    """
    weights = case.weights
    sizes = [weight.numel() for weight in weights]

    def run() -> Tensor:
        rows = []
        for ids, columns, targets in zip(case.input_ids, case.columns, case.targets, strict=True):
            # Labels stand where the predicted token is, one behind the position that predicts it; so the last token is read too.
            ids = torch.cat([ids, targets[-1:]])
            labels = torch.full_like(ids, -100)
            labels[columns + 1] = targets
            batch = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], "labels": labels[None]}
            case.model(**batch, use_cache=False).loss.backward()
            gradient = torch.cat([gradient.view(-1) for gradient in _gradients(weights)])
            case.model.zero_grad()
            rows.append(_norms(part.view_as(weight) for part, weight in zip(gradient.split(sizes), weights, strict=True)))
        return torch.stack(rows)

    with trainable(case.model, weights):
        yield run


@contextmanager
def vmap_grad(case: Case) -> Iterator[Callable[[], Tensor]]:
    """All per-sample gradients of the N matrices at once."""
    model, head = case.model, case.model.get_output_embeddings()
    names = [f"{path}.weight" for path in case.paths]
    weights = {name: weight.detach() for name, weight in zip(names, case.weights, strict=True)}

    def loss(weights: dict[str, Tensor], ids_T: Tensor, columns_R: Tensor, targets_R: Tensor) -> Tensor:
        def forward(**arguments: object) -> object:
            return torch.func.functional_call(model, weights, kwargs=arguments)

        return response_losses(forward, head, ids_T[None], columns_R[None], targets_R[None]).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))

    def run() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # operations that vmap runs in a loop
            result = gradients(weights, case.input_ids, case.columns, case.targets)
        return torch.stack([gradient_norms(result[name]) for name in names], dim=1)

    with trainable(model, []):
        yield run


def _gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def _norms(gradients: Iterable[Tensor]) -> Tensor:
    return torch.cat([gradient_norms(gradient[None]) for gradient in gradients])
