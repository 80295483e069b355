"""A route: every trajectory of a probe to SFT, to RL, to both or to neither, with the reasons; in memory, and as a folder of five files."""

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from gradprism import __version__
from gradprism.probing.result import Probe
from gradprism.probing.scores import check_metric, check_scaled
from gradprism.routing.audit import Audit, audit_split
from gradprism.routing.directions import target_cosines
from gradprism.routing.policies import POLICIES, PolicyContext, policy_scores
from gradprism.routing.sets import FileSets, ProbeSets, RlTask
from gradprism.routing.split import (
    Cut,
    Order,
    ProbeOrigin,
    Routing,
    Side,
    check_division,
    check_order,
    check_weights,
    choose_threshold,
    counts,
    metrics_with,
    overridden,
    split_table,
    to_side,
    turn_statistics,
    with_weights,
)
from gradprism.routing.strata import check_strata, rank_within, strata
from gradprism.routing.tasks import PassRates, read_tasks
from gradprism.routing.weights import Form
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError, one_line
from gradprism.runtime.files import atomic_write, is_temporary, write_json
from gradprism.runtime.folders import OnExisting, atomic_folder, exclusive_lock
from gradprism.runtime.registry import as_names
from gradprism.trajectories.record import ChatMessage, Message, Trajectory

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# The files of a route folder; nothing outside this module knows them.
_FILES = _TABLE, _SFT, _RL, _ROUTING, _AUDIT = "routes.parquet", "sft.jsonl", "rl.jsonl", "routing.json", "audit.json"


