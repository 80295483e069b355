"""The probe folder: what was probed and how (`manifest.json`, `corpus.jsonl`), and one row a work item (`norms-*.parquet`).

A work item is a trajectory as a whole (`turn` −1) or one of its assistant turns. Shards are written whole and renamed into place, under
a name made from the items in them, so any number of processes may write to one folder. A shard that cannot be read counts as not
written: its items are owed again. Nothing here needs torch.
"""

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from gradprism.runtime.errors import ConfigError, DataError, FolderInUseError, MissingFileError
from gradprism.runtime.files import (
    atomic_write,
    is_temporary,
    read_json,
    remove_stale_temporaries,
    sha256_json,
    write_json,
    writing,
)
from gradprism.runtime.folders import differences, removed_on_failure
from gradprism.runtime.progress import say
from gradprism.trajectories.readers import canonical_line
from gradprism.trajectories.record import Trajectory

OnExisting = Literal["resume", "replace", "fail"]
Kind = Literal["whole", "turns"]
WHOLE = -1
_PROBE = b"gradprism.probe"  # key of a shard's metadata
_TURN_BITS = (1 << 20) - 1
# Keys of the manifest that may differ between the runs that fill one folder: they change no number beyond rounding.
INFORMATIVE = frozenset({"model", "data", "read", "device", "parameters", "n_parameters", "weight_norms", "costs", "totals"})
# Keys that are known only when the corpus has been read.
_OF_CORPUS = frozenset({"corpus_sha256", "n_trajectories"})
_RESTORE = "give the same `gradprism probe` command again, which restores it"
# Files of a probe folder besides the manifest and the corpus that `replace` deletes.
_OWN = ("norms-*", "attempts.jsonl", "rendered.*")


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One item: its trajectory's place in the corpus, its measures, and `norms` float32 `[N]` in the order of the manifest's units.

    `turn` is −1 for the whole trajectory, else the number of an assistant turn, from 0. `l2` is the gradient's norm over all units.
    """

    index: int
    id: str
    turn: int
    n_tokens: int
    n_response_tokens: int
    n_turns: int
    loss: float
    l2: float
    norms: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ProbeTable:
    """A complete probe in the corpus's order: `norms` float32 `[n, N]`, and `columns` with a `ProbeRow`'s other fields."""

    norms: NDArray[np.float32]
    columns: pl.DataFrame

    @property
    def ids(self) -> list[str]:
        """The trajectories' ids, `[n]`."""
        return self.columns["id"].to_list()


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of one shard: `codes` int64 `[k]`, their `item_code`s; `columns`, a `ProbeRow`'s fields but `norms`; `norms` `[k, N]`."""

    codes: NDArray[np.int64]
    columns: pa.Table
    norms: NDArray[Any]

    def take(self, rows: NDArray[Any]) -> "Shard":
        """The rows at the positions `rows`."""
        if len(rows) == len(self.codes):
            return self
        return Shard(self.codes[rows], self.columns.take(pa.array(rows)), self.norms[rows])


def item_code(index: ArrayLike, turn: ArrayLike) -> NDArray[np.int64]:
    """One number for each item, int64; numbers order items by trajectory and then by turn, the whole first."""
    return (np.asarray(index, dtype=np.int64) << 20) | (np.asarray(turn, dtype=np.int64) + 1)  # 20 bits: see `_TURN_BITS`


