"""A corpus made ready for probing: rendered once, kept in the probe folder, and mapped into memory by every process that works on it.

`rendered.arrow` (Arrow IPC) has one row per trajectory; `rendered.json`, written after it, says what it was made of and its hash. Both
are a cache: made whole or not at all, and made again when they are missing, torn, or of other inputs.
"""

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradprism.probing.folder import CORPUS, PROBE, RENDERED, RENDERED_NOTE, WHOLE, ProbeFolder
from gradprism.probing.manifest import OF_CORPUS, ProbeManifest, Totals
from gradprism.probing.plan import Items
from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import atomic_write, read_json, sha256_file, sha256_json, write_json
from gradprism.runtime.folders import OnExisting, removed_on_failure
from gradprism.trajectories.corpus import canonical_line
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory

_LAYOUT = 2
_BATCH_ROWS, _BATCH_TOKENS = 1024, 1 << 20
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


class TrajectoryRenderer(Protocol):
    """The part of a `Renderer` that `prepare` needs."""

    def render(self, trajectory: Trajectory) -> RenderedTrajectory: ...


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
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            self._batches = [reader.get_batch(k) for k in range(reader.num_record_batches)]
        except FileNotFoundError:
            raise MissingFileError(f"{self.path}: no such file; give the same `gradprism probe` command again") from None
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: cannot be read ({error}); delete it and probe again") from None
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.n_turns = self.column("n_turns")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> NDArray[np.int32]:
        """A numeric column: `n_truncated`, `n_turns` or `length`, int32 `[n]`."""
        return np.concatenate([np.empty(0, np.int32), *(batch.column(name).to_numpy() for batch in self._batches)])

    def items(self, per_turn: bool = False) -> Items:
        """Each trajectory as a whole, and with `per_turn` each assistant turn that has a loss of its own."""
        length = self.column("length").astype(np.int64)
        index = [np.arange(len(self))]
        turn, lengths = [np.full(len(self), WHOLE, dtype=np.int32)], [length]
        for start, batch in zip(self._starts, self._batches, strict=False) if per_turn else ():
            column = batch.column("turn_lengths")
            offsets, values = column.offsets.to_numpy().astype(np.int64), column.values.to_numpy()
            at = np.flatnonzero(values)
            row = np.searchsorted(offsets, at, side="right") - 1
            index.append(start + row)
            turn.append((at - offsets[row]).astype(np.int32))
            lengths.append(values[at].astype(np.int64))
        return Items(np.concatenate(index), np.concatenate(turn), np.concatenate(lengths))

    def rendered(self, index: int) -> RenderedTrajectory:
        """A trajectory as it was rendered; its arrays are read-only views of the file where they can be."""
        k = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batches[k], int(index - self._starts[k])

        def values(name: str) -> Any:
            column = batch.column(name)
            start, stop = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
            return column.values[start:stop]

        turns = values("turns").to_numpy().reshape(-1, 2)
        return RenderedTrajectory(
            batch.column("id")[row].as_py(),
            values("input_ids").to_numpy(),
            values("response_mask").to_numpy(zero_copy_only=False),
            batch.column("n_truncated")[row].as_py(),
            turns,
        )

    def sequence(self, index: int, turn: int = WHOLE) -> RenderedTrajectory:
        """Tokens and mask that the model is given for an item."""
        rendered = self.rendered(index)
        return rendered if turn == WHOLE else one_turn(rendered, turn)


def prepare(
    folder: Path,
    description: ProbeManifest,
    trajectories: Iterable[Trajectory],
    renderer: TrajectoryRenderer,
    on_existing: OnExisting = "resume",
) -> tuple[ProbeFolder, Prepared]:
    """Makes the probe folder with its corpus and its rendered corpus, or opens what is there; to be called by one process.

    `description` is the manifest without the corpus. Where its `data` (hashes of the files that `trajectories` come from) and `read`
    are those of the folder's manifest and both files are intact, `trajectories` is not even begun.

    Raises what `FolderKind.claim` does, `DataError` for no trajectories, and what reading and rendering raise; the folder is then as
    it was. `replace` deletes a probe's own files and nothing else.
    """
    folder = Path(folder)
    if opened := reopen(folder, description, on_existing):
        return opened
    with contextlib.ExitStack() as stack:
        stack.enter_context(removed_on_failure(folder))
        writer = _Writer(stack.enter_context(atomic_write(folder / RENDERED, "wb")))
        corpus, digest = stack.enter_context(atomic_write(folder / CORPUS, "wb")), hashlib.sha256()
        for trajectory in trajectories:  # a corpus says itself how far it is
            writer.add(trajectory, renderer.render(trajectory))
            corpus.write(line := canonical_line(trajectory))
            digest.update(line)
        if not writer.n:
            raise DataError("the corpus has no trajectories; there is nothing to probe")
        writer.close()
        manifest = replace(description, corpus_sha256=digest.hexdigest(), n_trajectories=writer.n, totals=Totals(**writer.totals))
        # Before the corpus and its rendering are in their places: a folder is a probe folder once it has its manifest.
        PROBE.claim(folder, manifest.to_json(), on_existing)
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


class _Writer:
    """Collects rendered trajectories and writes them a record batch at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._ipc = pa.ipc.new_file(file, _SCHEMA)
        self._rows: list[tuple[Trajectory, RenderedTrajectory, list[int]]] = []
        self._n_tokens = self.n = 0
        # Of the whole corpus: tokens as rendered, targets, turns with a loss of their own, trajectories that were cut.
        self.totals = {"tokens": 0, "response_tokens": 0, "turns": 0, "truncated": 0}

    def add(self, trajectory: Trajectory, rendered: RenderedTrajectory) -> None:
        lengths = turn_lengths(trajectory, rendered)
        self._rows.append((trajectory, rendered, lengths))
        self.n += 1
        self._n_tokens += len(rendered.input_ids)
        self.totals["tokens"] += len(rendered.input_ids)
        self.totals["response_tokens"] += rendered.n_targets
        self.totals["turns"] += sum(length > 0 for length in lengths)
        self.totals["truncated"] += rendered.n_truncated > 0
        if len(self._rows) >= _BATCH_ROWS or self._n_tokens >= _BATCH_TOKENS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._ipc.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = {
            "id": [rendered.id for _, rendered, _ in self._rows],
            "n_truncated": [rendered.n_truncated for _, rendered, _ in self._rows],
            "n_turns": [sum(m.role == "assistant" and m.train for m in trajectory.messages) for trajectory, _, _ in self._rows],
            "length": [int(np.flatnonzero(rendered.response_mask)[-1]) for _, rendered, _ in self._rows],
            "input_ids": [rendered.input_ids for _, rendered, _ in self._rows],
            "response_mask": [rendered.response_mask for _, rendered, _ in self._rows],
            "turns": [rendered.turns.reshape(-1) for _, rendered, _ in self._rows],
            "turn_lengths": [lengths for _, _, lengths in self._rows],
        }
        arrays = [pa.array(columns[field.name], field.type) for field in _SCHEMA]
        self._ipc.write_batch(pa.record_batch(arrays, schema=_SCHEMA))
        self._rows, self._n_tokens = [], 0
