"""Probes the corpus of a folder slowly, in small shards, by two tasks of a Ray of this machine: `python -m helpers.slow_ray SHARED OUT`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradprism.models import ModelSpec
from gradprism.probing.api import probe
from gradprism.probing.rays import Ray
from gradprism.runtime import progress
from gradprism.trajectories.corpus import load_corpus
from helpers.ranks import slow_down


@dataclass(frozen=True, slots=True)
class SlowSpec(ModelSpec):
    """Makes the process that loads it slow."""

    def load(self, device: str | None = None) -> Any:
        """As `ModelSpec.load`."""
        slow_down(0.1)
        return ModelSpec.load(self, device)


def main() -> None:
    """See the module."""
    shared, out = Path(sys.argv[1]), Path(sys.argv[2])
    progress.set_quiet(True)
    spec = SlowSpec(str(shared / "model"), device="cpu")
    corpus = load_corpus(shared / "corpus.jsonl")
    run = probe(spec, None, corpus, out=out, batch_tokens=150, per_turn=True, launcher=Ray(workers=2)).run
    assert run is not None
    print(json.dumps(run.to_json()))


if __name__ == "__main__":
    from helpers.slow_ray import main as importable  # its class must not be of `__main__`, which workers do not have

    importable()
