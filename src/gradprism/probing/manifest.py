"""What a probe's manifest says of model and corpus, and what a run tells at its end."""

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from gradprism import __version__
from gradprism.probing.fingerprint import config_fingerprint, weights_fingerprint
from gradprism.probing.norms import Costs
from gradprism.probing.plan import rope_boundaries
from gradprism.probing.prober import Prober
from gradprism.probing.run import Counts, default_batch_tokens
from gradprism.probing.store import OnExisting, ProbeStore
from gradprism.probing.units import weight_norms
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.runtime.files import sha256_file
from gradprism.trajectories.rendering import template_fingerprint, tokenizer_fingerprint


@dataclass(frozen=True, slots=True)
class Options:
    """How a corpus is probed, whoever does it.

    `context_length`: tokens a trajectory may have, None for as many as it has. `batch_tokens` (default `default_batch_tokens`)
    bounds the padded tokens of a batch. `per_turn`: each turn too, by its own mean loss. Where the corpus comes from files, `data`
    names them and `read` says how they are read (format, limit): a run that goes on with a folder made of the same reads no corpus.
    """

    context_length: int | None = None
    batch_tokens: int | None = None
    per_turn: bool = False
    on_existing: OnExisting = "resume"
    data: Sequence[Path] = ()
    read: dict[str, Any] = field(default_factory=dict)


def kept_costs(out: Path, on_existing: OnExisting) -> Costs | None:
    """The costs by which the probe in `out` chose between the forms of a norm: a resumed one must choose alike. None for a new probe."""
    if on_existing != "resume" or not (Path(out) / "manifest.json").is_file():
        return None
    kept: Any = ProbeStore(out).manifest.get("costs")
    try:
        return Costs(**kept)
    except TypeError:  # none, or not of this form
        return None


def describe_model(prober: Prober) -> dict[str, Any]:
    """What a manifest says of the model and its units, as plain values: enough for everything but the work itself."""
    model = prober.model
    return {
        "model": model.name_or_path,
        "model_class": type(model).__name__,
        "weights_sha256": weights_fingerprint(model),
        "config_sha256": config_fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "device": model.device.type,
        "parameters": model.num_parameters(),
        "rope_boundaries": list(rope_boundaries(model.config)),
        "units": prober.unit_names,
        "n_parameters": [unit.n_parameters for unit in prober.units],
        "weight_norms": [norm if math.isfinite(norm) else None for norm in weight_norms(prober.found)],
        "costs": asdict(prober.costs),
    }


def describe_probe(model: dict[str, Any], tokenizer: Any, options: Options) -> dict[str, Any]:
    """A manifest without the corpus: `describe_model`'s part, what renders the corpus, and the files that it comes from.

    Raises `DataError` for data that can be read only once.
    """
    for path in options.data:
        if path.exists() and not path.is_file():  # read twice: by its hash, and by its records
            raise DataError(f"{path}: is no regular file; write what comes from it to one first")
    return {
        **model,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "template_sha256": template_fingerprint(tokenizer),
        "context_length": options.context_length,
        "data": [{"path": str(path), "sha256": sha256_file(path)} for path in options.data],
        "read": options.read,
        "versions": {
            "gradprism": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }


def checked_batch_tokens(batch_tokens: int | None, device: str) -> int:
    """`batch_tokens`, or the device's default for None; raises `ConfigError` below 1."""
    if batch_tokens is not None and batch_tokens < 1:
        raise ConfigError(f"batch tokens {batch_tokens}: must be at least 1")
    return batch_tokens or default_batch_tokens(device)


def summarise(
    store: ProbeStore,
    counts: Counts,
    *,
    kept: int,
    kept_turns: int,
    padding: float,
    batch_tokens: int,
    seconds: float,
    probing_seconds: float,
    earlier: dict[str, Any],
) -> dict[str, Any]:
    """What a run did, as plain values. `earlier` is the cost of earlier attempts at the same folder (`attempts.total_cost`)."""
    manifest = store.manifest
    totals = manifest["totals"]
    whole = counts.rows - counts.turns
    return {
        "probed": whole,
        "kept": kept - kept_turns,
        "probed_turns": counts.turns,
        "kept_turns": kept_turns,
        "tokens_forward": counts.tokens,
        "tokens_backward": counts.tokens,
        "batch_tokens": batch_tokens,
        "padding_share": round(padding, 5),
        "units": len(manifest["units"]),
        "parameters": manifest["parameters"],
        "device": manifest["device"],
        "seconds": round(seconds, 3),
        "probing_seconds": round(probing_seconds, 3),
        "tokens_per_second": round(counts.tokens / probing_seconds, 1),
        "trajectories_per_second": round(whole / probing_seconds, 2),
        "earlier": earlier,
        "corpus": {
            "trajectories": store.n_trajectories,
            **totals,
            "sha256": manifest["corpus_sha256"],
            "files": manifest["data"],
        },
    }
