"""A corpus as pages see it: columns, profiles of its norms, and texts. A probe's, or of a route whose probe is not there the table's.

A `Corpus` is a snapshot: once its files change, another takes its place. Parts that cost are made when they are first asked for.
"""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.concentration import BUILTIN, FORMULAS
from gradprism.probing.manifest import ProbeManifest
from gradprism.probing.pass_scores import PASS_SCORES, RANKING
from gradprism.probing.prepared import Prepared
from gradprism.probing.result import Probe
from gradprism.probing.scores import View
from gradprism.routing.audit import Audit, audit_split
from gradprism.routing.routes import Routes
from gradprism.routing.split import Cut, ProbeOrigin, Routing, median_threshold, split_table
from gradprism.runtime.errors import ConfigError, DataError, GradprismError
from gradprism.studio.columns import Column, category, measure, text
from gradprism.studio.folders import Folder
from gradprism.studio.texts import Texts, task_types

DEFAULT = BUILTIN[0]
T = TypeVar("T")
_MEASURES = {
    "n_tokens": ("tokens", "Tokens that the model reads."),
    "n_response_tokens": ("response tokens", "Tokens of the loss."),
    "n_turns": ("turns", "Assistant turns that are trained on."),
    "loss": ("loss", "Mean cross-entropy of the response tokens, nats."),
    "l2": ("gradient norm", "L2 norm of the gradient over all matrices."),
}
_SCALED = {"per_parameter": "per parameter", "per_weight_norm": "per weight norm"}
_TURN_FIGURES = ("mean", "std", "min", "max")
# Rows whose distances are computed at once, so that what is made of them stays in a processor's cache.
_ROWS = 2048


@dataclass(frozen=True)
class Profiles:
    """Each trajectory's norms over their sum, times N, less the corpus's `mean` and over its `std` `[N]`: `z` float32 `[n, N]`.

    A matrix that has the same share in all trajectories has z = 0. `norms` float32 `[n, N]` are those that they were made of.
    """

    norms: NDArray[np.float32]
    z: NDArray[np.float32]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, norms: NDArray[np.float32]) -> "Profiles":
        """Of norms `[n, N]`; a trajectory whose norms are all zero, or so large that they have no sum, has the mean profile."""
        n, N = norms.shape
        with np.errstate(divide="ignore"):
            scale = N / norms.sum(axis=1, dtype=np.float64)
        scale[~np.isfinite(scale)] = 0
        total, squares = np.zeros(N), np.zeros(N)
        for part in _parts(n):
            profile = norms[part] * scale[part, None]
            total += profile.sum(axis=0)
            squares += (profile**2).sum(axis=0)
        known = max(1, int((scale > 0).sum()))
        mean = total / known
        std = np.sqrt(np.maximum(0, squares / known - mean**2))
        std[std <= 1e-7 * np.maximum(mean, 1e-30)] = 0
        z = np.zeros_like(norms)
        by = np.divide(1, std, out=np.zeros(N), where=std > 0)
        for part in _parts(n):
            z[part] = (norms[part] * scale[part, None] - mean) * by
        z[scale == 0] = 0
        return cls(norms, z, mean, std)

    def distances(self, row: int) -> NDArray[np.float32]:
        """Euclidean distance of every profile to that of `row`, `[n]`."""
        found = np.empty(len(self.z), dtype=np.float32)
        for part in _parts(len(self.z)):
            found[part] = np.sqrt(((self.z[part] - self.z[row]) ** 2).sum(axis=1))
        return found


def _parts(n: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, n, _ROWS)]


