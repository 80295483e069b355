"""What scores cost, as Markdown tables: metrics of stored norms, and scores of the probe's pass beside a pass without any.

    OMP_NUM_THREADS=1 python benchmarks/score_cost.py --trajectories 100000 --layers 36
    OMP_NUM_THREADS=1 python benchmarks/score_cost.py --pass --lengths 256,1024

Stored norms are random (gamma, shape 2) of seven matrices in each layer. They are scored by one thread in blocks of the size that a probe's
shards are scored in; reading them is left out. With `--pass` a model of Qwen3-0.6B's width, 4 layers and random weights is probed on
batches of 2,048 tokens, as in `probe_cost.py`. All times are processor time. Repetitions take turns over the scores, and a ratio is taken
between times of the same repetition; tables have the median and the range.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from numpy.typing import NDArray

from gradprism.concentration import METRICS
from gradprism.probing.manifest import UnitInfo
from gradprism.probing.pass_scores import PASS_SCORES
from gradprism.probing.prober import Prober
from gradprism.probing.scores import BLOCK_ENTRIES, measure, unit_groups
from gradprism.probing.units import KINDS
from peers.case import Sizes, build_case, build_model

TOKENS = 2048


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


def seconds_of_passes(sizes: Sizes, T: int, tokens: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of processor time of each repetition of a batch of `tokens` in sequences of T: without scores, with each, and with all."""
    model = build_model(sizes, torch.float32, "cpu", 0)
    batch = build_case(model, max(1, tokens // T), T, 0).trajectories
    probers = {
        name: Prober(model, scores=asked) for name, asked in {"none": (), **{n: (n,) for n in PASS_SCORES}, "all": ("all",)}.items()
    }
    probers["sketch"].probe(batch)  # makes its signs
    probers["all"].probe(batch)
    taken: dict[str, list[float]] = {name: [] for name in probers}
    for _ in range(repeats):
        for name, prober in probers.items():
            began = time.process_time()
            prober.probe(batch)
            taken[name].append(time.process_time() - began)
    return taken


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--trajectories", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pass", action="store_true", dest="of_pass", help="scores of the pass")
    parser.add_argument("--lengths", default="256,1024", help="with --pass: tokens of a sequence, with commas between")
    given = parser.parse_args()
    if given.of_pass:
        torch.set_num_threads(1)
        sizes = Sizes(hidden=1024, layers=4, ffn=3072, heads=16, kv_heads=8, head_dim=128, vocabulary=4096)
        print(
            f"hidden 1024, 4 layers, batches of {TOKENS} tokens, float32, one thread, {given.repeats} repetitions, processor time"
        )
        for T in map(int, given.lengths.split(",")):
            taken = seconds_of_passes(sizes, T, TOKENS, given.repeats)
            print(f"\nT = {T}\n\n| `--scores` | seconds | times a pass without |\n|---|---|---|")
            for name, seconds in taken.items():
                print(
                    f"| `{name}` | {_spread(seconds)} | {_spread([a / b for a, b in zip(seconds, taken['none'], strict=True)])} |"
                )
        return
    norms = np.random.default_rng(0).gamma(2.0, size=(given.trajectories, len(KINDS) * given.layers))
    print(f"{len(norms)} × {norms.shape[1]} norms, one thread, {given.repeats} repetitions, processor time\n")
    print("| metric | seconds |\n|---|---|")
    for name, seconds in seconds_of(norms, given.layers, given.repeats).items():
        print(f"| `{name}` | {_spread(seconds)} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
