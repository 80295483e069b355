"""Which weight matrices of a model are measured: its units.

Llama-style decoders (Llama, Qwen, Mistral, …) have seven in each layer, PRISM's N = 7·L; GPT-2 and OPT, without a gate, have six.
Latent attention (DeepSeek, "MLA") has its own matrices as they are stored: `q_a` and `q_b`, or one `q`; `kv_a`, whose rows make the
latent and the rotary part of the keys; `kv_b`, whose rows make keys and values of each head in turn; and `o`. A tap is a module to listen
at: it serves one unit, or several where a model fuses its projections into one matrix or stacks its experts in one parameter. Names
are those of the bare model: what wraps it (LoRA, torch.compile, data parallelism) does not show in them.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gradprism.probing.manifest import UnitInfo
from gradprism.runtime.errors import ModelError
from gradprism.runtime.registry import as_names

KINDS = ("q", "k", "v", "o", "gate", "up", "down")
# Kinds in the order of a layer's units.
_ORDER = ("q", "q_a", "q_b", "k", "v", "kv_a", "kv_b", "o", "gate", "up", "down")
# What an attention may consist of.
_ATTENTION = (
    frozenset(("q", "k", "v", "o")),
    frozenset(("q_a", "q_b", "kv_a", "kv_b", "o")),
    frozenset(("q", "kv_a", "kv_b", "o")),
)
_FEED_FORWARD = ("mlp", "feed_forward")
# Where in a decoder layer projections stand, and the units in each, in the order of its output features.
_PLACES: dict[str, tuple[str, ...]] = {
    **{f"{place}.{kind}_proj": (kind,) for place in ("self_attn", "attn", "attn.attention") for kind in "qkvo"},
    **{f"{place}.out_proj": ("o",) for place in ("self_attn", "attn", "attn.attention")},
    "self_attn.dense": ("o",),
    **{f"self_attn.{kind}_proj": (kind,) for kind in ("q_a", "q_b", "kv_b")},
    "self_attn.kv_a_proj_with_mqa": ("kv_a",),
    **{f"{place}.{kind}_proj": (kind,) for place in _FEED_FORWARD for kind in ("gate", "up", "down")},
    **{f"{place}{first}": ("up",) for place, first in (("", "fc1"), ("mlp.", "fc1"), ("mlp.", "fc_in"))},
    **{f"{place}{second}": ("down",) for place, second in (("", "fc2"), ("mlp.", "fc2"), ("mlp.", "fc_out"))},
    "self_attn.qkv_proj": ("q", "k", "v"),
    "mlp.gate_up_proj": ("gate", "up"),
    "attn.c_attn": ("q", "k", "v"),
    "attn.c_proj": ("o",),
    "mlp.c_fc": ("up",),
    "mlp.c_proj": ("down",),
    **{
        f"{place}.shared_{expert}.{name}_proj": kinds
        for place in _FEED_FORWARD
        for expert in ("expert", "experts", "mlp")
        for name, kinds in {"gate": ("gate",), "up": ("up",), "down": ("down",), "gate_up": ("gate", "up")}.items()
    },
    **{f"{block}.experts": ("gate", "up", "down") for block in ("mlp", "block_sparse_moe", "feed_forward")},
}
_PLACE = re.compile(
    rf"(?P<tower>(?:.*\.)?(?:layers|h))\.(?P<layer>\d+)\.(?P<place>{'|'.join(re.escape(place) for place in _PLACES)})"
)
# Attention whose fused matrix has all rows of q, then of k, then of v. Others interleave them by head: no slice is q alone.
_FUSED_IN_BLOCKS = frozenset(
    {"Phi3Attention", "Phi4MultimodalAttention", "GPT2Attention", "DecisionTransformerGPT2Attention", "ImageGPTAttention"}
)
# Weights that are what they say; narrower floats come with scales of their own.
DENSE = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})

ExpertUnits = Literal["joined", "separate"]


@dataclass(frozen=True, slots=True)
class LinearTap:
    """A module that computes y = x·Wᵀ (+ bias) on `[n, T, d_in]`, once in each forward pass.

    `slices` says which output features are which unit's: (index into `Units.units`, start, stop).
    """

    module: nn.Module
    path: str
    layer: int
    slices: tuple[tuple[int, int, int], ...]

    @property
    def unit_indices(self) -> tuple[int, ...]:
        """The units that it measures."""
        return tuple(index for index, _, _ in self.slices)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the products that it measures."""
        return (self.path,)


