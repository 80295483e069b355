"""Loading models: safetensors only, no remote code, and one clear line when it cannot be done."""

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradprism.runtime.errors import ConfigError, MissingDependencyError, MissingFileError, ModelError, one_line
from gradprism.runtime.files import read_json
from gradprism.runtime.ranks import Ranks

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
Quantise = Literal["8bit", "4bit"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model by its name, and how it is loaded; small and picklable, so that any process can load the same. See `load_model`.

    `chat_template` is a Jinja file that takes the place of its tokenizer's own template; `attention` is transformers' implementation.
    """

    path: str
    dtype: str = "float32"
    device: str = "auto"
    quantise: Quantise | None = None
    chat_template: Path | None = None
    attention: str | None = None

    def load(self, device: str | None = None) -> Any:
        """The model on its own device, or on another."""
        return load_model(self.path, self.dtype, device or self.device, quantise=self.quantise, attention=self.attention)


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def resolve_device(device: str, ranks: Ranks | None = None) -> str:
    """The device that a model's inputs go to: `auto` and `auto-map` are a CUDA device where there is one, else the CPU.

    For one of a launcher's processes, which becomes the current one there, the CUDA device of its number. Raises `ModelError` for a
    device that is not there, and `ConfigError` for one that all processes of a machine would share.
    """
    import torch

    if ranks is not None:
        return _own_device(device, ranks)

    name, _, index = device.partition(":")
    if name not in ("auto", "cpu", "cuda", "auto-map") or (index and not (name == "cuda" and index.isdigit())):
        raise ModelError(f"device {device!r}: choose auto, cpu, cuda, cuda:<number> or auto-map")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r}: torch finds no CUDA device here; choose auto or cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise ModelError(f"device {device!r}: torch finds only {torch.cuda.device_count()} CUDA devices here")
    if name in ("auto", "auto-map"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _own_device(device: str, ranks: Ranks) -> str:
    import torch

    if device == "auto-map" or ":" in device:
        raise ConfigError(f"--device {device}: under a launcher each process takes the device of its number; use auto, cpu or cuda")
    if resolve_device(device) == "cpu":
        return "cpu"
    if ranks.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {ranks.local_rank} of this machine has no CUDA device of its own ({torch.cuda.device_count()} found); "
            f"start {torch.cuda.device_count()} processes here, or use --device cpu"
        )
    torch.cuda.set_device(ranks.local_rank)
    return f"cuda:{ranks.local_rank}"


def load_model(
    name_or_path: str,
    dtype: str = "float32",
    device: str = "auto",
    *,
    quantise: Quantise | None = None,
    attention: str | None = None,
) -> Any:
    """A `transformers` causal language model in evaluation mode.

    An existing folder is read from disk; any other name is a hub id. A folder with an `adapter_config.json` is a PEFT adapter: its
    base model is loaded and the adapter's layers are put into it. `device` `auto-map` spreads the layers over all visible CUDA
    devices. `quantise` makes the linear layers 8- or 4-bit (nf4) by bitsandbytes; `dtype` then holds for everything else. `attention`
    is an implementation that `transformers` has (sdpa, eager, flash_attention_2, …), in place of the model's own choice.

    Raises `MissingFileError`, `MissingDependencyError` or `ModelError`.
    """
    import torch

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: choose one of {list(DTYPES)}")
    check_model_name(name_or_path)
    base, adapter = _base_and_adapter(name_or_path)
    where = resolve_device(device)
    options: dict[str, Any] = {
        "dtype": "auto" if dtype == "auto" else getattr(torch, dtype),
        "device_map": "auto" if device == "auto-map" and where != "cpu" else {"": where},
    }
    if quantise is not None:
        options["quantization_config"] = _quantisation(quantise, dtype)
    if attention is not None:
        options["attn_implementation"] = attention
    model = _from_pretrained(base, options)
    # Weights that are moved to the device for each layer's turn stay there until the backward pass: nothing would be saved.
    if away := [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]:
        raise ModelError(
            f"model {name_or_path!r}: does not fit the devices ({len(away)} of its weights, among them {away[0]}); "
            "use more devices, --quantise or a smaller --dtype"
        )
    if adapter is not None:
        model = _with_adapter(model, adapter)
    keep_unpacked(model)
    return model.eval()


def keep_unpacked(model: Any) -> None:
    """Stops bitsandbytes from repacking 4-bit weights for a processor's bfloat16 products; does nothing for other weights.

    Its packed product takes no part in the backward pass and rounds to bfloat16 whatever the dtype. Raises `ModelError` where weights
    have been packed already, and for a matrix on a CPU whose width is no multiple of 64: bitsandbytes 0.50 garbles it there on
    processors with AVX-512.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        module.support_avx512bf16_for_cpu = False
        if module.weight.device.type == "cpu" and module.in_features % 64:
            raise ModelError(
                f"{name}: bitsandbytes does not keep 4-bit weights of width {module.in_features} on every CPU; use 8bit or a CUDA device"
            )
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ModelError(f"{name}: bitsandbytes has packed its weights for inference on this processor; load the model again")


def _from_pretrained(name_or_path: str, options: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name_or_path, output_loading_info=True, use_safetensors=True, trust_remote_code=False, **options
        )
    except ImportError as error:
        raise MissingDependencyError(f"model {name_or_path!r}: cannot be loaded: {one_line(error)}") from None
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"model {name_or_path!r}: cannot be loaded: {one_line(error)}") from None
    model, info = loaded
    absent = sorted(str(key) for part in ("missing_keys", "mismatched_keys") for key in info.get(part, ()))
    if absent:  # the library fills these with random numbers
        raise ModelError(f"model {name_or_path!r}: the file lacks {len(absent)} of the model's weights, among them {absent[0]}")
    return model