class ProbeStore:
    """An existing probe folder; `create` makes one."""

    def __init__(self, folder: Path) -> None:
        """Raises `MissingFileError` where `folder` is no probe folder and `DataError` where its manifest is broken."""
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            what = "holds no manifest.json" if self.folder.is_dir() else "no such folder"
            raise MissingFileError(f"{folder}: {what}; name a folder that `gradprism probe` has written")
        self.manifest: dict[str, Any] = read_json(path)
        try:
            self.n_trajectories, self.n_units = int(self.manifest["n_trajectories"]), len(self.manifest["units"])
            # Turns that can be probed one by one; a folder that holds whole trajectories alone need not say.
            self.n_turns = int(self.manifest.get("totals", {}).get("turns", 0))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise DataError(f"{path}: not a probe's manifest; name another folder") from None
        # Each shard bears it: rows of another probe, by a run that this folder was taken from, are none of this one's.
        told = {key: value for key, value in self.manifest.items() if key not in INFORMATIVE}
        self._fingerprint = sha256_json(told).encode()

    @classmethod
    def check(cls, folder: Path, description: dict[str, Any], on_existing: OnExisting) -> "ProbeStore | None":
        """The probe that `folder` already holds, or None where it holds nothing; `description` is a manifest without the corpus.

        Raises `FolderInUseError` where the folder holds another probe (naming the keys that differ) or anything but a probe, and
        for any folder in use where `on_existing` is `fail`. A probe that is to be replaced may differ.
        """
        folder = Path(folder)
        if on_existing not in ("resume", "replace", "fail"):
            raise ConfigError(f"--on-existing {on_existing}: choose resume, replace or fail")
        if folder.exists() and not folder.is_dir():
            raise FolderInUseError(f"{folder}: exists and is not a folder; choose another --out")
        names = [p.name for p in folder.iterdir() if not is_temporary(p.name)] if folder.is_dir() else []
        if not names:
            return None
        if on_existing == "fail":
            raise FolderInUseError(f"{folder}: is not empty; choose another --out, or --on-existing resume or replace")
        if "manifest.json" not in names:
            raise FolderInUseError(f"{folder}: is in use and no probe folder (no manifest.json); choose another --out")
        old = cls(folder)  # also for `replace`: another tool's manifest.json is no probe's
        if on_existing == "resume":
            old.refuse_differences(description, _OF_CORPUS)
        return old

    @classmethod
    def create(
        cls,
        folder: Path,
        description: dict[str, Any],
        trajectories: Iterable[Trajectory],
        on_existing: OnExisting = "resume",
        totals: Callable[[], dict[str, int]] = dict,
    ) -> "ProbeStore":
        """Makes the folder, or goes on with one of the same manifest; the corpus is streamed into it.

        The manifest is `description`, the corpus's hash and size, and `totals()` as it is when the last trajectory has been taken.
        Raises what `check` does, also where the corpus is another, and `DataError` for no trajectories; then the folder is as it
        was. `replace` deletes a probe's own files and nothing else.
        """
        folder = Path(folder)
        old = cls.check(folder, description, on_existing)
        with removed_on_failure(folder), atomic_write(folder / "corpus.jsonl", "wb") as file:
            digest, n = hashlib.sha256(), 0
            for trajectory in trajectories:
                line = canonical_line(trajectory)
                file.write(line)
                digest.update(line)
                n += 1
            if not n:
                raise DataError("the corpus has no trajectories; there is nothing to probe")
            # Streaming takes its time, in which another run may have made the folder its own.
            old = cls.check(folder, description, on_existing)
            manifest = {**description, "corpus_sha256": digest.hexdigest(), "n_trajectories": n, "totals": totals()}
            if old and on_existing == "resume":
                old.refuse_differences(manifest)
            with writing(folder):
                for pattern in _OWN if on_existing == "replace" else ():
                    for path in folder.glob(pattern):
                        path.unlink(missing_ok=True)
                remove_stale_temporaries(folder)
            # Before the corpus: a folder is a probe folder once it has its manifest.
            write_json(folder / "manifest.json", manifest)
        return cls(folder)

    def refuse_differences(self, new: dict[str, Any], unless: frozenset[str] = frozenset()) -> None:
        """Raises `FolderInUseError`, naming the keys, where a manifest `new` is not this probe's; keys in `unless` may differ."""
        changes = differences(self.manifest, new, INFORMATIVE | unless)
        if changes:
            raise FolderInUseError(
                f"{self.folder}: holds another probe ({changes}); choose another --out, or --on-existing replace"
            )

    def append(self, rows: Sequence[ProbeRow]) -> None:
        """Writes rows as one shard; nothing for no rows. Raises `WriteError`; older shards are untouched by it."""
        if not rows:
            return
        norms = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([row.norms for row in rows])), self.n_units)
        columns = {name: [getattr(row, name) for row in rows] for name in self._schema.names if name != "norms"}
        table = pa.table({**columns, "norms": norms}, schema=self._schema.with_metadata({_PROBE: self._fingerprint}))
        # The name says which items are within: written again, they replace themselves.
        name = sha256_json([[row.index, row.turn] for row in rows])[:16]
        with atomic_write(self.folder / f"norms-{name}.parquet", "wb") as file:
            # Norms hardly repeat: a dictionary of them costs time and space.
            pq.write_table(table, file, compression="zstd", write_page_checksum=True, use_dictionary=False)

    def finished(self, set_aside: bool = True) -> NDArray[np.int64]:
        """Sorted `item_code`s of the items that have a row of finite numbers.

        Shards that cannot be read are set aside as `*.torn`, with a line to the person, unless `set_aside` is false.
        """
        torn: list[Path] = []
        codes = [shard.codes for shard in self._shards(torn)]
        for path in torn if set_aside else ():
            with writing(path), contextlib.suppress(FileNotFoundError):  # another process was faster
                path.rename(path.with_suffix(".parquet.torn"))
                say(f"{path}: cannot be read; set aside as *.torn (torn, or of another probe), and its items are probed again")
        return np.unique(np.concatenate([np.empty(0, np.int64), *codes]))

    def read(self) -> ProbeTable:
        """The rows of whole trajectories, once each; raises `DataError` where rows are owed, saying how many."""
        return self._table("whole")

    def read_turns(self) -> ProbeTable:
        """The rows of single turns, by trajectory and turn; raises `DataError` where rows are owed, saying how many."""
        return self._table("turns")

    def _table(self, kind: Kind) -> ProbeTable:
        shards = list(self.scan(kind))
        codes = np.concatenate([np.empty(0, np.int64), *(shard.codes for shard in shards)])
        norms = np.concatenate([np.empty((0, self.n_units), np.float32), *(shard.norms for shard in shards)])
        table = pa.concat_tables([self._schema.remove(len(self._schema) - 1).empty_table(), *(shard.columns for shard in shards)])
        del shards
        order = np.argsort(codes)
        return ProbeTable(norms[order], to_frame(table.take(pa.array(order))))

    def scan(self, kind: Kind, compute: Callable[[Shard], NDArray[Any]] | None = None) -> Iterator[Shard]:
        """The finite rows of whole trajectories, or of turns, once each, shard by shard in no order of the corpus.

        `compute`, run on several threads, makes of a shard's rows what takes the place of its norms, `[k, …]`.
        Raises `DataError` after the last shard where rows are owed, saying how many.
        """
        expected = self.n_trajectories if kind == "whole" else self.n_turns
        seen = _Seen(kind, self.n_trajectories)
        torn: list[Path] = []
        for shard in self._shards(torn, kind, compute):
            # Two processes may have probed the same item: the first row stands.
            yield shard.take(seen.first(shard.codes))
        if owed := expected - seen.n:
            more = f" and {len(torn) - 3} more" if len(torn) > 3 else ""
            because = f" (cannot be read: {', '.join(path.name for path in torn[:3])}{more})" if torn else ""
            what = "trajectories" if kind == "whole" else "turns"
            raise DataError(
                f"{self.folder}: {owed} of {expected} {what} are not probed yet{because}; give the same `gradprism probe` command "
                f"again{'' if kind == 'whole' else ' with --per-turn'}, which probes only those"
            )

    def corpus_blocks(self) -> Iterator[list[bytes]]:
        """The lines of `corpus.jsonl`, one a trajectory and without their ends, some thousand at a time.

        Raises `DataError` after the last where they are not what was probed.
        """
        path = self.folder / "corpus.jsonl"
        digest, rest = hashlib.sha256(), b""
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    *lines, rest = (rest + block).split(b"\n")
                    yield lines
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}); {_RESTORE}") from None
        if digest.hexdigest() != self.manifest["corpus_sha256"]:
            raise DataError(f"{path}: is not the corpus that was probed; {_RESTORE}")

    @property
    def _schema(self) -> pa.Schema:
        integers = [(name, pa.int64()) for name in ("n_tokens", "n_response_tokens", "n_turns")]
        floats = [(name, pa.float64()) for name in ("loss", "l2")]
        item = [("index", pa.int64()), ("id", pa.string()), ("turn", pa.int32())]
        return pa.schema([*item, *integers, *floats, ("norms", pa.list_(pa.float32(), self.n_units))])

    def _shards(
        self, torn: list[Path], kind: Kind | None = None, compute: Callable[[Shard], NDArray[Any]] | None = None
    ) -> Iterator[Shard]:
        """The finite rows of each shard, of one kind or of both, in the order of names; adds to `torn` what is not of this probe."""

        def load(path: Path) -> Shard | None:
            shard = self._load(path)
            if shard is not None and kind is not None:
                shard = shard.take(np.flatnonzero((shard.codes & _TURN_BITS == 0) == (kind == "whole")))
            return shard if shard is None or compute is None else Shard(shard.codes, shard.columns, compute(shard))

        paths = deque(sorted(self.folder.glob("norms-*.parquet")))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            loading: deque[tuple[Path, Future[Shard | None]]] = deque()
            while paths or loading:
                while paths and len(loading) < 2 * (os.cpu_count() or 1):  # few enough to bound the memory
                    loading.append((path := paths.popleft(), pool.submit(load, path)))
                path, future = loading.popleft()
                if (shard := future.result()) is None:
                    torn.append(path)
                else:
                    yield shard

    def _load(self, path: Path) -> Shard | None:
        # Whether a file is Parquet at all pyarrow says with ArrowInvalid; damage further in is an OSError without a number.
        try:
            table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) and not isinstance(error, FileNotFoundError):
                raise DataError(f"{path}: cannot be read ({error}); nothing is lost, try again once it can") from None
            return None
        if (table.schema.metadata or {}).get(_PROBE) != self._fingerprint:
            return None
        if table.schema.remove_metadata() != self._schema or any(column.null_count for column in table.columns):
            return None
        table = table.combine_chunks()
        norms = table["norms"].combine_chunks().flatten().to_numpy().reshape(len(table), self.n_units)
        codes = item_code(table["index"].to_numpy(), table["turn"].to_numpy())
        finite = np.isfinite(norms).all(axis=1) & np.isfinite(table["loss"].to_numpy())
        return Shard(codes, table.drop("norms"), norms).take(np.flatnonzero(finite))


class _Seen:
    """Which items of a kind have come by, and how many."""

    def __init__(self, kind: Kind, n_trajectories: int) -> None:
        self.n = 0
        # A flag for each trajectory, with which a million are gone through in a moment; turns have no such numbers.
        self._flags = np.zeros(n_trajectories, dtype=bool) if kind == "whole" else None
        self._codes: set[int] = set()

    def first(self, codes: NDArray[np.int64]) -> NDArray[np.intp]:
        """Positions of the codes that have not come before."""
        if self._flags is None:
            fresh = [k for k, code in enumerate(codes.tolist()) if code not in self._codes and not self._codes.add(code)]
        else:
            at = np.sort(np.unique(codes, return_index=True)[1])
            index = codes[at] >> 20
            fresh = at[~self._flags[index]]
            self._flags[index] = True
        self.n += len(fresh)
        return np.array(fresh, dtype=np.intp)


def to_frame(columns: pa.Table) -> pl.DataFrame:
    """A shard's columns as a polars table."""
    return pl.DataFrame(pl.from_arrow(columns))
