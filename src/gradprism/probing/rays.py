"""Shares of a probe as tasks of a Ray cluster: a task whose process dies is tried again, and goes on with what the folder lacks.

Every node must see the model and the probe folder: a shared disk, or a URL.
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from gradprism.models import ModelSpec
from gradprism.probing.fingerprint import describe_model
from gradprism.probing.folder import local_copy
from gradprism.probing.manifest import ProbeManifest
from gradprism.probing.norms import Costs
from gradprism.probing.run import Counts
from gradprism.probing.work import ProbeOptions, Share, do_share
from gradprism.runtime.errors import ConfigError, GradprismError, MissingDependencyError, WorkerError, one_line
from gradprism.runtime.progress import Progress, set_quiet

# How often a share is tried again after its process's death, before it counts as the cause.
RETRIES = 4


@dataclass(frozen=True, slots=True)
class Ray:
    """Launcher: `workers` tasks at once (None: as many as fit), each with so many CUDA devices (None: one where there are any) and
    processors."""

    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float = 1.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers {self.workers}: must be at least 1")
        gpus = self.gpus_per_worker or 0.0
        if not math.isfinite(gpus) or gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise ConfigError(f"GPUs per worker {gpus:g}: give a whole number, or a share of one")
        if not 0 < self.cpus_per_worker < math.inf:
            raise ConfigError(f"CPUs per worker {self.cpus_per_worker:g}: must be above 0")


@contextmanager
def connected(asked: Ray) -> Iterator["Pool"]:
    """A connection to the cluster that `RAY_ADDRESS` names, or else a Ray of this machine alone that ends with the block.

    Raises `MissingDependencyError` without Ray, and `WorkerError` where the cluster is not there or too small.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported, which is when it reads it
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingDependencyError(
            "--executor ray: Ray is not installed; install it with: pip install 'gradprism[ray]'"
        ) from None
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if not address:
        # Workers may outnumber the processors: on one machine that is for the user to judge.
        wanted = math.ceil((asked.workers or 1) * asked.cpus_per_worker)
        options = {"address": "local", "num_cpus": max(os.cpu_count() or 1, wanted), "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # some of what Ray raises is of no class of its own
        said = one_line(error, 200)
        advice = "look at RAY_ADDRESS, and at RAY_AUTH_MODE and its token if the cluster wants one" if address else "see /tmp/ray"
        raise WorkerError(f"Ray: cannot {'connect' if address else 'start'} ({said}); {advice}") from None
    # Ray says on stdout which processes have died, some of it when it ends.
    with redirect_stdout(sys.stderr):
        try:
            yield Pool(asked, ray.cluster_resources())
        finally:
            ray.shutdown()


class Pool:
    """The processes of a connected cluster."""

    def __init__(self, asked: Ray, resources: Mapping[str, float]) -> None:
        devices, cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
        self.gpus = (1.0 if devices else 0.0) if asked.gpus_per_worker is None else asked.gpus_per_worker
        self.cpus = asked.cpus_per_worker
        fit = int(cpus // self.cpus)
        if self.gpus:
            fit = min(fit, int(devices // self.gpus))
        if fit < (asked.workers or 1):
            raise WorkerError(
                f"Ray: {asked.workers or 1} workers of {self.gpus:g} GPUs and {self.cpus:g} CPUs do not fit a cluster that has "
                f"{devices:g} GPUs and {cpus:g} CPUs; ask for fewer --workers, --gpus-per-worker or --cpus-per-worker"
            )
        self.workers = asked.workers or fit

    def run(self, work: Callable[..., Any], *calls: Sequence[Any]) -> list[Any]:
        """`work(*arguments)` for each of `calls`, at once, each in a process of its own; raises what the first to fail raises."""
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

        remote = ray.remote(work).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)
        asked = [remote.remote(*arguments) for arguments in calls]
        running = asked
        try:
            with Progress("workers", len(asked)) as progress:
                while running:
                    finished, running = ray.wait(running)
                    ray.get(finished)  # raises its error
                    progress.advance(len(finished))
            return ray.get(asked)
        except RayError as error:
            raise own_error(error) from None

    def device(self, device: str) -> str:
        """Where a worker loads the model: over all its devices where it has several."""
        return "auto-map" if self.gpus > 1 and device in ("auto", "cuda") else device

    def describe(self, spec: ModelSpec, options: ProbeOptions, costs: Costs | None) -> ProbeManifest:
        """The manifest's part, from a worker: this process may have neither the memory nor the device."""
        return self.run(_describe, (spec, self.device(spec.device), options, costs))[0]

    def do(self, spec: ModelSpec, options: ProbeOptions, out: str, attempt: str) -> list[Counts]:
        """All shares of the probe folder `out`, one per worker."""
        shares = [Share(rank, self.workers) for rank in range(self.workers)]
        return self.run(_do_share, *((spec, self.device(spec.device), options, out, share, attempt) for share in shares))


def _describe(spec: ModelSpec, device: str, options: ProbeOptions, costs: Costs | None) -> ProbeManifest:
    set_quiet(True)
    return describe_model(options.prober(spec.load(device), costs))


def _do_share(spec: ModelSpec, device: str, options: ProbeOptions, out: str, share: Share, attempt: str) -> Counts:
    set_quiet(True)
    with local_copy(out) as (folder, mirror):
        return do_share(spec.load(device), options, folder, mirror, share, attempt)


def own_error(error: BaseException) -> GradprismError:
    """The deliberate error that a worker of Ray ended with, or a `WorkerError` in one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, GradprismError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    if cause is not None:
        # Ray hands back a class of its own making that derives from both.
        kind = next(kind for kind in type(cause).__mro__ if kind.__module__ == GradprismError.__module__)
        return kind(str(cause.args[0]))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A traceback ends with what went wrong; what Ray says itself begins with it.
    said = lines[-1 if "Traceback" in str(error) else 0] if lines else type(error).__name__
    return WorkerError(f"Ray: {said[:300]}; finished trajectories are kept")
