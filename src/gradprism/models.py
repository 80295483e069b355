"""Loading models: safetensors only, no remote code, and one clear line when it cannot be done."""

from pathlib import Path
from typing import Any

from gradprism.errors import MissingFileError, ModelError

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def resolve_device(device: str) -> str:
    """`auto` is a CUDA device where there is one, else the CPU."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(name_or_path: str, dtype: str = "float32", device: str = "auto") -> Any:
    """A `transformers` causal language model in evaluation mode.

    An existing folder is read from disk; any other name is a hub id. Raises `MissingFileError` or `ModelError`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: choose one of {list(DTYPES)}")
    check_model_name(name_or_path)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"model {name_or_path!r}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    return model.to(resolve_device(device)).eval()


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
