"""Loading models: safetensors only, no remote code, and one clear line when it cannot be done."""

from pathlib import Path
from typing import Any

from gradprism.errors import ConfigError, MissingFileError, ModelError

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def resolve_device(device: str) -> str:
    """`auto` is a CUDA device where there is one, else the CPU; raises `ModelError` for a device that is not there."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ModelError(f"device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda': torch finds no CUDA device here; choose auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def load_model(name_or_path: str, dtype: str = "float32", device: str = "auto") -> Any:
    """A `transformers` causal language model in evaluation mode.

    An existing folder is read from disk; any other name is a hub id. Raises `MissingFileError` or `ModelError`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: choose one of {list(DTYPES)}")
    check_model_name(name_or_path)
    where = resolve_device(device)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            output_loading_info=True,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"model {name_or_path!r}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    model, info = loaded
    absent = sorted(str(key) for part in ("missing_keys", "mismatched_keys") for key in info.get(part, ()))
    if absent:  # the library fills these with random numbers
        raise ModelError(f"model {name_or_path!r}: the file lacks {len(absent)} of the model's weights, among them {absent[0]}")
    return model.to(where).eval()


def check_context_length(model: Any, context_length: int | None) -> int:
    """`context_length`, or the model's own limit for None; raises `ConfigError` where it exceeds that limit or is no length."""
    limit = context_limit(model)
    if context_length is not None and not 2 <= context_length <= limit:
        raise ConfigError(f"context length {context_length}: the model takes 2 to {limit} tokens")
    return limit if context_length is None else context_length


def context_limit(model: Any) -> int:
    """Longest sequence, in tokens, that the model's positions allow."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise ModelError(f"model {model.config.name_or_path!r}: does not say its longest context; give --context-length")
    return limit


def check_model_name(name_or_path: str) -> None:
    """Refuses a path that does not exist before anything looks for it on a hub."""
    path = Path(name_or_path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {name_or_path!r}: the folder has no config.json; give a folder saved by save_pretrained")
    elif path.exists():
        raise ModelError(f"model {name_or_path!r}: is a file; give the folder that holds config.json and *.safetensors")
    elif name_or_path.count("/") > 1 or name_or_path.startswith((".", "/", "~")) or name_or_path.endswith("/"):
        raise MissingFileError(f"model {name_or_path!r}: no such folder")
