"""Processor time of every registered metric on stored norms, as a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/score_cost.py --trajectories 100000 --layers 36

The norms are random (gamma, shape 2) of seven matrices in each layer. They are scored by one thread in blocks of the size that a probe's
shards are scored in; reading them is left out. Repetitions take turns over the metrics; the table has the median and the range.
"""

import argparse
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from gradprism.concentration import METRICS
from gradprism.probing.manifest import UnitInfo
from gradprism.probing.scores import BLOCK_ENTRIES, measure, unit_groups
from gradprism.probing.units import KINDS


def seconds_of(norms: NDArray[np.float64], layers: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of processor time of each repetition, by metric; norms `[n, 7·layers]`."""
    groups = unit_groups([UnitInfo(f"layers.{layer}.{kind}_proj") for layer in range(layers) for kind in KINDS])
    step = max(1, BLOCK_ENTRIES // norms.shape[1])
    taken: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range(repeats):
        for name, seconds in taken.items():
            began = time.process_time()
            for start in range(0, len(norms), step):
                measure(name, norms[start : start + step], groups)
            seconds.append(time.process_time() - began)
    return taken


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--trajectories", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    norms = np.random.default_rng(0).gamma(2.0, size=(given.trajectories, len(KINDS) * given.layers))
    print(f"{len(norms)} × {norms.shape[1]} norms, one thread, {given.repeats} repetitions, processor time\n")
    print("| metric | seconds |\n|---|---|")
    for name, seconds in seconds_of(norms, given.layers, given.repeats).items():
        print(f"| `{name}` | {statistics.median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}] |")


if __name__ == "__main__":
    main()
