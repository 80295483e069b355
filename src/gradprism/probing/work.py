"""The work of a probe and its shares: by its coordinates (rank, world) any process knows which batches are its own.

Whoever does a share writes its rows into the probe folder, where all meet. Nothing is dealt out: the plan over the whole corpus says
whose a batch is, and the folder says which of its rows are there already.
"""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gradprism.checkpoints import load_config, tokenizer_source
from gradprism.models import ModelSpec, check_context_length
from gradprism.probing.folder import PROBE, ProbeFolder
from gradprism.probing.manifest import Costs, ProbeManifest
from gradprism.probing.mirror import Mirror
from gradprism.probing.pass_scores import check_pass_scores
from gradprism.probing.plan import Batch, Items, pending_batches, plan_items
from gradprism.probing.prepared import Prepared
from gradprism.probing.prober import Prober
from gradprism.probing.run import BatchRun, Counts, ShardWriter, default_batch_tokens, default_workers
from gradprism.probing.units import ExpertUnits, find_units
from gradprism.runtime.attempts import Attempt
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.folders import OnExisting
from gradprism.runtime.ranks import Ranks
from gradprism.trajectories.corpus import Corpus
from gradprism.trajectories.rendering import Renderer, load_tokenizer, tokenizer_fingerprint


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """Choices of a probe, whoever does the work; each is explained at `gradprism.probe`."""

    context_length: int | None = None
    batch_tokens: int | None = None
    per_turn: bool = False
    units: tuple[str, ...] | None = None
    experts: ExpertUnits = "joined"
    checkpoint_activations: bool = False
    scores: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ConfigError(f"batch tokens {self.batch_tokens}: must be at least 1")
        if self.experts not in get_args(ExpertUnits):
            raise ConfigError(f"experts {self.experts!r}: choose {' or '.join(get_args(ExpertUnits))}")
        check_pass_scores(self.scores)

    def prober(self, model: Any, costs: Costs | None) -> Prober:
        """A prober of a loaded model; `costs` are those that the probe folder keeps, so that every process chooses the same forms."""
        units = find_units(model, self.units, self.experts)
        return Prober(model, units, costs=costs, checkpoint_activations=self.checkpoint_activations, scores=self.scores)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a plan that is one process's: every `world`-th batch, from the one numbered `rank`."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Work:
    """All batches of a prepared probe folder; the same in every process."""

    probe: ProbeFolder
    prepared: Prepared
    options: ProbeOptions

    @cached_property
    def items(self) -> Items:
        """The trajectories, and with `per_turn` their turns."""
        return self.prepared.items(self.options.per_turn)

    @property
    def batch_tokens(self) -> int:
        """The budget of padded tokens that the plan is made with."""
        return self.options.batch_tokens or default_batch_tokens(self.probe.manifest.device)

    @cached_property
    def plan(self) -> list[Batch]:
        """All batches, whether probed already or not."""
        return plan_items(self.items, self.batch_tokens, self.probe.manifest.rope_boundaries)

    def pending(self, finished: NDArray[np.int64], share: Share) -> list[Batch]:
        """The share's batches without what is finished (`ProbeFolder.finished`)."""
        return pending_batches(self.items, self.plan[share.rank :: share.world], finished)

    def batch_run(self, prober: Prober) -> BatchRun:
        """A run of batches of the plan, here."""
        manifest = self.probe.manifest
        workers = default_workers(manifest.device)
        return BatchRun(prober, self.prepared, self.items, self.batch_tokens, manifest.rope_boundaries, workers)

    def do(
        self, prober: Prober, pending: list[Batch], attempt: Attempt, mirror: Mirror | None = None, ranks: Ranks | None = None
    ) -> Counts:
        """Probes batches and writes their rows. Raises `DataError` for an item whose loss or norms are not finite, after the rows
        that were finished by then are in the folder."""
        began, run = time.process_time(), self.batch_run(prober)
        with ExitStack() as stack:
            if ranks is not None:
                stack.enter_context(ranks.at_work())
            writer = stack.enter_context(ShardWriter(self.probe, attempt, len(self.items), mirror))
            run.run(ranks.steps(pending) if ranks else pending, writer.add, sum(map(len, pending)))
        return replace(run.counts, cpu_seconds=time.process_time() - began, batch_tokens=run.batch_tokens)


def do_share(
    model: Any, options: ProbeOptions, folder: Path, mirror: Mirror | None, share: Share, attempt: str, ranks: Ranks | None = None
) -> Counts:
    """A share of a probe folder that another process has prepared."""
    if mirror is not None:
        mirror.pull()
    work = Work(ProbeFolder(folder), Prepared(folder), options)
    prober = options.prober(model, work.probe.manifest.costs)
    pending = work.pending(work.probe.finished(set_aside=False), share)
    return work.do(prober, pending, account(folder, attempt, share), mirror, ranks)


def make_renderer(source: Any, tokenizer: Any, context_length: int | None) -> Renderer:
    """The renderer of a model (a `ModelSpec`, or loaded); without `tokenizer` its own, and without `context_length` its limit."""
    if isinstance(source, ModelSpec):
        name, template, config = tokenizer_source(source.path), source.chat_template, load_config(source.path)
    else:
        name, template, config = source.name_or_path, None, source
        if tokenizer is None and not name:
            raise ConfigError("tokenizer: the model has no name by which to find its own; give one")
    length = check_context_length(config, context_length)
    return Renderer(load_tokenizer(name, template) if tokenizer is None else tokenizer, length)


def account(folder: Path, attempt: str | None, share: Share) -> Attempt:
    """A process's account in a probe folder; each of several processes has a file of its own."""
    file = "attempts.jsonl" if attempt is None else f"attempts-{attempt}-{share.rank}-{os.getpid()}.jsonl"
    return Attempt(folder, attempt, share.rank, file)


def kept_costs(folder: Path, on_existing: OnExisting) -> Costs | None:
    """The costs of the probe that is to be resumed, which must choose alike; None for a new probe."""
    resumes = PROBE.check(folder, on_existing) is not None and on_existing == "resume"
    return ProbeFolder(folder).manifest.costs if resumes else None


def describe(model: ProbeManifest, renderer: Renderer, corpus: Corpus) -> ProbeManifest:
    """`fingerprint.describe_model`'s part with what renders the corpus, and the files that it comes from."""
    return replace(
        model,
        tokenizer_sha256=tokenizer_fingerprint(renderer.tokenizer),
        template_sha256=renderer.fingerprint,
        masks=renderer.way,
        context_length=renderer.context_length,
        data=corpus.files,
        read=corpus.read_as(),
    )
