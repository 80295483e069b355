"""The files of a probe folder: `manifest.json`, `corpus.jsonl`, and one row per work item in `norms-*.parquet`. Beside each of these,
`losses-*.parquet` has the losses of single tokens, which nothing else depends on. Scores of the pass that were asked for are columns of
the rows: lists of a number per unit, single numbers, or a sketch.

A work item is a trajectory as a whole (`turn` −1) or one of its assistant turns. Shards are written whole and renamed into place, under
a name made from the items in them, so any number of processes may write to one folder. A shard that cannot be read counts as not
written: its items are pending again. Nothing here needs torch.
"""

import contextlib
import hashlib
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradprism.probing.manifest import INFORMATIVE, ProbeManifest
from gradprism.probing.mirror import Mirror, is_url
from gradprism.probing.pass_scores import PASS_SCORES
from gradprism.probing.plan import item_code, item_of
from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import atomic_write, read_json, sha256_json, writing
from gradprism.runtime.folders import MANIFEST, FolderKind
from gradprism.runtime.progress import say
from gradprism.trajectories.corpus import SKIPPED

Kind = Literal["whole", "turns"]
WHOLE = -1
CORPUS, RENDERED, RENDERED_NOTE = "corpus.jsonl", "rendered.arrow", "rendered.json"
PROBE = FolderKind(
    "probe", "units", ("norms-*", "losses-*", "attempts*.jsonl", RENDERED, RENDERED_NOTE, CORPUS, SKIPPED), INFORMATIVE
)
_LOSSES = pa.schema([("index", pa.int64()), ("losses", pa.list_(pa.float16()))])
_METADATA_KEY = b"gradprism.probe"
RESTORE = "give the same `gradprism probe` command again, which restores it"


@contextlib.contextmanager
def local_copy(out: str | Path) -> Iterator[tuple[Path, Mirror | None]]:
    """`out` itself, or for a URL a copy on this machine with all that is there so far, and its mirror."""
    if is_url(out):
        mirror = Mirror(str(out), (MANIFEST, *PROBE.own))
        mirror.pull()
        yield mirror.folder, mirror
    else:
        yield Path(out).expanduser(), None


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One item: its trajectory's place in the corpus, its measures, and `norms` float32 `[N]` in the order of the manifest's units.

    `turn` is −1 for the whole trajectory, else the number of an assistant turn, from 0. `l2` is the gradient's norm over all units.
    `token_losses` are those of `loss`'s single tokens, float16 `[n_response_tokens]` in nats; None where they are not kept.
    `scores` are those of the manifest: an array float32 of a number per unit, or of a sketch, or a number.
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
    token_losses: NDArray[np.float16] | None = None
    scores: Mapping[str, NDArray[np.float32] | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbeTable:
    """Rows of a complete probe, in the corpus's order: `norms` float32 `[n, N]` or what was computed of them `[n, …]`, and `frame` with
    a `ProbeRow`'s other fields."""

    norms: NDArray[Any]
    frame: pl.DataFrame

    @property
    def ids(self) -> list[str]:
        """The trajectories' ids, `[n]`."""
        return self.frame["id"].to_list()


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of one shard: `codes` int64 `[k]`, their `item_code`s; `columns`, a `ProbeRow`'s fields but `norms`; `norms` `[k, N]`."""

    def stored(self, score: str) -> NDArray[Any]:
        """What the pass gave for a score that the rows have: `[k]`, or `[k, width]` of a list."""
        column = self.columns[score].combine_chunks()
        if not pa.types.is_fixed_size_list(column.type):
            return column.to_numpy()
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)

    codes: NDArray[np.int64]
    columns: pa.Table
    norms: NDArray[Any]

    def take(self, rows: NDArray[Any]) -> "Shard":
        """The rows at the positions `rows`."""
        if len(rows) == len(self.codes):
            return self
        return Shard(self.codes[rows], self.columns.take(pa.array(rows)), self.norms[rows])


