"""Which weight matrices of a model are measured: its units.

Llama-style decoders (Llama, Qwen, Mistral, …) have seven in each layer, PRISM's N = 7·L.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from gradprism.errors import ModelError

KINDS = ("q", "k", "v", "o", "gate", "up", "down")
_UNIT = re.compile(r"^(?P<tower>.*?)layers\.(?P<layer>\d+)\.(?:self_attn\.(?:q|k|v|o)|mlp\.(?:gate|up|down))_proj$")


@dataclass(frozen=True, slots=True)
class Unit:
    """One weight matrix: `name` is `layers.<layer>.<kind>_proj`, `module` computes y = x·Wᵀ (+ bias) on `[n, T, d_in]`."""

    name: str
    layer: int
    kind: str
    module: nn.Module


def find_units(model: nn.Module) -> list[Unit]:
    """The seven projections of each decoder layer, by layer and then in the order of `KINDS`.

    Raises `ModelError`, listing the names of the model's linear layers, unless exactly one stack of layers has all seven.
    """
    towers: defaultdict[str, list[Unit]] = defaultdict(list)
    for path, module in model.named_modules():
        if match := _UNIT.match(path):
            layer, projection = int(match["layer"]), path.rsplit(".", 1)[1]
            kind = projection.removesuffix("_proj")
            towers[match["tower"]].append(Unit(f"layers.{layer}.{projection}", layer, kind, module))
    # A vision or audio tower may have layers of the same names, though hardly all seven projections.
    complete = [units for units in towers.values() if len(units) == len(KINDS) * (1 + max(unit.layer for unit in units))]
    if len(complete) != 1:
        found = "more than one stack of layers has" if complete else "no stack of layers has"
        raise ModelError(
            f"{type(model).__name__}: {found} the projections {', '.join(f'{kind}_proj' for kind in KINDS)} in every layer; "
            f"its linear layers are: {_linear_layers(model)}"
        )
    return sorted(complete[0], key=lambda unit: (unit.layer, KINDS.index(unit.kind)))


def _linear_layers(model: nn.Module) -> str:
    """`model.layers.*.mlp.gate_proj (×24), lm_head`: the names of linear layers, with numbers replaced by `*`."""
    counts: defaultdict[str, int] = defaultdict(int)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            counts[re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)] += 1
    return ", ".join(f"{name} (×{count})" if count > 1 else name for name, count in counts.items()) or "none"
