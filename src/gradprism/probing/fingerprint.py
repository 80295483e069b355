"""Hashes of a model, of its weights and of its configuration, and its part of a probe's manifest."""

import hashlib
import json
import math
import platform
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from gradprism import __version__
from gradprism.probing.manifest import ProbeManifest
from gradprism.probing.plan import rope_boundaries
from gradprism.probing.prober import Prober
from gradprism.probing.weights import weight_norms

# Entries of a configuration that change no number: where it came from, and what the manifest has entries of its own for.
_NO_MATTER = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"})


def config_fingerprint(model: PreTrainedModel) -> str:
    """Hex SHA-256 over the configuration (rotary base, epsilons, windows, …) and the scales of adapters, which are no weights."""
    values = {key: value for key, value in model.config.to_dict().items() if key not in _NO_MATTER}
    found: list[tuple[str, Any]] = [(name, getattr(module, "scaling", None)) for name, module in model.named_modules()]
    scales = [[name, sorted(scaling.items())] for name, scaling in found if isinstance(scaling, dict)]
    return hashlib.sha256(json.dumps([values, scales], sort_keys=True, default=str).encode()).hexdigest()


def weights_fingerprint(model: nn.Module) -> str:
    """Hex SHA-256 over every tensor of the state dict: name, dtype, shape and all of its bytes.

    All bytes, so that two checkpoints of one training run never pass for the same; that costs about a second for each gigabyte.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # Viewed as bytes: numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_model(prober: Prober) -> ProbeManifest:
    """The manifest's part that tells of the model and its units."""
    model = prober.model
    return ProbeManifest(
        units=tuple(prober.unit_names),
        scores=prober.scores,
        n_parameters=tuple(unit.n_parameters for unit in prober.units),
        weight_norms=tuple(norm if math.isfinite(norm) else None for norm in weight_norms(prober.found)),
        model=model.name_or_path or "",
        model_class=type(model).__name__,
        weights_sha256=weights_fingerprint(model),
        config_sha256=config_fingerprint(model),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=model.config._attn_implementation,
        device=model.device.type,
        parameters=model.num_parameters(),
        vocabulary=prober.vocabulary,
        rope_boundaries=rope_boundaries(model.config),
        costs=prober.costs,
        versions={
            "gradprism": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    )