@dataclass(frozen=True, eq=False)  # tables have no hash, and no truth of their equality
class Routes:
    """The decision of a route, for n trajectories in the corpus's order.

    `frame` has a row per trajectory: `id`, `score`, `rank` (from 1), `margin` (score − threshold, or − the nearest of several cuts),
    `route` (`sft`, `rl`, `none` or `both`), and what the probe measured: `n_tokens`, `n_response_tokens`, `n_turns`, `loss`, `l2`, metrics,
    `pass_rate` where rates were given, `target_cosine` where a target was, `turn_score_mean`, `_std`, `_min`, `_max` and `turn_of_max`
    (from 0) of its own turns' scores where they were asked for, `sft_weight` and `rl_weight` of a route by weights, and `override` and
    `reason` where there are overrides.
    `routing` says how the route was made.
    """

    frame: pl.DataFrame
    routing: Routing
    sets: ProbeSets | FileSets = field(repr=False)
    tasks: pl.DataFrame | None = field(default=None, repr=False)
    folder: Path | None = None

    def __repr__(self) -> str:
        return f"<Routes: {self.routing}>"

    @cached_property
    def sft(self) -> list[Trajectory]:
        """List of the `Trajectory`s to train on, in the corpus's order or that of the scores."""
        return list(self.sets.sft())

    @cached_property
    def rl(self) -> list[RlTask]:
        """List of the `RlTask`s to play, in the same order: no gold action is in them."""
        return list(self.sets.rl())

    def audit(self) -> Audit:
        """The audit of the split; of a loaded route the one that was saved with it."""
        return self._audit

    @cached_property
    def _audit(self) -> Audit:
        if self.folder is None:
            return audit_split(self.frame, self.routing, self.tasks)
        return Audit.read(self.folder / _AUDIT, routing=self.routing)

    def to_datasets(self) -> "DatasetDict":
        """Hugging Face data sets `sft` (`id`, `messages`, `task`) and `rl` (`id`, `prompt`, `task`), as TRL's trainers read them.

        `task` is JSON text, since its keys differ from task to task. Where some turn is not trained on, each message says whether it
        is (`train`), or what it weighs (`weight`). Where the corpus names tools there is a column `tools`. Messages with more than
        a text (calls, reasoning) are of the type `Json`, which adds no empty keys. `load_corpus` reads trajectories equal to `sft`'s.
        """
        # Here: it takes a second to import, and nothing else needs it.
        from datasets import DatasetDict

        weighted = any(m.weight != 1 for t in self.sft for m in t.messages)
        chats = [[_weighted(m) if weighted else m.to_chat() for m in t.messages] for t in self.sft]
        return DatasetDict(
            {
                "sft": _data_set(self.sft, "messages", chats),
                "rl": _data_set(self.rl, "prompt", [task.prompt for task in self.rl]),
            }
        )

    def save(self, out: str | Path, on_existing: OnExisting = "fail") -> None:
        """Writes the route folder `out`, whole or not at all: `routes.parquet` (the frame), `sft.jsonl`, `rl.jsonl`, `routing.json` and
        `audit.json`. `on_existing` is `replace`, which replaces a route folder alone, or `fail`.

        Raises `FolderInUseError`, `WriteError`, and `DataError` where the probe's corpus is not what was probed.
        """
        with atomic_folder(Path(out), on_existing, _ROUTING, "route folder") as folder:
            self._write(folder)

    def _write(self, folder: Path) -> None:
        with ThreadPoolExecutor(1) as pool:
            auditing = pool.submit(self.audit)  # beside the writing, which is most of the work
            with atomic_write(folder / _TABLE, "wb") as table:
                self.frame.write_parquet(table)
            with atomic_write(folder / _SFT, "wb") as sft, atomic_write(folder / _RL, "wb") as rl:
                self.sets.write(sft, rl)
            # What only `gradprism audit` fills is left out.
            write_json(folder / _AUDIT, auditing.result().model_dump(exclude={"routing"}, exclude_defaults=True))
            write_json(folder / _ROUTING, self.routing.model_dump())

    def override(
        self, ids: str | Sequence[str], side: Side | None, reason: str = "", probe: Probe | str | Path | None = None
    ) -> "Routes":
        """These routes with trajectories sent to `side` (`sft`, `rl`, `both`, or `none`), whatever their scores; None takes overrides back.
        The sets, the numbers and the audit follow, and the table keeps side and `reason`.

        `probe` is the one that was routed; of routes that were not loaded from a folder it is known.
        Raises `ConfigError` for another side and without a reason, `DataError` for unknown ids and another probe.
        """
        if probe is None:
            if not isinstance(self.sets, ProbeSets):
                raise ConfigError("override: give the probe that was routed, which has the texts of both sides")
            probe = self.sets.probe
        elif not isinstance(probe, Probe):
            probe = Probe.load(probe)
        if ProbeOrigin.of(probe.manifest) != self.routing.probe or len(probe) != len(self.frame):
            raise DataError(f"{probe.folder or 'probe'}: is not the probe that was routed; give that one")
        frame = overridden(self.frame, self.routing, as_names(ids), side, reason)
        overrides = frame["override"].count() if "override" in frame.columns else 0
        numbers = {**counts(frame["route"]), "n_overrides": overrides}
        return Routes(
            frame, self.routing.model_copy(update=numbers), _sets(probe, frame, self.routing.order), read_tasks(probe).drop("task")
        )

    @staticmethod
    def override_folder(
        folder: str | Path, ids: str | Sequence[str], side: Side | None, reason: str, probe: Probe | str | Path
    ) -> "Routes":
        """`override` of a saved route folder, in place: whole or not at all, and one after the other. Other files in it stay."""
        folder = Path(folder).expanduser().resolve()
        with exclusive_lock(folder.parent, f".{folder.name}.override.tmp", wait=True):
            routes = Routes.load(folder).override(ids, side, reason, probe)
            others = [path for path in folder.iterdir() if path.name not in _FILES and not is_temporary(path.name)]
            with atomic_folder(folder, "replace", _ROUTING, "route folder") as new:
                for path in others:
                    if path.is_dir() and not path.is_symlink():
                        shutil.copytree(path, new / path.name, symlinks=True)
                    else:
                        shutil.copy2(path, new / path.name, follow_symlinks=False)
                routes._write(new)
        return Routes.load(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Routes":
        """Reads a route folder; the sets are read when they are asked for.

        Raises `MissingFileError` for a folder that is none, naming the file that it lacks, and `DataError` for a broken one.
        """
        folder = Path(folder).expanduser()
        for name in (_ROUTING, _TABLE, _SFT, _RL, _AUDIT):
            if not (folder / name).is_file():
                what = f"is no route folder (no {name})" if folder.is_dir() else "no such folder"
                raise MissingFileError(f"{folder}: {what}; give the --out of `gradprism route`")
        try:
            # Not by polars, whose reader ends a process's thread with a trace where a file is broken.
            table = pq.ParquetFile(folder / _TABLE).read()
            table.validate(full=True)
            frame = pl.DataFrame(table)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{folder / _TABLE}: cannot be read ({one_line(error)}); route again") from None
        routing = Routing.read(folder / _ROUTING)
        return cls(frame, routing, FileSets(folder / _SFT, folder / _RL, routing.n_sft, routing.n_rl), folder=folder)


def _sets(probe: Probe, frame: pl.DataFrame, order: Order | None) -> ProbeSets:
    rank = frame["rank"].to_numpy()
    places = {None: None, "ascending": rank, "descending": -rank}[order]
    weights = [frame[name].to_numpy() for name in ("sft_weight", "rl_weight") if name in frame.columns]
    return ProbeSets(probe, to_side(frame["route"], "sft"), to_side(frame["route"], "rl"), places, *weights)


def _weighted(message: Message) -> ChatMessage:
    """A turn that says whether it is trained on, and what it weighs where that is not 0 or 1."""
    weight = {} if message.weight in (0, 1) else {"weight": message.weight}
    return {**message.to_chat(), "train": message.train, **weight}


def _data_set(items: Sequence[Trajectory | RlTask], name: str, chats: Sequence[Sequence[ChatMessage]]) -> "Dataset":
    from datasets import Dataset, Features, Json, List, Value

    columns: dict[str, Any] = {
        "id": [item.id for item in items],
        name: chats,
        "task": [json.dumps(item.task, ensure_ascii=False) for item in items],
    }
    # Columns of objects have the keys of all rows, which Json has not.
    keys = {key for chat in chats for message in chat for key in message}
    plain = {"role": Value("string"), "content": Value("string"), **({"train": Value("bool")} if "train" in keys else {})}
    features = {"id": Value("string"), name: List(plain if keys <= plain.keys() else Json()), "task": Value("string")}
    if any(item.weight != 1 for item in items):
        columns["weight"] = [item.weight for item in items]
        features["weight"] = Value("float64")
    if any(item.tools for item in items):
        columns["tools"] = [[dict(tool) for tool in item.tools] for item in items]
        features["tools"] = List(Json())
    return Dataset.from_dict(columns, Features(features))


def route(
    probe: Probe | str | Path,
    metric: str = "gini",
    *,
    policy: str = "concentration",
    rl_share: float = 0.5,
    threshold: float | None = None,
    cuts: Sequence[float] = (),
    shares: Sequence[float] = (),
    sides: Sequence[str] = (),
    within: str | Sequence[str] = (),
    order: Order | None = None,
    weights: Form | None = None,
    temperature: float | None = None,
    normalise: str = "none",
    seed: int = 0,
    pass_rates: str | Path | Mapping[str, float] | None = None,
    target: Probe | str | Path | None = None,
    per_turn: bool = False,
) -> Routes:
    """Routes every trajectory of a complete probe: those with high scores to RL, the others to SFT (PRISM, arXiv 2601.07224).

    With `cuts` or `shares` each range of scores goes to its own side: `cuts=(0.1, 0.7), sides=("sft", "rl", "none")` with pass rates plays
    what is won sometimes, imitates what is hardly ever won, and leaves out what is solved.
    `shares=(0.4, 0.2, 0.4), sides=("sft", "both", "rl")` imitates and plays the fifth in the middle.

    A million trajectories of 28 units take less than 1 GB.

    Args:
        probe: A `Probe`, or a probe folder or URL.
        metric: One of `concentration.METRICS`: gini, cv, kurtosis and others (docs/audit.md), or a registered one; or a
            score of the pass that the probe was asked for, such as effective_rank.
        policy: One of `policies.POLICIES`, which makes scores of the metric and of the other measures; `concentration` is PRISM.
        rl_share: Share of the trajectories that go to RL, 0 to 1, those of the highest scores; at 0.5, what is above the median.
        threshold: Number above which scores go to RL, in place of a share.
        cuts: Numbers, ascending, that part the scores into ranges, in place of a share or a threshold; a score equal to one lies below it.
        shares: Shares of the trajectories, with the sum 1, that lie in the ranges, lowest first, in place of `cuts`.
        sides: The side of each range, lowest first: sft, rl, none or both; one per share, one more than there are cuts.
        within: Rank scores among trajectories of their kind alone: of a fifth of the response `length`s, of a `task_type`, or both. The
            scores are then these ranks, as fractions of their stratum.
        order: Write both sets in the order of the scores, ascending or descending, for a curriculum (`order="given"` of a training).
        weights: In place of sides, how much each trajectory counts in SFT's loss and how often RL draws it, by its score's rank: linear or
            logistic; the two sum to 1 (`sft_weight` and `rl_weight` in the frame).
        temperature: Of logistic weights, default 0.1: a small one is nearly the median's split.
        normalise: Scale of the norms before the metric: none, per_parameter, per_weight_norm or per_corpus_median (see `Probe.scores`).
        seed: Of policies by chance, and of the audit's bootstrap.
        pass_rates: Rates, 0 to 1, by task id, or an `episodes.jsonl` of `gradprism evaluate` with an episode of each trajectory's task;
            for the policies `pass_rate` and `learnability`, and for the audit.
        target: A probe of target trajectories by the same model, both with the score `sketch`; for the policy `target`, and for the frame.
        per_turn: Add statistics of each trajectory's single turns to the frame, by the same metric; what goes where does not change.

    Raises:
        ConfigError: For an unknown choice.
        MissingFileError: There is no such probe folder, or no such file of episodes.
        DataError: The probe is incomplete (turns included) or holds bad norms; the episodes do not fit the corpus.
    """
    _ = check_metric(metric), POLICIES[policy]  # both are known, before anything is read
    check_scaled(metric, normalise)
    if seed < 0:
        raise ConfigError(f"seed {seed}: must be 0 or more")
    order = check_order(order)
    check_strata(within := as_names(within))
    given_cut = check_division(rl_share, threshold, cuts, shares, sides)
    weighting = check_weights(weights, temperature, rl_share, threshold, sides or cuts or shares, order)
    if not isinstance(probe, Probe):
        probe = Probe.load(probe)
    target = Probe.load(target) if isinstance(target, str | Path) else target
    rates = None if pass_rates is None else PassRates.of(pass_rates)
    turns = probe.turn_scores(metric, normalise=normalise) if per_turn else None
    with ThreadPoolExecutor(1) as pool:  # hashing and reading the corpus hide behind the norms
        reading = pool.submit(read_tasks, probe)
        measures = probe.measures(normalise, metrics_with(metric))
        tasks = reading.result()
    if rates is not None:
        measures = measures.with_columns(rates.column(measures["id"], tasks["task"]))
    if target is not None:
        measures = measures.with_columns(target_cosine=pl.Series(target_cosines(probe, target)))
    if turns is not None:
        measures = measures.hstack(turn_statistics(turns, len(measures)))
    given = given_cut is not None or threshold is not None or weighting is not None
    # Ranks within strata have an order of their own, so that equal scores are to be drawn apart all the same.
    score = policy_scores(policy, measures, PolicyContext(metric, seed, given and not within))
    if within:
        score = rank_within(score, strata(within, measures, tasks))
    several = Cut.of_shares(score, shares, sides) if shares else given_cut
    cut = several or Cut((choose_threshold(score, rl_share, threshold),))
    frame = split_table(measures, score, cut)
    frame = frame if weighting is None else with_weights(frame, weighting)
    by_share = "median" if rl_share == 0.5 else "quantile"
    routing = Routing(
        policy=policy,
        metric=metric,
        normalise=normalise,
        within=within,
        threshold_rule="weights" if weighting else "shares" if shares else "cuts" if several else "fixed" if given else by_share,
        threshold=cut.at[0],
        cuts=several.at if several else (),
        sides=several.sides if several else (),
        shares=tuple(shares),
        order=order,
        weights=weights,
        temperature=weighting and weighting.temperature,
        rl_share=None if given or rl_share == 0.5 else rl_share,
        seed=seed,
        pass_rates_sha256=rates and rates.sha256,
        target_sha256=None if target is None else target.manifest.fingerprint,
        n_trajectories=len(frame),
        **counts(frame["route"]),
        n_undefined_turns=None if turns is None else turns["score"].null_count(),
        probe=ProbeOrigin.of(probe.manifest),
        versions={"gradprism": __version__, "numpy": np.__version__, "polars": pl.__version__},
    )
    return Routes(frame, routing, _sets(probe, frame, routing.order), tasks.drop("task"))
