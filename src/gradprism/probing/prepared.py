"""A corpus made ready for probing: rendered once, kept in the probe folder, and mapped into memory by every process that works on it.

`rendered.arrow` (Arrow IPC) has one row per trajectory; `rendered.json`, written after it, says what it was made of and its hash. Both
are a cache: made whole or not at all, and made again when they are missing, torn, or of other inputs.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradprism.probing.folder import CORPUS, PROBE, RENDERED, RENDERED_NOTE, WHOLE, ProbeFolder
from gradprism.probing.manifest import OF_CORPUS, ProbeManifest, Totals
from gradprism.probing.plan import Items
from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import atomic_write, read_json, sha256_file, sha256_json, write_json
from gradprism.runtime.folders import OnExisting, removed_on_failure
from gradprism.trajectories.corpus import SKIPPED, Corpus, canonical_line, write_skipped
from gradprism.trajectories.parallel import render_usable
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer, check_vocabulary

_LAYOUT = 2
_BATCH_ROWS = 256
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("n_truncated", pa.int32()),
        ("n_turns", pa.int32()),  # assistant turns that are trained on, cut off or not
        ("length", pa.int32()),  # tokens that the model reads: those before the last target
        ("input_ids", pa.list_(pa.int32())),
        ("response_mask", pa.list_(pa.bool_())),
        ("turns", pa.list_(pa.int32())),  # first token and end of each assistant turn, one pair after the other
        ("turn_lengths", pa.list_(pa.int32())),  # tokens read for the turn's own loss; 0 for a turn without one
    ]
)


def turn_lengths(trajectory: Trajectory, rendered: RenderedTrajectory) -> list[int]:
    """For each assistant turn the tokens that the model reads for that turn's own loss; 0 where no target of it is left."""
    answers = [message for message in trajectory.messages if message.role == "assistant"]
    lengths = []
    for (start, stop), message in zip(rendered.turns.tolist(), answers, strict=True):
        # The first token has nothing that predicts it.
        targets = np.flatnonzero(rendered.response_mask[max(1, start) : stop])
        lengths.append(max(1, start) + int(targets[-1]) if message.train and targets.size else 0)
    return lengths


def one_turn(rendered: RenderedTrajectory, turn: int) -> RenderedTrajectory:
    """The trajectory up to the end of an assistant turn, with only that turn's tokens to be trained on."""
    start, stop = rendered.turns[turn].tolist()
    mask = np.zeros(stop, dtype=bool)
    mask[start:] = rendered.response_mask[start:stop]
    return RenderedTrajectory(rendered.id, rendered.input_ids[:stop], mask, 0, rendered.turns[turn : turn + 1])


class Prepared:
    """The rendered corpus of a probe folder, mapped into memory: opening it is cheap, and reading touches only what is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises `MissingFileError` or `DataError` where `folder` has no rendered corpus that can be read."""
        self.path = Path(folder) / RENDERED
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
        except FileNotFoundError:
            raise MissingFileError(f"{self.path}: no such file; give the same `gradprism probe` command again") from None
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: cannot be read ({error}); delete it and probe again") from None
        self.n_turns = self.column("n_turns")

    def __len__(self) -> int:
        return self._table.num_rows

    def column(self, name: str) -> NDArray[np.int32]:
        """A numeric column: `n_truncated`, `n_turns` or `length`, int32 `[n]`."""
        return self._table[name].to_numpy()

    def items(self, per_turn: bool = False) -> Items:
        """Each trajectory as a whole, and with `per_turn` each assistant turn that has a loss of its own."""
        n = len(self)
        whole = Items(np.arange(n), np.full(n, WHOLE, dtype=np.int32), self.column("length").astype(np.int64))
        if not per_turn:
            return whole
        lengths = self._table["turn_lengths"].combine_chunks()
        counts, values = lengths.value_lengths().to_numpy(), lengths.flatten().to_numpy()
        at = np.flatnonzero(values)
        row = np.repeat(whole.index, counts)[at]
        turn = at - (np.cumsum(counts) - counts)[row]
        return Items(
            np.concatenate([whole.index, row]),
            np.concatenate([whole.turn, turn.astype(np.int32)]),
            np.concatenate([whole.length, values[at].astype(np.int64)]),
        )

    def rendered(self, index: int) -> RenderedTrajectory:
        """A trajectory as it was rendered; its arrays are read-only views of the file where they can be."""
        cell = {name: self._table[name][index] for name in ("id", "input_ids", "response_mask", "n_truncated", "turns")}
        return RenderedTrajectory(
            cell["id"].as_py(),
            cell["input_ids"].values.to_numpy(),
            cell["response_mask"].values.to_numpy(zero_copy_only=False),
            cell["n_truncated"].as_py(),
            cell["turns"].values.to_numpy().reshape(-1, 2),
        )

    def sequence(self, index: int, turn: int = WHOLE) -> RenderedTrajectory:
        """Tokens and mask that the model is given for an item."""
        rendered = self.rendered(index)
        return rendered if turn == WHOLE else one_turn(rendered, turn)


