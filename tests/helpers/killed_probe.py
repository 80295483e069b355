"""Probes folders with children that are killed at random moments: `python killed_probe.py FOLDER KILLS SEED`.

A process of its own, because it forks: it has no threads but the one that forks, and each child starts with everything imported.
Probes `FOLDER/whole` without interruption, then `FOLDER/killed-<k>` one after the other, each until it is complete, until so many
children have been killed. Prints what happened as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from gradprism.probing import run
from gradprism.probing.api import probe
from gradprism.runtime import progress
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer

N_TRAJECTORIES = 40


def main() -> None:
    """See the module."""
    folder, wanted, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    progress.set_quiet(True)
    run.SHARD_ROWS = 3
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    model = tiny_qwen3(len(tokenizer))
    rng = random.Random(seed)

    def start(out: Path) -> int:
        if child := os.fork():
            return child
        code = 1
        try:
            trajectories = iter(sample_trajectories(N_TRAJECTORIES))
            probe(model, tokenizer, trajectories, out=out, context_length=1024, batch_tokens=300, per_turn=True)
            code = 0
        finally:
            os._exit(code)

    def ends_well(child: int) -> bool:
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            sys.exit("a child failed of itself")
        return not os.WIFSIGNALED(status)

    ends_well(start(folder / "warm-up"))
    began = time.monotonic()
    ends_well(start(folder / "whole"))
    duration = time.monotonic() - began
    kills, folders = 0, 0
    while kills < wanted:
        out, folders, done = folder / f"killed-{folders}", folders + 1, False
        while not done:
            child = start(out)
            # Half of them early, where the folder and its corpus are made.
            time.sleep(rng.uniform(0, duration) * rng.choice((1.0, 0.2)))
            os.kill(child, signal.SIGKILL)
            done = ends_well(child)  # a child that was quicker is a zombie, which a signal does not change
            kills += not done
    print(json.dumps({"kills": kills, "folders": folders, "seconds_uninterrupted": duration}))


if __name__ == "__main__":
    main()
