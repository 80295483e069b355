"""Where a probe runs: the one choice between this process, a launcher's processes, and a Ray cluster."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gradprism.models import check_context_length, is_adapter, load_config, tokenizer_source
from gradprism.probing.executors.cluster import Cluster, connected
from gradprism.probing.executors.estimate import estimate_probe
from gradprism.probing.executors.flow import probe_corpus
from gradprism.probing.executors.local import InProcess
from gradprism.probing.executors.sharding import sharding_asked_by_launcher
from gradprism.probing.executors.spec import ModelSpec
from gradprism.probing.manifest import Options
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.progress import set_quiet
from gradprism.runtime.ranks import Ranks
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import load_tokenizer


@dataclass(frozen=True, slots=True)
class Where:
    """`executor` `auto`: the processes of torchrun or accelerate where one of them started this process, else this process alone.
    `ray`: actors, as `cluster` says. `shard_model`: a launcher's processes hold one copy of the weights among them."""

    device: str = "auto"
    executor: Literal["auto", "ray"] = "auto"
    cluster: Cluster = field(default_factory=Cluster)
    shard_model: bool = False


def probe_anywhere(
    spec: ModelSpec,
    where: Where,
    trajectories: Callable[[], Iterable[Trajectory]],
    out: Path,
    options: Options,
    *,
    chat_template: Path | None = None,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """`probe_corpus` of the model that `spec` names, with its tokenizer and, where `options` have none, its context's limit.

    With `dry_run` `estimate_probe`, in one process. The result is None in a process that is not to print. `trajectories` is called by
    the one process that reads the corpus. Raises what those raise, and `ConfigError` for choices that do not go together.
    """
    ranks = Ranks.from_environment()
    shard = where.shard_model or (ranks is not None and sharding_asked_by_launcher())
    _check(spec, where, ranks, shard)
    with ExitStack() as stack:
        if ranks is not None and dry_run and not ranks.is_first:
            return None
        if ranks is not None and not dry_run:
            stack.enter_context(ranks.failing_together())
            if not ranks.is_first:
                from gradprism.probing.executors.launched import follow

                set_quiet(True)
                follow(ranks, spec, where.device, shard, out)
                return None
        options = replace(options, context_length=check_context_length(load_config(spec.path), options.context_length))
        tokenizer = load_tokenizer(tokenizer_source(spec.path), chat_template)
        if dry_run or (where.executor == "auto" and ranks is None):
            model = spec.load(where.device)
            executor = InProcess(model, spec.units(model), checkpoint_activations=spec.checkpoint_activations)
            work = estimate_probe if dry_run else probe_corpus
            return work(executor, tokenizer, trajectories(), out, options)
        if ranks is not None:
            from gradprism.probing.executors.launched import Launched

            executor = Launched(ranks, spec, where.device, shard)
        else:
            from gradprism.probing.executors.actors import OnRay

            executor = OnRay(stack.enter_context(connected(where.cluster)), spec, where.device)
        return probe_corpus(executor, tokenizer, trajectories(), out, options)


def _check(spec: ModelSpec, where: Where, ranks: Ranks | None, shard: bool) -> None:
    if where.executor == "ray" and ranks is not None:
        raise ConfigError("--executor ray: start it as one process, without torchrun or accelerate launch")
    if where.executor == "ray" and shard:
        raise ConfigError("--shard-model: not with --executor ray; give each worker several devices by --gpus-per-worker")
    if shard and ranks is None:
        raise ConfigError("--shard-model: needs several processes; start it with torchrun --nproc-per-node N -m gradprism probe …")
    if shard and spec.quantise is not None:
        raise ConfigError("--shard-model: not with --quantise; use --device auto-map for a quantised model on several devices")
    if shard and is_adapter(spec.path):
        raise ConfigError("--shard-model: not with an adapter; merge it into its base model first (peft's merge_and_unload)")
