"""What a model's weights are, as a hash."""

import hashlib
import json

import torch
from torch import nn


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
