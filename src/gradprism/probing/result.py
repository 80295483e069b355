"""A probe: norms of a corpus, and everything that is read off them. Nothing here needs torch."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.concentration import BUILTIN
from gradprism.probing.folder import CORPUS, PROBE, RESTORE, ProbeFolder, ProbeTable, local_copy
from gradprism.probing.manifest import ProbeManifest, UnitInfo
from gradprism.probing.mirror import is_url
from gradprism.probing.scores import View, check_stored, score, unit_scales
from gradprism.runtime.attempts import total_usage
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError
from gradprism.runtime.files import parse_json
from gradprism.runtime.folders import MANIFEST, OnExisting, atomic_folder
from gradprism.runtime.registry import as_names
from gradprism.runtime.usage import Usage
from gradprism.trajectories.formats import parse_record
from gradprism.trajectories.record import Trajectory


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """One call's work: items `probed` by it and `kept` from before, of single turns `probed_turns` and `kept_turns` more.

    `usage` is this call's, `earlier` that of the attempts at the folder before it. `batch_tokens` is what batches were cut to where
    memory ran out, `padding_share` the plan's share of padded tokens, `probing_seconds` the time without loading and rendering.
    """

    probed: int
    kept: int
    probed_turns: int
    kept_turns: int
    batch_tokens: int
    padding_share: float
    probing_seconds: float
    usage: Usage
    earlier: Usage

    @property
    def trajectories_per_second(self) -> float:
        """While probing."""
        return self.probed / self.probing_seconds

    @property
    def tokens_per_second(self) -> float:
        """While probing, padding not counted."""
        return self.usage.tokens_forward / self.probing_seconds

    def to_json(self) -> dict[str, Any]:
        """All figures by their names, those of `usage` among them."""
        figures = asdict(self)
        speeds = {name: round(getattr(self, name), 2) for name in ("trajectories_per_second", "tokens_per_second")}
        return {**figures, **figures.pop("usage"), **speeds}


class Probe:
    """A complete probe of n trajectories and N units, backed by a folder: its shards are read as they are asked for.

    `run` says what the call of `probe` that made it did; None for a probe that was loaded, and in a launcher's other processes.
    """

    def __init__(self, files: ProbeFolder, run: ProbeRun | None = None) -> None:
        self._files, self.run = files, run

    @classmethod
    def load(cls, folder: str | Path) -> "Probe":
        """Opens a probe folder, or a URL that fsspec opens; raises `MissingFileError` or `DataError` where there is none."""
        with local_copy(folder) as (here, mirror):
            if mirror is not None and not here.is_dir():
                raise MissingFileError(f"{folder}: no such folder; name one that `gradprism probe` has written")
            return cls(ProbeFolder(here, kept=mirror))

    def save(self, folder: str | Path, on_existing: OnExisting = "fail") -> None:
        """Copies the probe into a folder of this machine, whole or not at all; `on_existing` is `replace`, of a probe folder, or `fail`."""
        if is_url(folder):
            raise ConfigError(f"{folder}: a probe is saved to a folder of this machine; probe with this as `out` to have it there")
        if on_existing == "replace":
            PROBE.check(Path(folder).expanduser(), on_existing)  # other folders have manifests too
        with atomic_folder(Path(folder), on_existing, MANIFEST, "probe") as new:
            shutil.copytree(self._files.folder, new, dirs_exist_ok=True)

    def __len__(self) -> int:
        return self._files.manifest.n_trajectories

    def __repr__(self) -> str:
        where = f" in {self.folder}" if self.folder else ""
        return f"<Probe of {len(self)} trajectories by {len(self.units)} units of {self.manifest.model}{where}>"

    @property
    def folder(self) -> Path | None:
        """Path of the probe folder on this machine; None for a probe that was not given one, and for one behind a URL."""
        return None if self._files.kept else self._files.folder

    @property
    def manifest(self) -> ProbeManifest:
        """`ProbeManifest`, everything that the norms depend on: model, tokenizer, template and corpus by hash, context length, versions."""
        return self._files.manifest

    @property
    def units(self) -> tuple[UnitInfo, ...]:
        """`UnitInfo`s, one for each column of the norms, `[N]`."""
        return self.manifest.unit_infos

    @property
    def usage(self) -> Usage:
        """`Usage`, tokens and seconds of all attempts at the folder; processes of one attempt run side by side, so the longest counts."""
        return total_usage(self._files.folder)

    @cached_property
    def frame(self) -> pl.DataFrame:
        """Polars table of a row per trajectory, in the corpus's order: index, id, n_tokens, n_response_tokens, n_turns, loss (nats), l2 (of
        all norms)."""
        return self.measures(metrics=())

    @property
    def ids(self) -> list[str]:
        """List of the trajectories' ids, `[n]`."""
        return self.frame["id"].to_list()

    @cached_property
    def norms(self) -> NDArray[np.float32]:
        """Gradient norms, float32 `[n, N]`, of each trajectory's mean loss with respect to each unit's weight."""
        return self._files.read().norms

    def pass_scores(self, name: str, of: Callable[[NDArray[Any]], NDArray[Any]] | None = None) -> NDArray[Any]:
        """What the pass gave for a score that was asked for (`scores` of `gradprism.probe`), in the corpus's order: float32 `[n, N]` of
        each unit, float64 `[n]` of a single number, float32 `[n, k]` of a sketch.

        NaN where a unit has no gradient to rank. With `of`, what that makes of some trajectories' values, a row each. Raises
        `ConfigError` for a score that the probe has not.
        """
        check_stored(self.manifest, name)
        return self._files.read("whole", lambda shard: shard.stored(name) if of is None else of(shard.stored(name)), ["id"]).norms

    @cached_property
    def turns(self) -> ProbeTable:
        """`ProbeTable` of single assistant turns: norms float32 `[m, N]`, and frame with the column `turn`, by trajectory and turn.

        Raises `DataError` unless turns were probed (`per_turn`).
        """
        return self._files.read("turns")

    @property
    def has_turns(self) -> bool:
        """Whether single turns were probed, all of them or some."""
        return self._files.has_turns

    def token_losses(self, index: int) -> NDArray[np.float16] | None:
        """Losses of a trajectory's response tokens, in nats, float16 `[n_response_tokens]`; None for a probe that kept none."""
        return self._files.token_losses(index)

    @property
    def trajectories(self) -> "ProbedTrajectories":
        """Iterable of the probed `Trajectory`s, read from the folder as it is gone through, as often as you like."""
        return ProbedTrajectories(self._files)

    def corpus_blocks(self) -> Iterator[list[bytes]]:
        """The corpus as lines of JSON in the `messages` format, some thousand at a time; raises `DataError` where it was changed."""
        return self._files.corpus_blocks()

    def scores(self, metric: str = "gini", *, normalise: str = "none") -> NDArray[np.float64]:
        """The concentration of each trajectory's norms, float64 `[n]`, by a registered metric (`gradprism.concentration`).

        A score of the pass that the probe was asked for (`pass_scores`) is one too, by its mean over the units. `normalise` scales each
        unit's norm first, where norms are scored: `none` as in the paper, `per_parameter` by 1/√(entries), `per_weight_norm` by 1/‖W‖,
        `per_corpus_median` by 1/the median of the unit's norms over this corpus.
        Raises `ConfigError` for an unknown choice and `DataError`, with the trajectory, for norms that have no concentration.
        """
        return self.measures(normalise, [metric])[metric].to_numpy()

    def measures(self, normalise: str = "none", metrics: str | Sequence[str] = BUILTIN, *, strict: bool = True) -> pl.DataFrame:
        """`frame` with a column for each of `metrics`, from one pass over the norms; raises as `scores` does.

        Unless `strict`, norms that have no concentration have NaN.
        """
        scales = self.unit_scales(normalise)
        names = as_names(metrics)
        found = score(self._files, [View(name, scales) for name in names], strict=strict)
        return found.frame.drop("turn").with_columns(**{name: pl.Series(found.norms[:, k]) for k, name in enumerate(names)})

    def turn_measures(self, metrics: str | Sequence[str] = BUILTIN, *, normalise: str = "none") -> pl.DataFrame:
        """A row per assistant turn, by trajectory and turn: `index` (the trajectory's), `turn` (from 0), `n_response_tokens`, `loss` (nats)
        and a column for each of `metrics`, null where one is undefined. Raises as `turns` does, and never holds the norms.
        """
        names, scales = as_names(metrics), self.unit_scales(normalise)
        columns = ("index", "turn", "n_response_tokens", "loss")
        found = score(self._files, [View(name, scales) for name in names], "turns", columns=columns)
        scores = {name: pl.Series(found.norms[:, k], nan_to_null=True) for k, name in enumerate(names)}
        return found.frame.with_columns(pl.col("index", "turn").cast(pl.Int64), **scores)

    def turn_scores(self, metric: str = "gini", *, normalise: str = "none") -> pl.DataFrame:
        """The concentration of each assistant turn's norms: `index` (the trajectory's), `turn` (from 0) and `score`, by both in order.

        A score is null where the metric is undefined. Choices are those of `scores`; raises as `turns` does, and never holds the norms.
        """
        return self.turn_measures(metric, normalise=normalise).select("index", "turn", score=metric)

    def unit_scales(self, normalise: str) -> NDArray[np.float64] | None:
        """Factors by which `scores` scales the units' norms, float64 `[N]`; None for `none`."""
        return unit_scales(self._files, normalise)

    def views(self, views: Sequence[View]) -> NDArray[np.float64]:
        """Scores of parts of the units, or of scaled norms, float64 `[n, views]`, from one pass; NaN where a row has none."""
        return score(self._files, views).norms

    @cached_property
    def mean_norms(self) -> NDArray[np.float64]:
        """The corpus's mean of each unit's norm, float64 `[N]`, from one pass over the shards."""
        total = np.zeros(len(self.units))
        for shard in self._files.scan("whole"):
            total += shard.norms.sum(axis=0, dtype=np.float64)
        return total / len(self)


@dataclass(frozen=True, slots=True)
class ProbedTrajectories:
    """The trajectories of a probe folder, in order."""

    _files: ProbeFolder

    def __len__(self) -> int:
        return self._files.manifest.n_trajectories

    def __iter__(self) -> Iterator[Trajectory]:
        place = f"{self._files.folder}: corpus"
        for block in self._files.corpus_blocks():
            for line in block:
                try:
                    record = parse_json(line)
                    known = record["id"]
                except (ValueError, KeyError, TypeError):
                    raise DataError(f"{self._files.folder / CORPUS}: is not the corpus that was probed; {RESTORE}") from None
                yield parse_record(record, "messages", place, known)