def _quantisation(quantise: str, dtype: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if quantise not in ("8bit", "4bit"):
        raise ModelError(f"quantise {quantise!r}: choose 8bit or 4bit")
    if dtype == "float64":
        raise ModelError("quantise: quantised layers compute in half or single precision; choose another --dtype than float64")
    try:
        import bitsandbytes  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingDependencyError(
            "quantise: bitsandbytes is not installed; install it with: pip install 'gradprism[quantised]'"
        ) from None
    # It says once a layer that inputs are made float16 for the product, which is its way with every input.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantise == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _with_adapter(base: Any, folder: Path) -> Any:
    """`base` with the adapter's layers inside; raises `ModelError` unless the adapter is whole and works within layers."""
    from safetensors import SafetensorError, safe_open

    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise MissingDependencyError(f"adapter {str(folder)!r}: peft is not installed; install it with: pip install peft") from None
    try:
        # Not cast to float32: the adapter computes in the type asked for.
        with warnings.catch_warnings(action="ignore"):  # what it warns of is refused below
            wrapped = PeftModel.from_pretrained(base, str(folder), is_trainable=False, autocast_adapter_dtype=False)
        with safe_open(folder / _ADAPTER_WEIGHTS, "pt") as file:
            absent = sorted(get_peft_model_state_dict(wrapped).keys() - set(file.keys()))
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"adapter {str(folder)!r}: cannot be loaded: {one_line(error)}") from None
    if wrapped.active_peft_config.is_prompt_learning:
        raise ModelError(f"adapter {str(folder)!r}: learns a prompt, not layers; give a LoRA adapter or a whole model")
    if absent:  # these would be fresh ones
        raise ModelError(f"adapter {str(folder)!r}: the file lacks {len(absent)} of its weights, among them {absent[0]}")
    return wrapped.get_base_model()


def _base_and_adapter(name_or_path: str) -> tuple[str, Path | None]:
    """The model to load, and the adapter's folder where `name_or_path` is one."""
    folder = Path(name_or_path)
    if not is_adapter(name_or_path):
        return name_or_path, None
    base = read_json(folder / _ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"adapter {name_or_path!r}: {_ADAPTER_CONFIG} names no base_model_name_or_path; write it there")
    if not (folder / _ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"adapter {name_or_path!r}: the folder has no {_ADAPTER_WEIGHTS}; save it as safetensors")
    try:
        check_model_name(base)
    except (MissingFileError, ModelError) as error:
        raise ModelError(f"adapter {name_or_path!r}: its base {error}") from None
    return base, folder


def is_adapter(name_or_path: str) -> bool:
    """True for the folder of a PEFT adapter, which is no whole model."""
    folder = Path(name_or_path)
    return (folder / _ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def check_trainable(name_or_path: str) -> None:
    """Refuses an adapter where a whole model is to be trained and saved."""
    if is_adapter(name_or_path):
        raise ModelError(f"model {name_or_path!r}: is an adapter; merge it into its base model first (peft's merge_and_unload)")


def tokenizer_source(name_or_path: str) -> str:
    """Where a model's tokenizer lies: with the model; for an adapter saved without one, with its base model."""
    base, adapter = _base_and_adapter(name_or_path)
    return base if adapter is not None and not (adapter / "tokenizer_config.json").is_file() else name_or_path


def load_config(name_or_path: str) -> Any:
    """A model's `transformers` configuration, for an adapter its base model's; raises `MissingFileError` or `ModelError`."""
    from transformers import AutoConfig

    check_model_name(name_or_path)
    base, _ = _base_and_adapter(name_or_path)
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {name_or_path!r}: its configuration cannot be read: {one_line(error)}") from None


def check_context_length(model: Any, context_length: int | None) -> int:
    """`context_length`, or for None the longest sequence, in tokens, that the positions of a model allow; `model` may also be its config.

    A model that states no limit takes any length that is given. Raises `ConfigError` for one that exceeds the limit or is no length,
    and `ModelError` where neither says one.
    """
    config = getattr(model, "config", model)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = limit if isinstance(limit, int) else None
    if context_length is None:
        if limit is None:
            raise ModelError(f"model {config.name_or_path!r}: does not say its longest context; give --context-length")
        return limit
    if context_length < 2 or (limit is not None and context_length > limit):
        raise ConfigError(f"context length {context_length}: the model takes 2 {f'to {limit}' if limit else 'or more'} tokens")
    return context_length


def check_model_name(name_or_path: str) -> None:
    """Refuses a path that does not exist before anything looks for it on a hub."""
    path = Path(name_or_path)
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / _ADAPTER_CONFIG).is_file():
            raise ModelError(f"model {name_or_path!r}: the folder has no config.json; give a folder saved by save_pretrained")
    elif path.exists():
        raise ModelError(f"model {name_or_path!r}: is a file; give the folder that holds config.json and *.safetensors")
    elif not HUB_ID.fullmatch(name_or_path):
        raise MissingFileError(f"model {name_or_path!r}: no such folder; give a model folder, or a hub id of the form org/name")
