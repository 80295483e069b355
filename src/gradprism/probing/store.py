"""The probe folder: what was probed and how (`manifest.json`, `corpus.jsonl`), and one row a trajectory (`norms-*.parquet`).

Shards are written whole and renamed into place, under a name made from the ids in them, so any number of processes may write to one
folder. A shard that cannot be read counts as not written: its trajectories are owed again. Nothing here needs torch.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradprism.errors import ConfigError, DataError, FolderInUseError, MissingFileError
from gradprism.files import atomic_write, read_json, sha256_json, write_json
from gradprism.progress import say
from gradprism.trajectories.formats import to_record
from gradprism.trajectories.readers import read_trajectories, write_messages_jsonl
from gradprism.trajectories.record import Trajectory

OnExisting = Literal["resume", "replace", "fail"]
# Keys of the manifest that may differ between the runs that fill one folder: they change no number beyond rounding.
INFORMATIVE = frozenset({"model", "data", "device"})


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One trajectory: its place in the corpus, its measures, and `norms` float32 `[N]` in the order of the manifest's units."""

    index: int
    id: str
    n_tokens: int
    n_response_tokens: int
    n_turns: int
    loss: float
    norms: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ProbeTable:
    """A complete probe in the corpus's order: `norms` float32 `[n, N]`, and `columns` with a `ProbeRow`'s other fields."""

    ids: list[str]
    norms: NDArray[np.float32]
    columns: pl.DataFrame


