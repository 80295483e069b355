"""What lies under a model's name: a folder, an adapter, a GGUF file or a hub id, and in which form its weights are."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradprism.runtime.errors import MissingDependencyError, MissingFileError, ModelError, one_line
from gradprism.runtime.files import read_json

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf")
# Forms of weights that transformers can make plain numbers of while it loads them, by the class of their settings.
_DEQUANTISED = {
    "fp8": "FineGrainedFP8Config",
    "mxfp8": "FineGrainedFP8Config",
    "mxfp4": "Mxfp4Config",
    "compressed-tensors": "CompressedTensorsConfig",
}
_DEQUANTISE = "from gptqmodel.utils.model_dequant import dequantize_model; dequantize_model({0!r}, 'dense')"
_GPTQMODEL = f'pip install gptqmodel && python -c "{_DEQUANTISE}"'
_CONVERTERS = {"gptq": _GPTQMODEL, "awq": _GPTQMODEL}


@dataclass(frozen=True, slots=True)
class Source:
    """Where transformers finds a whole model: `name` is a folder or a hub id, `gguf` the file in it where the weights are GGUF."""

    name: str
    gguf: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What its loaders need beside the name."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def check_model_name(name_or_path: str) -> None:
    """Refuses a path that does not exist before anything looks for it on a hub, and one that is no model or two."""
    path = Path(name_or_path)
    if path.is_dir():
        check_finished(path)
        whole, adapter = (path / "config.json").is_file(), (path / ADAPTER_CONFIG).is_file()
        if whole and adapter:
            raise ModelError(
                f"model {name_or_path!r}: the folder holds a whole model (config.json) and an adapter ({ADAPTER_CONFIG}); "
                "move one of them into a folder of its own"
            )
        if not whole and not adapter and _gguf_in(path) is None:
            raise ModelError(f"model {name_or_path!r}: the folder has no config.json; give a folder saved by save_pretrained")
    elif path.exists():
        if path.suffix != ".gguf":
            raise ModelError(f"model {name_or_path!r}: is a file; give the folder that holds config.json and *.safetensors")
        _check_gguf(path)
    elif not HUB_ID.fullmatch(name_or_path):
        raise MissingFileError(f"model {name_or_path!r}: no such folder; give a model folder, or a hub id of the form org/name")


def check_finished(folder: Path) -> None:
    """Refuses the folder of a training that has not come to its end: it holds no model yet."""
    if (folder / "config.json").is_file() or not (folder / "manifest.json").is_file():
        return
    manifest = read_json(folder / "manifest.json")
    if isinstance(manifest, dict) and (command := manifest.get("command")) in ("sft", "rl"):
        raise ModelError(
            f"model {str(folder)!r}: is a training that has not finished; give its `gradprism {command}` command again, which goes on from "
            "its last checkpoint and then writes the model"
        )


def model_source(name_or_path: str) -> Source:
    """Where a whole model lies; a `.gguf` file stands for itself, and for the folder in which it is alone."""
    path = Path(name_or_path)
    file = path if path.suffix == ".gguf" and path.is_file() else None
    if file is None and path.is_dir() and not (path / "config.json").is_file():
        file = _gguf_in(path)
    if file is None:
        return Source(name_or_path)
    _check_gguf(file)
    return Source(str(file.parent), file.name)


def _gguf_in(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(
            f"model {str(folder)!r}: the folder has {len(files)} GGUF files; name one of them, as in {str(files[0])!r}"
        )
    return files[0] if files else None


def _check_gguf(file: Path) -> None:
    if _PART.search(file.name):
        raise ModelError(
            f"model {str(file)!r}: is a part of a model; join the parts with llama-gguf-split --merge FIRST-PART OUT.gguf"
        )
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(
            f"model {str(file)!r}: gguf is not installed; install it with: pip install 'gradprism[quantised]'"
        )


def base_and_adapter(name_or_path: str) -> tuple[str, Path | None]:
    """The model to load, and the adapter's folder where `name_or_path` is one."""
    folder = Path(name_or_path)
    if not is_adapter(name_or_path):
        return name_or_path, None
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"adapter {name_or_path!r}: {ADAPTER_CONFIG} names no base_model_name_or_path; write it there")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"adapter {name_or_path!r}: the folder has no {ADAPTER_WEIGHTS}; save it as safetensors")
    try:
        check_model_name(base)
    except (MissingFileError, ModelError) as error:
        raise ModelError(f"adapter {name_or_path!r}: its base {error}") from None
    return base, folder


