"""The Ray cluster that a probe runs on: what is asked of it, connecting to it, and what its errors mean."""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradprism.runtime.errors import ConfigError, GradprismError, MissingDependencyError, WorkerError

# How often a batch is tried again after its actor's death, before it counts as the cause.
RETRIES = 4


@dataclass(frozen=True, slots=True)
class Cluster:
    """What to ask of Ray: `workers` actors (None: as many as fit), each with so many CUDA devices (None: one where there are any)
    and processors."""

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
def connected(cluster: Cluster) -> Iterator["Pool"]:
    """A connection to the cluster that `RAY_ADDRESS` names, or else a Ray of this machine alone that ends with the block.

    Raises `MissingDependencyError` without Ray, and `WorkerError` where the cluster is not there or too small.
    """
    # Before Ray is imported, which is when it reads them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ part; Python exceptions say the same again
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingDependencyError(
            "--executor ray: Ray is not installed; install it with: pip install 'gradprism[ray]'"
        ) from None
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if not address:
        # Actors may outnumber the processors: on one machine that is for the user to judge.
        wanted = int(np.ceil((cluster.workers or 1) * cluster.cpus_per_worker))
        options = {"address": "local", "num_cpus": max(os.cpu_count() or 1, wanted), "include_dashboard": False}
    try:
        with _muted_stderr():
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        advice = "look at RAY_ADDRESS, and at RAY_AUTH_MODE and its token if the cluster wants one" if address else "see /tmp/ray"
        raise WorkerError(f"Ray: cannot {'connect' if address else 'start'} ({said}); {advice}") from None
    # Ray says on stdout which actors have died, some of it when it ends.
    with redirect_stdout(sys.stderr):
        try:
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield Pool(cluster, ray.cluster_resources())
        finally:
            ray.shutdown()


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Sends what is written to file descriptor 2 to nowhere: Ray's C++ part says there how its log level is set."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Pool:
    """Actors of a connected cluster."""

    def __init__(self, cluster: Cluster, resources: Mapping[str, float]) -> None:
        devices = resources.get("GPU", 0.0)
        gpus = cluster.gpus_per_worker
        self.gpus = (1.0 if devices else 0.0) if gpus is None else gpus
        self.cpus = cluster.cpus_per_worker
        fit = int(resources.get("CPU", 0.0) // self.cpus)
        if self.gpus:
            fit = min(fit, int(devices // self.gpus))
        if fit < (cluster.workers or 1):
            raise WorkerError(
                f"Ray: {cluster.workers or 1} workers of {self.gpus:g} GPUs and {self.cpus:g} CPUs do not fit a cluster that has "
                f"{devices:g} GPUs and {resources.get('CPU', 0.0):g} CPUs; ask for fewer --workers, --gpus-per-worker or --cpus-per-worker"
            )
        self.workers = cluster.workers or fit

    def run_one(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """`work(*arguments)` in one process of the cluster that has an actor's resources; raises what it raises."""
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

        remote = ray.remote(work).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)
        try:
            return ray.get(remote.remote(*arguments))
        except RayError as error:
            raise own_error(error) from None

    def device(self, device: str) -> str:
        """Where an actor loads the model: over all its devices where it has several."""
        return "auto-map" if self.gpus > 1 and device in ("auto", "cuda") else device


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