class ProbeFolder:
    """An existing probe folder, on this machine; `prepared.prepare` makes one."""

    def __init__(self, folder: Path, kept: object = None) -> None:
        """`kept`: what the files live with, where they are a temporary folder's or a copy of a URL's.

        Raises `MissingFileError` where `folder` is no probe folder and `DataError` where its manifest is broken.
        """
        self.folder, self.kept = Path(folder), kept
        path = self.folder / MANIFEST
        if not path.is_file():
            what = f"holds no {MANIFEST}" if self.folder.is_dir() else "no such folder"
            raise MissingFileError(f"{folder}: {what}; name a folder that `gradprism probe` has written")
        self.manifest = ProbeManifest.from_json(read_json(path), path)
        self._schema = _schema(self.manifest)
        self._measures = [name for name in self._schema.names if name not in ("norms", *self.manifest.scores)]

    def append(self, rows: Sequence[ProbeRow]) -> Path:
        """Writes one row or more as one shard, and gives its file. Raises `WriteError`; older shards are untouched by it."""
        columns = {name: [getattr(row, name) for row in rows] for name in self._measures}
        lists = {"norms": _lists([row.norms for row in rows])}
        scores = {name: _lists([row.scores[name] for row in rows]) for name in self.manifest.scores}
        table = pa.table(
            {**columns, **lists, **scores}, schema=self._schema.with_metadata({_METADATA_KEY: self.manifest.fingerprint})
        )
        # The name says which items are within: written again, they replace themselves.
        name = sha256_json([[row.index, row.turn] for row in rows])[:16]
        path = self.folder / f"norms-{name}.parquet"
        if kept := [(row.index, row.token_losses) for row in rows if row.token_losses is not None]:
            losses = {"index": [index for index, _ in kept], "losses": [losses for _, losses in kept]}
            self._write(path.with_name(f"losses-{name}.parquet"), pa.table(losses, schema=_LOSSES))
        self._write(path, table)
        return path

    def _write(self, path: Path, table: pa.Table) -> None:
        with atomic_write(path, "wb") as file:
            # Numbers hardly repeat: a dictionary of them costs time and space.
            pq.write_table(table, file, compression="zstd", write_page_checksum=True, use_dictionary=False)

    def beside(self, shard: Path) -> list[Path]:
        """The file of losses that was written with a shard, if there is one."""
        losses = shard.with_name(shard.name.replace("norms-", "losses-", 1))
        return [losses] if losses.is_file() else []

    def token_losses(self, index: int) -> NDArray[np.float16] | None:
        """Losses of a trajectory's response tokens, in nats, float16 `[n_response_tokens]`; None where they are not kept, or torn."""
        if index not in self._losses:
            return None
        path, row = self._losses[index]
        with contextlib.suppress(pa.ArrowException, OSError):
            return pq.ParquetFile(path, page_checksum_verification=True).read(["losses"])["losses"][row].values.to_numpy()
        return None

    @cached_property
    def _losses(self) -> dict[int, tuple[Path, int]]:
        """The file and row of each trajectory's losses."""
        places = {}
        for path in sorted(self.folder.glob("losses-*.parquet")):
            with contextlib.suppress(pa.ArrowException, OSError):
                indices = pq.ParquetFile(path, page_checksum_verification=True).read(["index"])["index"].to_pylist()
                places |= {index: (path, row) for row, index in enumerate(indices)}
        return places

    @property
    def has_turns(self) -> bool:
        """Whether a shard tells of a single turn; says nothing of whether all are there."""
        for path in self.folder.glob("norms-*.parquet"):
            with contextlib.suppress(pa.ArrowException, OSError):
                about = pq.read_metadata(path)
                column = about.schema.names.index("turn")
                found = [about.row_group(group).column(column).statistics for group in range(about.num_row_groups)]
                if any(one is not None and one.has_min_max and one.max > WHOLE for one in found):
                    return True
        return False

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

    def read(
        self, kind: Kind = "whole", compute: Callable[[Shard], NDArray[Any]] | None = None, columns: Sequence[str] | None = None
    ) -> ProbeTable:
        """The rows of whole trajectories, or of turns by trajectory and turn, once each; `compute` and what is raised: as in `scan`.

        The frame has only `columns`, where they are given.
        """
        names = columns or self._measures
        codes = [np.empty(0, np.int64)]
        tables, norms = [self._schema.empty_table().select(names)], list[NDArray[Any]]()
        for shard in self.scan(kind, compute):
            codes.append(shard.codes)
            tables.append(shard.columns.select(names))
            norms.append(shard.norms)
        order = np.argsort(np.concatenate(codes))
        whole = np.concatenate(norms or [np.empty((0, len(self.manifest.units)), np.float32)])
        del norms
        return ProbeTable(whole[order], pl.DataFrame(pl.from_arrow(pa.concat_tables(tables).take(pa.array(order)))))

    def scan(self, kind: Kind, compute: Callable[[Shard], NDArray[Any]] | None = None) -> Iterator[Shard]:
        """The finite rows of whole trajectories, or of turns, once each, shard by shard in no order of the corpus.

        `compute`, run on several threads, makes of a shard's rows what takes the place of its norms, `[k, …]`.
        Raises `DataError` after the last shard where rows are pending, saying how many.
        """
        expected = self.manifest.n_trajectories if kind == "whole" else self.manifest.totals.turns
        seen = _Seen(self.manifest.n_trajectories)
        torn: list[Path] = []
        for shard in self._shards(torn, kind, compute):
            # Two processes may have probed the same item: the first row stands.
            yield shard.take(seen.first(shard.codes))
        if pending := expected - seen.n:
            more = f" and {len(torn) - 3} more" if len(torn) > 3 else ""
            because = f" (cannot be read: {', '.join(path.name for path in torn[:3])}{more})" if torn else ""
            what, option = ("trajectories", "") if kind == "whole" else ("turns", " --per-turn")
            raise DataError(
                f"{self.folder}: {pending} of {expected} {what} are not probed yet{because}; give the same `gradprism probe{option}` "
                "command again, which probes only those"
            )

    def corpus_blocks(self) -> Iterator[list[bytes]]:
        """The lines of `corpus.jsonl`, one per trajectory and without their ends, some thousand at a time.

        Raises `DataError` after the last where they are not what was probed.
        """
        path = self.folder / CORPUS
        digest, rest = hashlib.sha256(), b""
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    *lines, rest = (rest + block).split(b"\n")
                    yield lines
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}); {RESTORE}") from None
        if digest.hexdigest() != self.manifest.corpus_sha256:
            raise DataError(f"{path}: is not the corpus that was probed; {RESTORE}")

    def _shards(
        self, torn: list[Path], kind: Kind | None = None, compute: Callable[[Shard], NDArray[Any]] | None = None
    ) -> Iterator[Shard]:
        """The finite rows of each shard, of one kind or of both, in the order of names; adds to `torn` what is not of this probe."""

        def load(path: Path) -> Shard | None:
            shard = self._load(path)
            if shard is not None and kind is not None:
                shard = shard.take(np.flatnonzero((item_of(shard.codes)[1] == WHOLE) == (kind == "whole")))
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
        if (table.schema.metadata or {}).get(_METADATA_KEY) != self.manifest.fingerprint.encode():
            return None
        if table.schema.remove_metadata() != self._schema or any(column.null_count for column in table.columns):
            return None
        table = table.combine_chunks()
        norms = table["norms"].combine_chunks().flatten().to_numpy().reshape(len(table), len(self.manifest.units))
        codes = item_code(table["index"].to_numpy(), table["turn"].to_numpy())
        finite = np.isfinite(norms).all(axis=1) & np.isfinite(table["loss"].to_numpy())
        return Shard(codes, table.drop("norms"), norms).take(np.flatnonzero(finite))


