"""LoRA: adapters of low rank that are trained in place of the weights, and merged into them at the end."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gradprism.runtime.errors import ConfigError
from gradprism.runtime.libraries import quiet_libraries
from gradprism.training.settings import ALL_LINEAR, LoraSettings

with quiet_libraries():
    from peft import LoraConfig, get_peft_model


def add_adapters(model: Any, settings: LoraSettings) -> Any:
    """`model` with fresh adapters inside, or as it is where all weights are trained. Raises as `peft_config` does."""
    config = peft_config(settings, model)
    return model if config is None else get_peft_model(model, config)


def peft_config(settings: LoraSettings, model: Any) -> LoraConfig | None:
    """The adapters' configuration for `model`, or None where all weights are trained.

    Raises `ConfigError` for targets that the model does not have, and for the output head: log-probabilities are computed from its own
    weight, which would leave the adapter out.
    """
    if settings.lora_rank is None:
        return None
    targets: Any = ALL_LINEAR if settings.lora_targets == (ALL_LINEAR,) else list(settings.lora_targets)
    if targets != ALL_LINEAR:
        names = [name for name, module in model.named_modules() if hasattr(module, "weight") and module.weight.ndim == 2]
        head = model.get_output_embeddings()
        for target in targets:
            found = [name for name in names if name == target or name.endswith(f".{target}")]
            if not found:
                kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
                raise ConfigError(f"lora_targets: the model has no module {target!r}; choose among {kinds}, or {ALL_LINEAR}")
            if any(model.get_submodule(name) is head for name in found):
                raise ConfigError(f"lora_targets: {target!r} is the output head, which cannot have an adapter here; leave it out")
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,  # pyright: ignore[reportArgumentType] # a scale, not a count
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2's matrices, transposed
        task_type="CAUSAL_LM",
    )


def save_adapter(model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the adapter of a PEFT model as peft does, from the weights in `state`."""
    config = model.peft_config["default"]
    base = config.base_model_name_or_path
    if base and Path(base).is_dir():
        config.base_model_name_or_path = str(Path(base).resolve())  # found from any working directory
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # a form to fill in


def merged_state(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base model's weights with the adapter's added: W + alpha / rank · B A (LoRA, arXiv 2106.09685, equation 3).

    From a PEFT model's whole state dict, which may have come from many processes, and not from its modules, which then hold only a
    part. The sum is made in float32 and rounded once.
    """
    modules = dict(model.named_modules())
    merged = {}
    for name, value in state.items():
        plain = name.removeprefix("base_model.model.")
        if ".lora_" in plain:
            continue
        if ".base_layer." not in plain:
            merged[plain] = value
            continue
        if name.endswith(".base_layer.weight"):
            path = name.removesuffix(".base_layer.weight")
            layer = modules[path]
            a, b = (state[f"{path}.lora_{factor}.default.weight"].float() for factor in "AB")
            change = layer.scaling["default"] * (b @ a)
            value = (value.float() + (change.T if layer.fan_in_fan_out else change)).to(value.dtype)
        merged[re.sub(r"\.base_layer\.", ".", plain)] = value
    return merged
