"""Loading models: safetensors only, no remote code, and one clear line when it cannot be done."""

import logging
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradprism.checkpoints import (
    ADAPTER_WEIGHTS,
    Source,
    auto_class,
    base_and_adapter,
    check_model_name,
    dequantising,
    load_config,
    model_source,
)
from gradprism.runtime.errors import ConfigError, MissingDependencyError, ModelError, one_line
from gradprism.runtime.libraries import quiet_libraries
from gradprism.runtime.ranks import Ranks

if TYPE_CHECKING:
    from gradprism.trajectories.chat_options import ChatOptions

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
Quantise = Literal["8bit", "4bit"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model by its name, and how it is loaded; small and picklable, so that any process can load the same. See `load_model`.

    `chat_template` is a Jinja file that takes the place of its tokenizer's own template, or all choices of rendering; `attention` is
    transformers' implementation.
    """

    path: str
    dtype: str = "float32"
    device: str = "auto"
    quantise: Quantise | None = None
    chat_template: "Path | ChatOptions | None" = None
    attention: str | None = None

    def load(self, device: str | None = None) -> Any:
        """The model on its own device, or on another."""
        return load_model(self.path, self.dtype, device or self.device, quantise=self.quantise, attention=self.attention)


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
    """A `transformers` causal language model in evaluation mode; of a model of text and images the whole, whose text part is one.

    An existing folder is read from disk, and a `.gguf` file; any other name is a hub id. A folder with an `adapter_config.json` is a
    PEFT adapter: its base model is loaded and the adapter's layers are put into it. Quantised weights that transformers can
    dequantise (GGUF, FP8, MXFP4, compressed-tensors) become plain numbers of `dtype`; bitsandbytes' stay as they are.

    `device` `auto-map` spreads the layers over all visible CUDA devices. `quantise` makes the linear layers 8- or 4-bit (nf4) by
    bitsandbytes; `dtype` then holds for everything else. `attention` is an implementation that `transformers` has (sdpa, eager,
    flash_attention_2, …), in place of the model's own choice.

    Raises `MissingFileError`, `MissingDependencyError` or `ModelError`.
    """
    import torch

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: choose one of {list(DTYPES)}")
    check_model_name(name_or_path)
    base, adapter = base_and_adapter(name_or_path)
    config, source, where = load_config(base), model_source(base), resolve_device(device)
    options: dict[str, Any] = {
        "dtype": "auto" if dtype == "auto" else getattr(torch, dtype),
        "device_map": "auto" if device == "auto-map" and where != "cpu" else {"": where},
    }
    if is_quantised := source.gguf is not None or getattr(config, "quantization_config", None) is not None:
        if quantise is not None:
            raise ModelError(f"model {base!r}: its weights are quantised already; leave out --quantise")
        options |= dequantising(base, config)
    elif quantise is not None:
        options["quantization_config"] = _quantisation(quantise, dtype)
    if attention is not None:
        options["attn_implementation"] = attention
    model = _from_pretrained(source, auto_class(config), options)
    if is_quantised and not _keeps_quantised(model):
        _make_plain(model, dtype)
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


def _from_pretrained(source: Source, auto: Any, options: dict[str, Any]) -> Any:
    from safetensors import SafetensorError

    name = str(Path(source.name) / source.gguf) if source.gguf else source.name
    try:
        with quiet_libraries() if Path(source.name).is_dir() else nullcontext():  # a download shows its bars
            loaded: Any = auto.from_pretrained(
                source.name,
                output_loading_info=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are told below, by name
                trust_remote_code=False,
                **source.options,
                **options,
            )
    except ImportError as error:
        raise MissingDependencyError(f"model {name!r}: cannot be loaded: {one_line(error)}") from None
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise ModelError(f"model {name!r}: cannot be loaded: {one_line(error)}") from None
    model, info = loaded
    # The library fills these with random numbers.
    if other := sorted(str(key[0]) for key in info.get("mismatched_keys", ())):
        raise ModelError(
            f"model {name!r}: {len(other)} of its weights are not of the sizes that its configuration says, as {other[0]}"
        )
    if absent := sorted(map(str, info.get("missing_keys", ()))):
        raise ModelError(f"model {name!r}: the file lacks {len(absent)} of the model's weights, among them {absent[0]}")
    return model


def _keeps_quantised(model: Any) -> bool:
    """True for a checkpoint of bitsandbytes' layers, which the probe measures as they are."""
    return bool(getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False))