def is_adapter(name_or_path: str) -> bool:
    """True for the folder of a PEFT adapter, which is no whole model."""
    folder = Path(name_or_path)
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def check_trainable(name_or_path: str) -> None:
    """Refuses an adapter where a whole model is to be trained and saved, a folder that is no model, and one that is no causal one."""
    check_model_name(name_or_path)
    if is_adapter(name_or_path):
        whole = Path(name_or_path).parent
        merged = (whole / "config.json").is_file()
        how = f"give {str(whole)!r}, its merged model" if merged else "merge it into its base model first (peft's merge_and_unload)"
        raise ModelError(f"model {name_or_path!r}: is an adapter, and what is trained is a whole model; {how}")
    load_config(name_or_path)


def tokenizer_source(name_or_path: str) -> str:
    """Where a model's tokenizer lies: with the model; for an adapter saved without one, with its base model."""
    base, adapter = base_and_adapter(name_or_path)
    return base if adapter is not None and not (adapter / "tokenizer_config.json").is_file() else name_or_path


def load_config(name_or_path: str) -> Any:
    """A model's `transformers` configuration, for an adapter its base model's.

    Raises `MissingFileError` or `ModelError`, also for a model that does not predict each token from those before it.
    """
    from transformers import AutoConfig

    check_model_name(name_or_path)
    source = model_source(base_and_adapter(name_or_path)[0])
    try:
        config = AutoConfig.from_pretrained(source.name, trust_remote_code=False, **source.options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model {name_or_path!r}: its configuration cannot be read: {one_line(error)}") from None
    if other := _not_causal(config):
        raise ModelError(
            f"model {name_or_path!r}: is {other} ({config.model_type}); give a causal language model, which predicts each token from those "
            "before it, such as a Llama, Qwen or Gemma"
        )
    return config


def _not_causal(config: Any) -> str:
    """What the model of a configuration is, where it is no causal language model; else empty.

    Types that began as encoders (BERT and its kin) are causal where their configuration says `is_decoder`.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder"
    began_as_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING or config.model_type == "bert-generation"
    if began_as_encoder and not (getattr(config, "is_decoder", False) or getattr(config, "causal", False)):
        return "an encoder"
    return "" if any(type(config) in mapping for mapping, _ in _classes()) else "no language model"


def auto_class(config: Any) -> Any:
    """The `transformers` auto class that builds the model of a configuration with an output head over tokens.

    A configuration of several parts (text, vision, …) is that of a checkpoint of all of them, whose names of weights only the
    wrapper of all parts knows; a text model's class is for checkpoints of its own.
    """
    from transformers import AutoModelForCausalLM

    causal, *wrappers = _classes()
    wrapped = config.get_text_config(decoder=True) is not config
    choices = [*wrappers, causal] if wrapped else [causal, *wrappers]
    return next((auto for mapping, auto in choices if type(config) in mapping), AutoModelForCausalLM)


def _classes() -> list[tuple[Any, Any]]:
    """Pairs of configurations and the auto class that builds them: language models, then those of several parts."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
    )

    return [
        (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
        (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
        (MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForMultimodalLM),
    ]


def dequantising(name_or_path: str, config: Any) -> dict[str, Any]:
    """Options by which transformers makes plain numbers of a checkpoint's quantised weights; empty where they are, or bitsandbytes'.

    Raises `ModelError`, with the command that converts where there is one, for weights that it cannot make plain.
    """
    import transformers

    found = getattr(config, "quantization_config", None)
    if found is None:
        return {}
    values = found if isinstance(found, dict) else found.to_dict()
    method = str(getattr(values.get("quant_method"), "value", None) or values.get("quant_method"))
    if method in ("bitsandbytes", "None") or values.get("load_in_8bit") or values.get("load_in_4bit"):
        return {}
    if method in _DEQUANTISED:
        return {"quantization_config": getattr(transformers, _DEQUANTISED[method])(dequantize=True)}
    if method == "gguf":
        return {}
    how = f"convert it: {_CONVERTERS[method].format(name_or_path)}" if method in _CONVERTERS else "give a checkpoint in bfloat16"
    raise ModelError(f"model {name_or_path!r}: its weights are quantised by {method}, of which no gradient can be measured; {how}")