@dataclass
class Corpus:
    """The trajectories of a folder, n in the corpus's order; `probe` is None for a route alone, whose table has the measures."""

    folder: Folder
    version: str
    probe: Probe | None = None
    routes: Routes | None = None
    _locks: dict[str, threading.RLock] = field(default_factory=lambda: defaultdict(threading.RLock))
    _kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Folder) -> "Corpus":
        """Raises `DataError` for a folder that is broken, of another version, or whose probe has not finished."""
        version = folder.version()
        if folder.kind == "probe":
            return cls(folder, version, probe=Probe.load(folder.path))
        return cls(folder, version, routes=Routes.load(folder.path))

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made once; those that ask for it meanwhile wait."""
        with self._locks[name]:
            if name not in self._kept:
                self._kept[name] = make()
            return self._kept[name]

    def begin(self) -> None:
        """Reads texts and norms side by side, of which the first picture is made; raises as both do."""
        with ThreadPoolExecutor(1) as pool:  # texts keep the interpreter, norms do not
            reading = pool.submit(lambda: self.texts)
            _ = self.frame
            reading.result()

    def warm(self) -> None:
        """Makes all that pages ask for, in the order in which they do; raises as they would."""
        self.begin()
        self.columns()
        self.more()
        if self.probe is not None:
            _ = self.profiles

    # --- what it is made of

    @property
    def frame(self) -> pl.DataFrame:
        """A row per trajectory: `id`, the plain measures, and the default metric (NaN where it is undefined)."""
        return self._once("frame", self._frame)

    def _frame(self) -> pl.DataFrame:
        return self.routes.frame if self.routes else self._probe.measures(metrics=[DEFAULT], strict=False)

    @property
    def _probe(self) -> Probe:
        if self.probe is None:
            raise DataError(
                f"{self.folder.shown}: is a route without its probe, so it has no norms; name the probe's folder as well"
            )
        return self.probe

    @property
    def texts(self) -> Texts:
        """The texts, and the tasks' categories."""
        return self._once("texts", self._texts)

    def _texts(self) -> Texts:
        if self.probe is not None:
            return Texts.of_corpus(self.folder.below("corpus.jsonl"), self.probe.corpus_blocks())
        return Texts.of_sets([self.folder.below(name) for name in ("sft.jsonl", "rl.jsonl")], self.frame["id"].to_list())

    @property
    def prepared(self) -> Prepared:
        """The tokens; raises `MissingFileError` or `DataError` where they are gone, which are a cache."""
        return self._once("prepared", lambda: Prepared(self.folder.below("rendered.arrow").parent))

    @property
    def profiles(self) -> Profiles:
        """Profiles of the norms."""
        return self._once("profiles", lambda: Profiles.of(self._probe.norms))

    @property
    def manifest(self) -> ProbeManifest | ProbeOrigin:
        """What was probed, and how."""
        return self._probe.manifest if self.routes is None else self.routes.routing.probe

    @property
    def origin(self) -> ProbeOrigin:
        """By which a route is known as this corpus's."""
        return self.routes.routing.probe if self.routes else ProbeOrigin.of(self._probe.manifest)

    def __len__(self) -> int:
        return len(self.frame) if self.probe is None else len(self.probe)

    @cached_property
    def has_turns(self) -> bool:
        """Whether single turns were probed."""
        try:
            return self.probe is not None and self.probe.has_turns and len(self.turns) > 0
        except GradprismError:  # not all of them
            return False

    @property
    def turns(self) -> pl.DataFrame:
        """`Probe.turn_measures` by the built-in metrics; raises `DataError` where turns were not probed."""
        return self._once("turns", lambda: self._probe.turn_measures(BUILTIN))

    # --- columns

    @property
    def metrics(self) -> list[str]:
        """Names of the scores by which the corpus may be cut, of norms as they are and of the probe's pass; the default first."""
        if self.routes is not None:
            known = [*BUILTIN, *(name for name in (*FORMULAS, *RANKING) if name not in BUILTIN)]
            return [name for name in known if name in self.frame.columns]
        stored = [name for name in RANKING if name in self._probe.manifest.scores]
        return [DEFAULT, *(name for name in FORMULAS if name != DEFAULT), *stored]

    def columns(self) -> list[Column]:
        """Those of a first picture."""
        return self._once("columns", self._columns)

    def _columns(self) -> list[Column]:
        frame = self.frame
        made = [text("id", "id", frame["id"].to_list())]
        made += [measure(name, label, frame[name].to_numpy(), help) for name, (label, help) in _MEASURES.items()]
        made += [_metric(DEFAULT, frame[DEFAULT].to_numpy())]
        named = self.texts.named
        if not named.all():
            made.append(
                category("named", "names a task", [None if yes else "no" for yes in named], help="An environment can play it.")
            )
        return [*made, *self.texts.tasks]

    def more(self) -> list[Column]:
        """All others: further metrics, metrics of scaled norms, tokens that were cut off, statistics of turns."""
        return self._once("more", self._more)

    def _more(self) -> list[Column]:
        if self.routes is not None:
            return [_metric(name, self.frame[name].to_numpy()) for name in self.metrics if name != DEFAULT]
        probe, views = self._probe, {name: View(name) for name in self.metrics if name != DEFAULT}
        for normalise in _SCALED:
            with contextlib.suppress(ConfigError):  # there is nothing to divide by
                scales = probe.unit_scales(normalise)
                views |= {f"{metric}/{normalise}": View(metric, scales) for metric in BUILTIN}
        scores = probe.views(list(views.values()))
        # One that no trajectory has, as a model of one layer has no differences between layers, is no column.
        made = [_metric(name, scores[:, k]) for k, name in enumerate(views) if np.isfinite(scores[:, k]).any()]
        try:
            cut = self.prepared.column("n_truncated")
            made += [measure("n_truncated", "tokens cut off", cut, "Tokens past the context length.")] if cut.any() else []
        except GradprismError:  # a cache, which may be gone
            pass
        return [*made, *(self._of_turns() if self.has_turns else ())]

    def _of_turns(self) -> list[Column]:
        """Mean, std (population), least and greatest of the default metric over each trajectory's own turns."""
        score = pl.col(DEFAULT)
        figures = {"mean": score.mean(), "std": score.std(ddof=0), "min": score.min(), "max": score.max()}
        by_row = self.turns.group_by("index").agg(**figures)
        table = pl.select(index=pl.int_range(len(self))).join(by_row, on="index", how="left", maintain_order="left")
        return [
            measure(f"turn_{name}", f"turns' {name}", table[name].to_numpy(), f"{DEFAULT} of single turns: {name}.")
            for name in _TURN_FIGURES
        ]

    def metric(self, name: str) -> Column:
        """A column by which the corpus may be cut; raises `ConfigError`."""
        known = {column.name: column for column in self.columns() if column.kind == "metric"}
        if name not in known:
            known |= {column.name: column for column in self.more() if column.kind == "metric"}
        if name not in known:
            raise ConfigError(f"column {name[:80]!r}: is no metric of this corpus; choose one of {', '.join(known)}")
        return known[name]

    def audit(self, name: str, threshold: float | None = None) -> tuple[Audit, float]:
        """`routing.audit.audit_split` of a cut of a metric's column, at its median by default; and the threshold."""
        scores = self.metric(name).values
        if np.isnan(scores).any():
            raise DataError(f"{name}: is undefined for {int(np.isnan(scores).sum())} trajectories; choose another metric")
        median = median_threshold(scores)
        cut = median if threshold is None else threshold
        names = [metric for metric in BUILTIN if not np.isnan(self.metric(metric).values).any()]
        base = self.frame.select("id", *_MEASURES).with_columns(**{one: pl.Series(self.metric(one).values) for one in names})
        metric = name.partition("/")[0]
        table = split_table(base.with_columns(**{metric: pl.Series(scores)}), scores, Cut((cut,)))
        n_rl = int((table["route"] == "rl").sum())
        routing = Routing(
            metric=metric,
            threshold=cut,
            threshold_rule="median" if cut == median else "fixed",
            n_trajectories=len(table),
            n_sft=len(table) - n_rl,
            n_rl=n_rl,
        )
        tasks = pl.DataFrame(
            {"task_type": task_types(self.texts), "named": self.texts.named}, schema_overrides={"task_type": pl.String}
        )
        return audit_split(table, routing, tasks), cut


def _metric(name: str, scores: NDArray[np.float64]) -> Column:
    metric, _, normalise = name.partition("/")
    scaled = f" {_SCALED[normalise]}" if normalise else ""
    if metric in PASS_SCORES:
        told = f"{PASS_SCORES[metric].formula}. High: {PASS_SCORES[metric].high}."
    else:
        formula = FORMULAS[metric].replace("`", "")
        told = f"{formula}, of the norms x of the gradient's N matrices{scaled}. High: the gradient is concentrated."
    return measure(name, f"{metric}{scaled and f' of norms{scaled}'}", scores, told, kind="metric")