def _make_plain(model: Any, dtype: str) -> None:
    """Forgets, once weights have been dequantised, that they were quantised, and gives all of them one type.

    Raises `ModelError` for weights that are still packed.
    """
    import torch

    narrow = [name for name, p in model.named_parameters() if p.dtype.itemsize < 2 and p.numel() > 1]
    if narrow:
        raise ModelError(
            f"{type(model).__name__}: {len(narrow)} of its weights are still quantised after loading, among them {narrow[0]}; "
            "give a checkpoint in bfloat16"
        )
    model.hf_quantizer = None
    for attribute in ("quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if dtype != "auto":
        model.to(getattr(torch, dtype))


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
        with quiet_libraries():
            from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise MissingDependencyError(f"adapter {str(folder)!r}: peft is not installed; install it with: pip install peft") from None
    try:
        # Not cast to float32: the adapter computes in the type asked for.
        _resize_vocabulary(base, folder)
        with warnings.catch_warnings(action="ignore"):  # what it warns of is refused below
            wrapped = PeftModel.from_pretrained(base, str(folder), is_trainable=False, autocast_adapter_dtype=False)
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            absent = sorted(get_peft_model_state_dict(wrapped).keys() - set(file.keys()))
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"adapter {str(folder)!r}: cannot be loaded: {one_line(error)}") from None
    if wrapped.active_peft_config.is_prompt_learning:
        raise ModelError(f"adapter {str(folder)!r}: learns a prompt, not layers; give a LoRA adapter or a whole model")
    if absent:  # these would be fresh ones
        raise ModelError(f"adapter {str(folder)!r}: the file lacks {len(absent)} of its weights, among them {absent[0]}")
    return wrapped.get_base_model()


def _resize_vocabulary(base: Any, folder: Path) -> None:
    """Gives `base` as many embeddings as the adapter was saved with, which fills them; does nothing where it saved none.

    Raises `ModelError` where it lacks the rows of an output head that is no copy of the embeddings.
    """
    from safetensors import safe_open

    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    names = {id(module): name for name, module in base.named_modules()}
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        rows = {key: file.get_slice(key).get_shape()[0] for key in file.keys() if key.endswith(".weight")}  # noqa: SIM118

    def saved(module: Any) -> int | None:
        path = names[id(module)]
        return next((count for key, count in rows.items() if f".{path}." in key and ".lora_" not in key), None)

    size = saved(embeddings)
    if size is None or size == embeddings.weight.shape[0]:
        return
    is_tied = head is not None and head.weight is embeddings.weight
    if head is not None and not is_tied and saved(head) != size:
        raise ModelError(
            f"adapter {str(folder)!r}: has {size} embeddings where its base has {embeddings.weight.shape[0]}, but not as many rows "
            "of the output head; save it with save_embedding_layers=True"
        )
    base.resize_token_embeddings(size, mean_resizing=False)


def longest_context(model: Any) -> int | None:
    """The longest sequence, in tokens, that a model or its config states; None where it states none."""
    limit = getattr(getattr(model, "config", model).get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def check_context_length(model: Any, context_length: int | None) -> int:
    """`context_length`, or for None the longest sequence, in tokens, that the positions of a model allow; `model` may also be its config.

    A model that states no limit takes any length that is given. Raises `ConfigError` for one that exceeds the limit or is no length,
    and `ModelError` where neither says one.
    """
    config, limit = getattr(model, "config", model), longest_context(model)
    if context_length is None:
        if limit is None:
            raise ModelError(f"model {config.name_or_path!r}: does not say its longest context; give --context-length")
        return limit
    if context_length < 2 or (limit is not None and context_length > limit):
        raise ConfigError(f"context length {context_length}: the model takes 2 {f'to {limit}' if limit else 'or more'} tokens")
    return context_length