def prepare(
    folder: Path,
    description: ProbeManifest,
    trajectories: Iterable[Trajectory],
    renderer: Renderer,
    on_existing: OnExisting = "resume",
) -> tuple[ProbeFolder, Prepared]:
    """Makes the probe folder with its corpus and its rendered corpus, or opens what is there; to be called by one process.

    `description` is the manifest without the corpus. Where its `data` (hashes of the files that `trajectories` come from) and `read`
    are those of the folder's manifest and both files are intact, `trajectories` is not even begun.

    What a `Corpus` leaves out (`on_bad`) is told in `skipped.jsonl`. Raises what `FolderKind.claim` does, `DataError` for no
    trajectories, `ModelError` for a token past the embeddings, and what reading and rendering raise; the folder is then as it was.
    `replace` deletes a probe's own files and nothing else.
    """
    folder = Path(folder)
    if opened := reopen(folder, description, on_existing):
        return opened
    with contextlib.ExitStack() as stack:
        stack.enter_context(removed_on_failure(folder))
        rendered = stack.enter_context(atomic_write(folder / RENDERED, "wb"))
        corpus, digest = stack.enter_context(atomic_write(folder / CORPUS, "wb")), hashlib.sha256()
        n, totals, rows = 0, Counter[str](), list[dict[str, Any]]()
        with pa.ipc.new_file(rendered, _SCHEMA) as file:
            # A corpus says itself how far it is.
            for n, (trajectory, one) in enumerate(render_usable(renderer, trajectories), 1):  # noqa: B007
                rows.append(_row(trajectory, one))
                check_vocabulary(one, description.vocabulary)
                totals.update(_counts(one, rows[-1]["turn_lengths"], renderer.unknown_id))
                corpus.write(line := canonical_line(trajectory))
                digest.update(line)
                if len(rows) == _BATCH_ROWS:
                    file.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
                    rows.clear()
            if not n:
                raise DataError("the corpus has no trajectories; there is nothing to probe")
            file.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
        manifest = replace(description, corpus_sha256=digest.hexdigest(), n_trajectories=n, totals=Totals(**totals))
        # Before the corpus and its rendering are in their places: a folder is a probe folder once it has its manifest.
        PROBE.claim(folder, manifest.to_json(), on_existing)
    if isinstance(trajectories, Corpus):
        write_skipped(folder / SKIPPED, [trajectories], tell=False)  # who asked for the folder says it
    made = ProbeFolder(folder)
    write_json(folder / RENDERED_NOTE, {"of": _of(made.manifest), "sha256": sha256_file(folder / RENDERED)})
    return made, Prepared(folder)


def reopen(folder: Path, description: ProbeManifest, on_existing: OnExisting) -> tuple[ProbeFolder, Prepared] | None:
    """The folder as `prepare` would open it without reading the corpus again, or None; raises as `FolderKind` does."""
    found = PROBE.check(folder, on_existing)
    if found is None:
        return None
    old = ProbeFolder(folder)  # also for `replace`: what is no probe's manifest is not replaced
    if on_existing != "resume":
        return None
    PROBE.refuse_differences(folder, found, description.to_json(), OF_CORPUS)
    return (old, Prepared(folder)) if _same_data(old.manifest, description) and _is_intact(old) else None


def _same_data(old: ProbeManifest, new: ProbeManifest) -> bool:
    hashes = [[file.sha256 for file in manifest.data] for manifest in (old, new)]
    return bool(hashes[0]) and hashes[0] == hashes[1] and old.read == new.read


def _is_intact(probe: ProbeFolder) -> bool:
    try:
        note = read_json(probe.folder / RENDERED_NOTE)
        return (
            note["of"] == _of(probe.manifest)
            and note["sha256"] == sha256_file(probe.folder / RENDERED)
            and sha256_file(probe.folder / CORPUS) == probe.manifest.corpus_sha256
        )
    except (OSError, DataError, KeyError, TypeError):
        return False


def _of(manifest: ProbeManifest) -> str:
    """Hash of all that the rendered corpus depends on."""
    return sha256_json(
        [_LAYOUT, [manifest.corpus_sha256, manifest.tokenizer_sha256, manifest.template_sha256, manifest.context_length]]
    )


def _row(trajectory: Trajectory, rendered: RenderedTrajectory) -> dict[str, Any]:
    return {
        "id": rendered.id,
        "n_truncated": rendered.n_truncated,
        "n_turns": sum(message.role == "assistant" and message.train for message in trajectory.messages),
        "length": int(np.flatnonzero(rendered.response_mask)[-1]),
        "input_ids": rendered.input_ids,
        "response_mask": rendered.response_mask,
        "turns": rendered.turns.reshape(-1),
        "turn_lengths": turn_lengths(trajectory, rendered),
    }


def _counts(rendered: RenderedTrajectory, lengths: Sequence[int], unknown_id: int | None) -> dict[str, int]:
    """A trajectory's part of the `Totals`."""
    return {
        "tokens": len(rendered.input_ids),
        "response_tokens": rendered.n_targets,
        "turns": sum(length > 0 for length in lengths),
        "truncated": int(rendered.n_truncated > 0),
        "unknown": rendered.n_unknown(unknown_id),
    }
