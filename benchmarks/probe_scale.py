"""A corpus of a million short trajectories through the probe's own path and through routing, with a stub for the model.

    python benchmarks/probe_scale.py --trajectories 1000000 --units 28

The reader, the probe folder, the plan, the threads and the shards are the real ones. The renderer gives a token a byte, and the prober
gives norms that follow from the tokens, so what is measured is everything but tokenizer and model. Each phase runs in a process of its
own; the result is printed as JSON: seconds and peak resident memory of each phase.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradprism.runtime.memory import peak_memory_mib
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer

BATCH_TOKENS = 2048
PLACES = ("cabinet", "drawer", "shelf", "desk", "fridge", "countertop", "microwave")


def synthetic_trajectories(n: int) -> Iterator[Trajectory]:
    """`n` different conversations of two to four turns and some hundred characters."""
    for i in range(n):
        messages = [Message("user", f"You are in room {i}. Your task is to: put object {i * 7 % 1009} on the {PLACES[i % 7]}.")]
        for turn in range(2 + i % 3):
            messages += [
                Message("assistant", f"go to {PLACES[(i + turn) % 7]} {i * 31 % 97}"),
                Message("user", f"You arrive at it. On it, you see object {(i + turn) * 13 % 1009}."),
            ]
        yield Trajectory(f"synthetic-{i:07d}", tuple(messages[:-1]), {"env": "none", "game": str(i)}, f"synthetic:{i}")


class ByteRenderer(Renderer):
    """A token a byte, for which no tokenizer is needed."""

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(unk_token_id=None)

    def render(self, trajectory: Trajectory) -> RenderedTrajectory:
        """Tokens, mask and turns of the messages' texts, one after the other."""
        texts = [message.content.encode() for message in trajectory.messages]
        ends = np.cumsum([len(text) for text in texts])
        mask = np.zeros(ends[-1], dtype=bool)
        turns = []
        for message, text, end in zip(trajectory.messages, texts, ends.tolist(), strict=True):
            if message.role == "assistant":
                mask[end - len(text) : end] = True
                turns.append((end - len(text), end))
        ids = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int32)
        return RenderedTrajectory(trajectory.id, ids, mask, 0, np.array(turns, dtype=np.int32))


def stub_norms(ids: NDArray[Any], n_units: int) -> NDArray[np.float64]:
    """Norms float64 `[n_units]`, between 1 and 2, that follow from the tokens."""
    total = int(ids.sum()) + 31 * int(ids[-20:].sum())
    k = np.arange(1, n_units + 1)
    return 1 + (total * k + k * k) % 997 / 997


class StubProber:
    """Gives `stub_norms`, and the share of response tokens as the loss."""

    def __init__(self, n_units: int) -> None:
        self.unit_names = [f"layers.{k // 7}.{k % 7}" for k in range(n_units)]

    def probe(self, trajectories: Sequence[RenderedTrajectory]) -> Any:
        """A `ProbeResult`."""
        from gradprism.probing.prober import ProbeResult

        return ProbeResult(
            norms=np.stack([stub_norms(t.input_ids, len(self.unit_names)) for t in trajectories]),
            loss=np.array([t.response_mask.mean() for t in trajectories]),
            n_response_tokens=np.array([t.n_targets for t in trajectories]),
            token_losses=[np.ones(t.n_targets, dtype=np.float16) for t in trajectories],
            scores={},
        )


def make_corpus(path: Path, n: int) -> None:
    """Writes the corpus file that the probe is to read."""
    from gradprism.trajectories.corpus import write_messages_jsonl

    write_messages_jsonl(path, synthetic_trajectories(n))


def probe(corpus: Path, out: Path, n_units: int) -> dict[str, Any]:
    """Prepares and probes; returns seconds of both."""
    from gradprism.probing.manifest import ProbeManifest
    from gradprism.probing.plan import padding_share, pending_batches, plan_items
    from gradprism.probing.prepared import prepare
    from gradprism.probing.run import BatchRun, ShardWriter
    from gradprism.runtime.attempts import Attempt
    from gradprism.runtime.files import sha256_file
    from gradprism.trajectories.corpus import CorpusFile, load_corpus

    prober: Any = StubProber(n_units)
    data = (CorpusFile(str(corpus), sha256_file(corpus)),)
    description = ProbeManifest(units=tuple(prober.unit_names), data=data)
    began = time.perf_counter()
    store, prepared = prepare(out, description, load_corpus(corpus), ByteRenderer())
    prepared_in = time.perf_counter() - began
    items = prepared.items()
    plan = plan_items(items, BATCH_TOKENS)
    pending = pending_batches(items, plan, store.finished())
    run = BatchRun(prober, prepared, items, BATCH_TOKENS, workers=2)
    with ShardWriter(store, Attempt(out), len(items)) as writer:
        run.run(pending, writer.add)
    return {
        "prepare_seconds": prepared_in,
        "probe_seconds": time.perf_counter() - began - prepared_in,
        "batches": len(plan),
        "padding_share": padding_share(items, plan),
        "shards": len(list(out.glob("norms-*.parquet"))),
        "rows": run.counts.rows,
    }


def route_corpus(probed: Path, out: Path) -> dict[str, Any]:
    """Routes; returns the counts."""
    from gradprism.routing.routes import route

    routes = route(probed)
    routes.save(out)
    return {"n_sft": routes.routing.n_sft, "n_rl": routes.routing.n_rl, "threshold": routes.routing.threshold}


def main() -> None:
    """Runs each phase in a process of its own and prints what they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--trajectories", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=28)
    parser.add_argument("--folder", type=Path, help="Folder for the files, some GiB; default a temporary one.")
    parser.add_argument("--phase", choices=("corpus", "probe", "again", "route"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        from gradprism.runtime import progress

        progress.set_quiet(True)
        corpus, probed, routed = (arguments.folder / name for name in ("corpus.jsonl", "probe", "route"))
        began = time.perf_counter()
        if arguments.phase == "corpus":
            result = make_corpus(corpus, arguments.trajectories) or {"mib": corpus.stat().st_size / 2**20}
        elif arguments.phase == "route":
            result = route_corpus(probed, routed)
        else:
            result = probe(corpus, probed, arguments.units)
        print(json.dumps({"seconds": time.perf_counter() - began, "peak_memory_mib": peak_memory_mib(), **result}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"trajectories": arguments.trajectories, "units": arguments.units}
        for phase in ("corpus", "probe", "again", "route"):
            command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder)]
            command += ["--trajectories", str(arguments.trajectories), "--units", str(arguments.units)]
            began = time.perf_counter()
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result[phase] = {**json.loads(printed), "process_seconds": time.perf_counter() - began}
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