@dataclass(frozen=True, slots=True)
class ExpertsTap:
    """A module of a layer's experts, whose matrices are stacked in `gate_up_proj` and `down_proj`, with E experts first.

    `gate`, `up` and `down` are indices into `Units.units`: one for all experts together, or one for each of the E.
    """

    module: nn.Module
    path: str
    layer: int
    gate: tuple[int, ...]
    up: tuple[int, ...]
    down: tuple[int, ...]

    @property
    def unit_indices(self) -> tuple[int, ...]:
        """The units that it measures."""
        return (*self.gate, *self.up, *self.down)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the products that it measures."""
        return (f"{self.path}.gate_up_proj", f"{self.path}.down_proj")


@dataclass(frozen=True, slots=True)
class Units:
    """A model's units, in the order of the norms' columns, and the taps that measure them.

    `layers` are the decoder layers' modules, in order; empty where they are not known. `recognised` says that the names follow from a
    known architecture, not from patterns.
    """

    units: tuple[UnitInfo, ...]
    taps: tuple[LinearTap | ExpertsTap, ...]
    layers: tuple[nn.Module, ...]
    recognised: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """A unit to be, and the output features that are its own; `order` sorts the units of a layer."""

    order: tuple[int, ...]
    unit: UnitInfo
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class _Found:
    path: str
    name: str
    module: nn.Module
    parts: tuple[_Part, ...]

    @property
    def layer(self) -> int:
        return self.parts[0].unit.layer


def find_units(model: nn.Module, patterns: str | Sequence[str] | None = None, experts: ExpertUnits = "joined") -> Units:
    """The projections of each decoder layer, by layer and then in the order of `KINDS`.

    Stacked experts are one unit for each of gate, up and down (`joined`), or one an expert (`separate`, named
    `layers.0.experts.3.gate_proj`, after the layer's other units); shared experts are units of their own. With `patterns`, the units
    are instead the linear layers whose path, without wrappers, matches any of these globs (`*` stands for anything): each is one unit
    that bears its path as its name, in the layer of the path's first number.

    Raises `ModelError`, listing the names of the model's linear layers, unless exactly one stack of layers has all projections in
    every layer, and for a pattern that matches nothing.
    """
    candidates = [(path, canonical_path(path), module) for path, module in _measurable(model)]
    if patterns is not None:
        return _build(model, _match_patterns(model, candidates, as_names(patterns), experts), recognised=False)
    towers: defaultdict[str, list[_Found]] = defaultdict(list)
    for path, name, module in candidates:
        match = _PLACE.fullmatch(name)
        if match and (parts := _parts_of_place(model, path, module, int(match["layer"]), match["place"], experts)):
            towers[match["tower"]].append(_Found(path, name, module, parts))
    # A vision or audio tower may have layers of the same names.
    complete = _of_text(model, [found for found in towers.values() if _is_complete(found)])
    if len(complete) != 1:
        found = "more than one stack of layers has" if complete else "no stack of layers has"
        raise ModelError(
            f"{type(model).__name__}: {found} the projections {', '.join(f'{kind}_proj' for kind in KINDS)} in every layer; "
            f"name its weight matrices by patterns, as in {_example(model)}; its linear layers are: {_linear_layers(model)}"
        )
    return _build(model, complete[0], recognised=True)


def _of_text(model: nn.Module, towers: list[list[_Found]]) -> list[list[_Found]]:
    """Of several towers those in the part of the model that reads text; one of images alone is none."""
    within = _text_modules(model)
    return [tower for tower in towers if all(found.module in within for found in tower)]


def _text_modules(model: nn.Module) -> set[nn.Module]:
    get_decoder = getattr(model, "get_decoder", None)
    return set((model if get_decoder is None else get_decoder()).modules())


def canonical_path(path: str) -> str:
    """A module's path in the bare model: without the parts that PEFT, torch.compile, FSDP, DDP or checkpointing put in."""
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    while parts and parts[-1] == "base_layer":
        parts.pop()
    while parts[:1] == ["module"] or parts[:2] == ["base_model", "model"]:
        parts = parts[1:] if parts[0] == "module" else parts[2:]
    return ".".join(parts)


def linear_features(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a linear layer, quantised or not; None for any other module and for one that only wraps a linear layer."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(d_in, int) and isinstance(d_out, int) and not hasattr(module, "base_layer"):
        return d_in, d_out
    return None


def expert_sizes(module: nn.Module) -> tuple[int, int, int] | None:
    """(E, H, I): experts, hidden and intermediate size of a module of stacked experts as transformers has them, gated and without
    a norm behind them; None for any other module."""
    gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not (isinstance(gate_up, Tensor) and isinstance(down, Tensor) and gate_up.ndim == down.ndim == 3):
        return None
    if hasattr(module, "base_layer") or gate_up.dtype not in DENSE or down.dtype not in DENSE:
        return None
    if not (hasattr(module, "_apply_gate") or reads_all_tokens(module)) or getattr(module, "has_post_expert_norm", False):
        return None
    E, rows, columns = down.shape
    return (E, columns, rows) if is_transposed(module) else (E, rows, columns)


def reads_all_tokens(module: nn.Module) -> bool:
    """True for stacked experts of which each is given every token, scaled by the router, to zero where it is not chosen (Llama 4)."""
    return type(module).__name__ == "Llama4TextExperts"


def is_transposed(module: nn.Module) -> bool:
    """True for stacked experts whose matrices are stored as `[E, d_in, d_out]`."""
    return reads_all_tokens(module) or bool(getattr(module, "is_transposed", False))


def _measurable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and stacked experts, but for the head, which only ever runs on targets, and the matrices of adapters."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    for path, module in model.named_modules():
        is_adapter = any(part.startswith("lora_") for part in path.split("."))
        is_head = head is not None and (module is head or getattr(head, "base_layer", None) is module)
        if not is_adapter and not is_head and (linear_features(module) or expert_sizes(module)):
            yield path, module


def _parts_of_place(
    model: nn.Module, path: str, module: nn.Module, layer: int, place: str, experts: ExpertUnits
) -> tuple[_Part, ...]:
    kinds = _PLACES[place]
    if expert_sizes(module):
        return _parts_of_experts(module, f"layers.{layer}", f"layers.{layer}.experts", experts)
    features = linear_features(module)
    if features is None or place.endswith(".experts"):
        return ()
    d_in, d_out = features
    bounds, shared = _bounds(model, path, d_out, kinds), ".shared_" in place
    block = f"layers.{layer}.shared_expert" if shared else f"layers.{layer}"
    return tuple(
        _Part((int(shared), _ORDER.index(kind)), UnitInfo(f"{block}.{kind}_proj", d_in * (stop - start)), start, stop)
        for kind, start, stop in zip(kinds, bounds, bounds[1:], strict=False)
    )


def _bounds(model: nn.Module, path: str, d_out: int, kinds: tuple[str, ...]) -> list[int]:
    """Where the output features of each kind begin, and the end; empty where the layout is not known."""
    if len(kinds) < 3:
        return [d_out * i // len(kinds) for i in range(len(kinds) + 1)]
    owner = re.sub(r"(\.base_layer)+$", "", path).rpartition(".")[0]
    attention: Any = model.get_submodule(owner)
    if type(attention).__name__ not in _FUSED_IN_BLOCKS:
        return []
    q = attention.config.num_attention_heads * attention.head_dim
    return [0, q, q + (d_out - q) // 2, d_out]


def _parts_of_experts(module: nn.Module, joined: str, separate: str, experts: ExpertUnits) -> tuple[_Part, ...]:
    """The units of stacked experts in the order that `_tap` reads: gate, up and down of the first expert, of the second, …"""
    sizes = expert_sizes(module)
    assert sizes is not None
    E, H, I = sizes  # noqa: E741
    kinds = ("gate", "up", "down")
    if experts == "joined":
        return tuple(_Part((0, _ORDER.index(kind)), UnitInfo(f"{joined}.{kind}_proj", E * H * I)) for kind in kinds)
    return tuple(
        _Part((2, expert, _ORDER.index(kind)), UnitInfo(f"{separate}.{expert}.{kind}_proj", H * I))
        for expert in range(E)
        for kind in kinds
    )


def _is_complete(found: list[_Found]) -> bool:
    """True where layers 0, 1, … each have one attention and one feed-forward network, whole; all of them or none has a gate.

    Shared experts come on top.
    """
    layers: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for entry in found:
        # All experts together are one of a kind, whether measured jointly or not.
        names = {(part.order[0] == 1, part.unit.kind) for part in entry.parts}
        layers[entry.layer].update(kind for shared, kind in names if not shared)
    gated = any("gate" in kinds for kinds in layers.values())
    feed_forward = {"gate", "up", "down"} if gated else {"up", "down"}
    expected = [Counter(attention | feed_forward) for attention in _ATTENTION]
    return sorted(layers) == list(range(len(layers))) and all(kinds in expected for kinds in layers.values())


def _match_patterns(
    model: nn.Module, candidates: list[tuple[str, str, nn.Module]], patterns: Sequence[str], experts: ExpertUnits
) -> list[_Found]:
    found, used = [], set()
    for position, (path, name, module) in enumerate(candidates):
        matching = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        used.update(matching)
        if not matching:
            continue
        if features := linear_features(module):
            d_in, d_out = features
            parts = (_Part((position,), UnitInfo(name, d_in * d_out), 0, d_out),)
        else:
            experts_parts = _parts_of_experts(module, name, name, experts)
            parts = tuple(_Part((position, *part.order), part.unit) for part in experts_parts)
        found.append(_Found(path, name, module, parts))
    if absent := [pattern for pattern in patterns if pattern not in used]:
        raise ModelError(
            f"{type(model).__name__}: --units {absent[0]!r} matches none of its linear layers; they are: {_linear_layers(model)}"
        )
    if not found:
        raise ModelError(f"{type(model).__name__}: no pattern of units was given; its linear layers are: {_linear_layers(model)}")
    return found


def _build(model: nn.Module, found: list[_Found], recognised: bool) -> Units:
    parts = sorted((part for entry in found for part in entry.parts), key=lambda part: (part.unit.layer, part.order))
    index = {part: i for i, part in enumerate(parts)}
    ordered = sorted(found, key=lambda entry: min(index[part] for part in entry.parts))
    return Units(
        tuple(part.unit for part in parts), tuple(_tap(entry, index) for entry in ordered), _layers(model, found), recognised
    )


def _tap(entry: _Found, index: dict[_Part, int]) -> LinearTap | ExpertsTap:
    if linear_features(entry.module):
        slices = tuple((index[part], part.start, part.stop) for part in entry.parts)
        return LinearTap(entry.module, entry.name, entry.layer, slices)
    gate, up, down = (tuple(index[part] for part in entry.parts[i::3]) for i in range(3))
    return ExpertsTap(entry.module, entry.name, entry.layer, gate, up, down)


def _layers(model: nn.Module, found: list[_Found]) -> tuple[nn.Module, ...]:
    """The list of layers that all of these stand in."""
    stacks = {match[1] if (match := re.match(r"(.*?)\.\d+\.", entry.path)) else None for entry in found}
    if len(stacks) != 1 or (path := stacks.pop()) is None:
        return ()
    stack = model.get_submodule(path)
    return tuple(stack) if isinstance(stack, nn.ModuleList) else ()


def _linear_layers(model: nn.Module) -> str:
    """`model.layers.*.mlp.gate_proj (×24), …`: the names of linear layers, with numbers replaced by `*`."""
    counts = _starred(model)
    return ", ".join(f"{name} (×{count})" if count > 1 else name for name, count in counts.items()) or "none"


def _example(model: nn.Module) -> str:
    """`--units '…' --units '…'` with the first two names that stand in a stack of layers."""
    names = unit_patterns(model) or ["transformer.h.*.attn.query_key_value"]
    return " ".join(f"--units '{name}'" for name in names[:2])


def _starred(model: nn.Module) -> Counter[str]:
    return Counter(_star(canonical_path(path)) for path, _ in _measurable(model))


def _star(path: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


def unit_patterns(model: nn.Module) -> list[str]:
    """Patterns for `find_units` that name the linear layers of the text model's stack of layers, with numbers replaced by `*`."""
    within = _text_modules(model)
    paths = [canonical_path(path) for path, module in _measurable(model) if module in within]
    return list(dict.fromkeys(name for path in paths if "*" in (name := _star(path))))