def corpus_fingerprint(trajectories: Sequence[Trajectory]) -> str:
    """Hex SHA-256 of the trajectories' ids, messages and tasks, in order; where they were read from plays no part."""
    return sha256_json([to_record(trajectory) for trajectory in trajectories])


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
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path}: not a probe's manifest; name another folder") from None

    @classmethod
    def create(
        cls, folder: Path, manifest: dict[str, Any], trajectories: Sequence[Trajectory], on_existing: OnExisting = "resume"
    ) -> "ProbeStore":
        """Makes the folder, or goes on with one of the same manifest.

        Raises `FolderInUseError` where the folder holds another probe (naming the keys that differ) or anything but a probe, and
        for any folder in use where `on_existing` is `fail`. `replace` deletes a probe's own files and nothing else.
        """
        folder = Path(folder)
        if on_existing not in ("resume", "replace", "fail"):
            raise ConfigError(f"--on-existing {on_existing}: choose resume, replace or fail")
        if folder.exists() and not folder.is_dir():
            raise FolderInUseError(f"{folder}: exists and is not a folder; choose another --out")
        path = folder / "manifest.json"
        names = [p.name for p in folder.iterdir() if not _is_temporary(p.name)] if folder.is_dir() else []
        if names and on_existing == "fail":
            raise FolderInUseError(f"{folder}: is not empty; choose another --out, or --on-existing resume or replace")
        if names and path.name not in names:
            raise FolderInUseError(f"{folder}: is in use and no probe folder (no manifest.json); choose another --out")
        if names:
            old = cls(folder).manifest  # also for `replace`: another tool's manifest.json is no probe's
            if on_existing == "resume":
                _refuse_differences(folder, old, manifest)
            else:
                for shard in folder.glob("norms-*"):
                    shard.unlink()
        # Before the corpus: a folder is a probe folder once it has its manifest.
        write_json(path, manifest)
        write_messages_jsonl(folder / "corpus.jsonl", trajectories)
        return cls(folder)

    def append(self, rows: Sequence[ProbeRow]) -> None:
        """Writes rows as one shard; nothing for no rows."""
        if not rows:
            return
        norms = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([row.norms for row in rows])), self.n_units)
        columns = {name: [getattr(row, name) for row in rows] for name in self._schema.names if name != "norms"}
        table = pa.table({**columns, "norms": norms}, schema=self._schema)
        name = sha256_json([row.id for row in rows])[:16]
        with atomic_write(self.folder / f"norms-{name}.parquet", "wb") as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)

    def finished(self) -> set[str]:
        """Ids that have a row of finite numbers. Shards that cannot be read are set aside as `*.torn`, with a line to the person."""
        ids: set[str] = set()
        for path, table in self._shards():
            if table is None:
                path.rename(path.with_suffix(".parquet.torn"))
                say(f"{path}: cannot be read; set aside as *.torn, and its trajectories are probed again")
            else:
                ids.update(id for id, finite in zip(table["id"].to_pylist(), self._is_finite(table), strict=True) if finite)
        return ids

    def _is_finite(self, table: pa.Table) -> NDArray[np.bool_]:
        norms = table["norms"].combine_chunks().flatten().to_numpy().reshape(len(table), self.n_units)
        return np.isfinite(norms).all(axis=1) & np.isfinite(table["loss"].to_numpy())

    def read(self) -> ProbeTable:
        """Every row, once, in the corpus's order; raises `DataError` where rows are owed, saying how many."""
        tables, torn = [], []
        for path, table in self._shards():
            if table is None:
                torn.append(path.name)
            else:
                tables.append(table)
        table = pa.concat_tables([self._schema.empty_table(), *tables]).combine_chunks()
        # Two processes may have probed the same trajectory: the first row stands, or the first with a finite loss and norms.
        table = table.take(pa.array(np.argsort(~self._is_finite(table), kind="stable"))).combine_chunks()
        _, first = np.unique(table["index"].to_numpy(), return_index=True)
        table = table.take(pa.array(first)).combine_chunks()
        if owed := self.n_trajectories - len(table):
            because = f" (cannot be read: {', '.join(torn)})" if torn else ""
            raise DataError(
                f"{self.folder}: {owed} of {self.n_trajectories} trajectories are not probed yet{because}; "
                "give the same `gradprism probe` command again, which probes only those"
            )
        columns = pl.DataFrame({name: table[name].to_numpy() for name in table.column_names if name not in ("norms", "id")})
        ids = table["id"].to_pylist()
        norms = table["norms"].combine_chunks().flatten().to_numpy().reshape(len(ids), self.n_units)
        return ProbeTable(ids, norms, columns.with_columns(pl.Series("id", ids)).select("index", "id", pl.exclude("index", "id")))

    def corpus(self) -> list[Trajectory]:
        """The probed trajectories; raises `DataError` where `corpus.jsonl` is no longer what was probed."""
        path = self.folder / "corpus.jsonl"
        trajectories = read_trajectories([path], "messages")
        if corpus_fingerprint(trajectories) != self.manifest["corpus_sha256"]:
            raise DataError(
                f"{path}: is not the corpus that was probed; give the same `gradprism probe` command again, which restores it"
            )
        return trajectories

    @property
    def _schema(self) -> pa.Schema:
        counts = [(name, pa.int64()) for name in ("n_tokens", "n_response_tokens", "n_turns")]
        norms = pa.list_(pa.float32(), self.n_units)
        return pa.schema([("index", pa.int64()), ("id", pa.string()), *counts, ("loss", pa.float64()), ("norms", norms)])

    def _shards(self) -> Iterator[tuple[Path, pa.Table | None]]:
        """Each shard in the order of names, with None for one that cannot be read or is not of this probe's form."""
        for path in sorted(self.folder.glob("norms-*.parquet")):
            table = None
            # Whether a file is Parquet at all pyarrow says with ArrowInvalid; damage further in is an OSError.
            with contextlib.suppress(pa.ArrowException, OSError):
                table = pq.ParquetFile(path, page_checksum_verification=True).read()
            if table is not None and (table.schema.remove_metadata() != self._schema or any(c.null_count for c in table.columns)):
                table = None
            yield path, table


def _is_temporary(name: str) -> bool:
    """What a process that was killed while writing leaves behind."""
    return name.startswith(".") and name.endswith(".tmp")


def _refuse_differences(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    keys = [key for key in sorted(old.keys() | new.keys()) if key not in INFORMATIVE and old.get(key) != new.get(key)]
    if keys:
        changes = "; ".join(f"{key}: {_short(old.get(key))} → {_short(new.get(key))}" for key in keys)
        raise FolderInUseError(f"{folder}: holds another probe ({changes}); choose another --out, or --on-existing replace")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
