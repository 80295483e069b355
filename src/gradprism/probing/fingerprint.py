"""What a model is, as hashes: its weights, and what it makes of them."""

import hashlib
import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

# What a configuration says that changes no number: where it came from, and what the manifest has entries of its own for.
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