def _lists(values: Sequence[NDArray[np.float32] | float]) -> pa.Array:
    """Numbers, or arrays of one length as lists."""
    table = np.stack(values)
    return pa.array(table) if table.ndim == 1 else pa.FixedSizeListArray.from_arrays(pa.array(table.reshape(-1)), table.shape[1])


def _schema(manifest: ProbeManifest) -> pa.Schema:
    item = [("index", pa.int64()), ("id", pa.string()), ("turn", pa.int32())]
    counts = [(name, pa.int64()) for name in ("n_tokens", "n_response_tokens", "n_turns")]
    measures = [("loss", pa.float64()), ("l2", pa.float64())]
    n_units = len(manifest.units)
    widths = {"norms": n_units, **{name: PASS_SCORES[name].width(n_units) for name in manifest.scores}}
    lists = [(name, pa.float64() if width is None else pa.list_(pa.float32(), width)) for name, width in widths.items()]
    return pa.schema([*item, *counts, *measures, *lists])


class _Seen:
    """Which items have come by, and how many."""

    def __init__(self, n_trajectories: int) -> None:
        self.n = 0
        # A flag for each trajectory, by turn: a million are gone through in a moment, and pages that nothing sets take no memory.
        self._flags = defaultdict[int, NDArray[np.bool_]](lambda: np.zeros(n_trajectories, dtype=bool))

    def first(self, codes: NDArray[np.int64]) -> NDArray[np.intp]:
        """Positions of the codes that have not come before."""
        first = np.unique(codes, return_index=True)[1]
        index, turns = item_of(codes[first])
        fresh = np.zeros(len(first), dtype=bool)
        for turn in np.unique(turns).tolist():
            flags, here = self._flags[turn], turns == turn
            fresh[here] = ~flags[index[here]]
            flags[index[here]] = True
        self.n += int(fresh.sum())
        return np.sort(first[fresh])
