"""Part `agreement`: whether the probe says on this device what autograd says, on tiny models of seven families."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from device import families, packing
from device.machine import version
from device.results import Case, Part, Report
from device.setting import Setting
from gradprism.concentration import gini
from gradprism.probing.prober import Prober
from gradprism.trajectories.rendering import RenderedTrajectory

# Bounds on the relative difference of a norm from autograd's: the median over all norms, and the largest. Autograd itself rounds in
# bfloat16, so there two right answers differ.
BOUNDS = {torch.float32: (1e-5, 1e-3), torch.bfloat16: (0.005, 0.05)}
RANKS = 0.9  # Spearman's correlation of Gini in bfloat16 with that in float32
LENGTHS = (40, 7, 23, 31, 9, 64, 17, 50, 12, 28, 11, 44)
# Flash attention keeps packed trajectories apart by their lengths; the others are given a mask for it.
ATTENTIONS = ("sdpa", "eager", "flash")
PACKAGES = (
    "accelerate",
    "peft",
    "triton",
    "trl",
    "datasets",
    "polars",
    "pydantic",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "bitsandbytes",
    "vllm",
    "kernels",
)


def agreement_part(setting: Setting) -> Part:
    """The environment first, then every family in both precisions, masks, heads and packing; small, one family of each kind."""
    dtypes = (torch.float32, torch.bfloat16)
    names = ["qwen3", "qwen3-moe"] if setting.smoke else list(families.FAMILIES)
    cases = [Case("environment", "Environment", partial(_environment, setting), 2)]
    cases += [
        Case(f"norms-{name}-{str(dtype)[6:]}", "Norms against autograd", partial(_norms, name, dtype, setting), 3)
        for dtype in dtypes
        for name in names
    ]
    cases += [Case(f"masks-{str(dtype)[6:]}", "Padding and masks", partial(_masks, dtype, setting), 3) for dtype in dtypes]
    cases.append(Case("head", "The head on action tokens", partial(packing.head, setting.device), 5))
    cases += [
        Case(f"packing-{attention}", "Packed rows", partial(packing.packed, attention, setting.device), 3)
        for attention in ATTENTIONS
    ]
    if setting.device == "cuda":  # it is compiled, which takes a CPU minutes
        cases.append(Case("packing-flex_attention", "Packed rows", partial(packing.packed, "flex_attention", setting.device), 30))
    return Part("agreement", "The probe against autograd", cases)


def _environment(setting: Setting) -> Report:
    rows = [{"what": "machine", "value": setting.machine.line}]
    rows += [{"what": package, "value": version(package)} for package in PACKAGES]
    if setting.device.startswith("cuda"):
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        free, total = torch.cuda.mem_get_info()
        rows += [
            {"what": "compute capability", "value": capability},
            {"what": "free memory", "value": f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB"},
            {"what": "bfloat16", "value": str(torch.cuda.is_bf16_supported())},
            {"what": "TF32 in products", "value": str(torch.backends.cuda.matmul.allow_tf32)},
        ]
    return Report(rows)


def trajectories(vocabulary: int, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[RenderedTrajectory]:
    """Random tokens and masks with several turns; the first token is never a response."""
    rng = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        mask = np.repeat(rng.random(length // 3 + 1) < 0.4, 3)[:length]
        mask[0], mask[-1] = False, True  # the last is predicted from several: none of its gradients is zero
        ids = rng.integers(0, vocabulary, length, dtype=np.int32)
        made.append(RenderedTrajectory(f"random-{number}", ids, mask, 0, np.zeros((0, 2), np.int32)))
    return made


def _norms(family: str, dtype: torch.dtype, setting: Setting) -> Report:
    model = families.build(family, setting.device, dtype)
    sample = trajectories(families.VOCABULARY)
    found = Prober(model).probe(sample)
    losses, expected = families.by_autograd(family, model, sample)
    median, largest = relative(found.norms, expected)
    row: dict[str, float | str] = {"family": family, "dtype": str(dtype)[6:], "matrices": found.norms.shape[1]}
    row |= {"median difference": median, "largest": largest, "bound": BOUNDS[dtype][1]}
    row["loss"] = float(np.abs(found.loss - losses).max())
    row["Gini"] = float(np.abs(_gini(found.norms) - _gini(expected)).max())
    failure = outside((median, largest), BOUNDS[dtype])
    if dtype is torch.bfloat16:
        exact = Prober(families.build(family, setting.device, torch.float32)).probe(sample).norms
        ranks: Any = spearmanr(_gini(found.norms), _gini(exact))
        row["Gini ranks"] = float(ranks.statistic)
        if not failure and not row["Gini ranks"] >= RANKS:
            failure = f"Gini in bfloat16 ranks as in float32 with {row['Gini ranks']:.3f}, below {RANKS}"
    return Report([row], failure)


def _masks(dtype: torch.dtype, setting: Setting) -> Report:
    """Each trajectory alone, and padded among others, whose tokens and masks must not show in its norms."""
    model = families.build("llama", setting.device, dtype)
    sample = trajectories(families.VOCABULARY)
    alone = np.concatenate([Prober(model).probe([one]).norms for one in sample])
    rows, failures = [], []
    for checkpointed in (False, True):
        found = Prober(model, checkpoint_activations=checkpointed).probe(sample).norms
        median, largest = relative(found, alone)
        row = {"dtype": str(dtype)[6:], "activations": "computed again" if checkpointed else "kept"}
        rows.append({**row, "median difference": median, "largest": largest, "bound": BOUNDS[dtype][1]})
        failures.append(outside((median, largest), BOUNDS[dtype]))
    return Report(rows, next(filter(None, failures), ""))


def relative(found: NDArray[np.float64], expected: NDArray[np.float64]) -> tuple[float, float]:
    """The median and the largest relative difference of two arrays; NaN in either gives NaN."""
    differences = np.abs(found - expected) / np.abs(expected)
    return float(np.median(differences)), float(differences.max())


def outside(found: tuple[float, float], bounds: tuple[float, float]) -> str:
    """Which bound is broken, in words; "" for none. Written so that NaN breaks one."""
    for name, value, bound in zip(("median", "largest"), found, bounds, strict=True):
        if not value <= bound:
            return f"the {name} difference {value:.2g} is above {bound:.2g}"
    return ""


def _gini(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(gini(norms), dtype=np.float64)
