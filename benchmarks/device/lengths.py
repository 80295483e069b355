"""Lengths and masks of a corpus without its text: for each trajectory how many tokens of observations and of responses follow one another.

    python benchmarks/device/lengths.py CORPUS MODEL       # makes alfworld-lengths.npz again

`alfworld-lengths.npz` holds the 3,554 expert trajectories of ALFWorld's training games (`alfworld_sft.jsonl`, ETO's format; ALFWorld's
licence is MIT), rendered by SmolLM2-135M-Instruct's tokenizer with its ChatML template. Qwen3's template is ChatML, too; its tokenizer
has three times the vocabulary, so its counts would be somewhat smaller on such plain English. `runs` uint16 are the alternating numbers of
other and of response tokens, those of one trajectory after those of another; `counts` uint16 says how many are each one's.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALFWORLD = Path(__file__).with_name("alfworld-lengths.npz")
Mask = NDArray[np.bool_]


def to_runs(mask: Mask) -> NDArray[np.uint16]:
    """The lengths of a mask's alternating runs, beginning with one of false, which may be empty."""
    changes = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=2))
    return np.diff(changes, prepend=0).astype(np.uint16)


def to_mask(runs: NDArray[np.uint16]) -> Mask:
    """The inverse of `to_runs`."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def save(path: Path, masks: Sequence[Mask]) -> None:
    """Writes the masks of a corpus."""
    runs = [to_runs(mask) for mask in masks]
    np.savez_compressed(path, runs=np.concatenate(runs), counts=np.array([len(run) for run in runs], dtype=np.uint16))


def load(path: Path = ALFWORLD) -> list[Mask]:
    """The masks of a corpus, in its order."""
    with np.load(path) as file:
        runs, counts = file["runs"], file["counts"].astype(np.int64)
    return [to_mask(part) for part in np.split(runs, np.cumsum(counts)[:-1])]


def main(corpus: str, model: str) -> None:
    """Renders a corpus and writes its masks."""
    import gradprism as gp
    from gradprism.trajectories.parallel import render_all

    renderer = gp.Renderer(gp.load_tokenizer(model), None)
    masks = [rendered.response_mask for rendered in render_all(renderer, list(gp.load_corpus(corpus)))]
    save(ALFWORLD, masks)
    lengths, responses = [len(mask) for mask in masks], sum(int(mask.sum()) for mask in masks)
    print(f"{len(masks)} trajectories, {sum(lengths)} tokens ({responses} of responses), at most {max(lengths)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
