import pytest
import torch
from torch import nn


@pytest.fixture
def softmax_in_its_own_precision(monkeypatch):
    """Eager attention takes its softmax in float32 even of float64 scores, and so is exact to 1e-7 only; this lifts the limit."""
    softmax = nn.functional.softmax

    def wide(scores, dim=None, dtype=None, **options):
        return softmax(scores, dim=dim, dtype=torch.float64 if scores.dtype == torch.float64 else dtype, **options)

    monkeypatch.setattr(nn.functional, "softmax", wide)
