"""The door: `probe` takes a model and trajectories and gives a `Probe`, wherever the work is done."""

import itertools
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradprism.models import ModelSpec, resolve_device
from gradprism.probing.fingerprint import describe_model
from gradprism.probing.folder import ProbeFolder, local_copy
from gradprism.probing.manifest import ProbeManifest
from gradprism.probing.mirror import Mirror
from gradprism.probing.pass_scores import check_pass_scores
from gradprism.probing.plan import padding_share
from gradprism.probing.prepared import prepare
from gradprism.probing.rays import Ray, connected
from gradprism.probing.result import Probe, ProbeRun
from gradprism.probing.run import Counts
from gradprism.probing.units import ExpertUnits
from gradprism.probing.work import ProbeOptions, Share, Work, account, describe, do_share, kept_costs, make_renderer
from gradprism.runtime.attempts import total_usage
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.folders import OnExisting
from gradprism.runtime.progress import quiet, say
from gradprism.runtime.ranks import Ranks
from gradprism.runtime.registry import as_names
from gradprism.runtime.usage import Usage
from gradprism.trajectories.corpus import SKIPPED, Corpus, Sources, as_corpus
from gradprism.trajectories.rendering import Renderer

Launcher = Literal["auto", "here"] | Ray
_calls = itertools.count()  # of a launcher's processes, which must not hear what was said in an earlier call


def probe(
    model: Any,
    tokenizer: Any,
    trajectories: Corpus | Sources,
    *,
    out: str | Path | None = None,
    context_length: int | None = None,
    batch_tokens: int | None = None,
    per_turn: bool = False,
    units: str | Sequence[str] | None = None,
    experts: ExpertUnits = "joined",
    checkpoint_activations: bool = False,
    scores: str | Sequence[str] = (),
    on_existing: OnExisting = "resume",
    launcher: Launcher = "auto",
) -> Probe:
    """Probes a frozen model: the norm of each trajectory's gradient with respect to each weight matrix, by one backward pass each.

    The gradient is that of the mean cross-entropy (nats) of the trajectory's response tokens (PRISM, arXiv 2601.07224). Trajectories
    are streamed. When memory runs out, batches are halved. An uninterrupted call and a resumed one give the same rows, bit for bit.

    Args:
        model: A `PreTrainedModel`, which is left as it was; or a model folder, a hub id or a `ModelSpec` (type, device, quantisation).
        tokenizer: A fast tokenizer whose chat template marks assistant turns or that TRL has a training template for; None: the model's.
        trajectories: What is to be probed: a `Corpus`, or anything that `load_corpus` takes. Of files, only a change is read again; an
            iterator is streamed.
        out: Probe folder, or a URL that fsspec opens (`s3://…`); None keeps the probe for as long as the result lives.
        context_length: Tokens that a trajectory may have, longer ones are cut on the right; None: the model's limit.
        batch_tokens: Padded tokens per batch; None: 2048 on a CPU, else 16384.
        per_turn: Probe each assistant turn too, by its own mean loss (`Probe.turns`).
        units: One or more globs of the modules to measure, where the model's own projections are not known or not wanted.
        experts: Of a mixture of experts, `joined` (a unit for all experts of a layer) or `separate` (one per expert).
        checkpoint_activations: Less memory for more time: each layer runs again in the backward pass.
        scores: What else is taken from the pass, which costs more time: effective_rank, nuclear_norm, gini_rows, gini_columns,
            token_variance or sketch (`pass_scores.PASS_SCORES`), several of them, or all.
        on_existing: What becomes of an earlier probe in `out`: `resume`, `replace` or `fail`.
        launcher: `auto`: the processes of torchrun or accelerate launch, where one of them started this process, share the work;
            `here`: this process alone; a `Ray`: tasks of a Ray cluster, for a model by name.

    Raises:
        FolderInUseError: `out` holds another probe, or anything else.
        ModelError: The model or the chat template cannot be probed.
        DataError: A trajectory's loss or norms are not finite, it alone is too large for the memory, or there is none at all;
            whatever was finished by then is in `out`.
        WriteError: `out` cannot be written.
    """
    options = ProbeOptions(
        context_length,
        batch_tokens,
        per_turn,
        None if units is None else as_names(units),
        experts,
        checkpoint_activations,
        check_pass_scores(as_names(scores)),
    )
    source = ModelSpec(str(model)) if isinstance(model, str | Path) else model
    ranks = Ranks.from_environment() if launcher != "here" else None
    with ExitStack() as stack:
        if ranks is not None:
            stack.enter_context(ranks.failing_together())
            stack.enter_context(quiet(not ranks.is_first))
        _check_launcher(source, out, launcher, ranks)
        temporary = tempfile.TemporaryDirectory(prefix="gradprism-") if out is None else None
        folder, mirror = stack.enter_context(local_copy(temporary.name if temporary else out or ""))
        flow = _Flow(
            source, tokenizer, as_corpus(trajectories), options, folder, mirror, on_existing, ranks, f"probe-{next(_calls)}"
        )
        if isinstance(launcher, Ray):
            run = flow.on_ray(launcher, str(out))
        else:
            run = flow.first() if ranks is None or ranks.is_first else flow.follow()
        if mirror is not None:
            mirror.pull()
        return Probe(ProbeFolder(folder, kept=mirror or temporary), run)


def _check_launcher(source: Any, out: str | Path | None, launcher: Launcher, ranks: Ranks | None) -> None:
    if not isinstance(launcher, Ray) and launcher not in ("auto", "here"):
        raise ConfigError(f"launcher {launcher!r}: choose auto, here or a Ray(…)")
    if isinstance(launcher, Ray) and ranks is not None:
        raise ConfigError("--executor ray: start it as one process, without torchrun or accelerate launch")
    if isinstance(launcher, Ray) and not isinstance(source, ModelSpec):
        raise ConfigError("launcher Ray: give the model by name, so that each worker can load it")
    if out is None and (isinstance(launcher, Ray) or ranks is not None):
        raise ConfigError("out: several processes meet in a probe folder; give one that all of them see")


@dataclass(slots=True)
class _Flow:
    """A probe from beginning to end, seen from one process; `folder` is on this machine, with `mirror` as a copy of a URL."""

    source: Any
    tokenizer: Any
    trajectories: Corpus
    options: ProbeOptions
    folder: Path
    mirror: Mirror | None
    on_existing: OnExisting
    ranks: Ranks | None
    key: str
    began: float = field(default_factory=time.perf_counter)

    def first(self) -> ProbeRun:
        """The only process, or the first of a launcher's: prepares the folder, does its share, and sums up."""
        ranks, costs = self.ranks, kept_costs(self.folder, self.on_existing)
        renderer = make_renderer(self.source, self.tokenizer, self.options.context_length)
        prober = self.options.prober(self._model(), costs)
        work, finished = self._prepare(describe_model(prober), renderer)
        probing_began, attempt = time.perf_counter(), account(self.folder, None, Share())
        if ranks is None:
            done = [work.do(prober, work.pending(finished, Share()), attempt, self.mirror)]
        else:
            ranks.publish(f"{self.key}/prepared", attempt.name)
            own = work.do(prober, work.pending(finished, Share(0, ranks.world)), attempt, self.mirror, ranks)
            done = [Counts(**each) for each in ranks.gather(f"{self.key}/done", asdict(own))]
            ranks.publish(f"{self.key}/complete", True)
            ranks.gather(f"{self.key}/left", True)  # what they hear may go with this process
        return self._run(work, finished, done, attempt.name, probing_began)

    def follow(self) -> None:
        """Another process of a launcher: loads the model, waits for the folder, and does its share."""
        assert self.ranks is not None
        ranks, model = self.ranks, self._model()
        attempt = ranks.wait_for(f"{self.key}/prepared")
        share = Share(ranks.rank, ranks.world)
        done = do_share(model, self.options, self.folder, self.mirror, share, attempt, ranks)
        ranks.gather(f"{self.key}/done", asdict(done))
        ranks.wait_for(f"{self.key}/complete")
        ranks.gather(f"{self.key}/left", True)

    def on_ray(self, launcher: Ray, out: str) -> ProbeRun:
        """Prepares the folder here; workers of a Ray cluster do the shares."""
        costs = kept_costs(self.folder, self.on_existing)
        renderer = make_renderer(self.source, self.tokenizer, self.options.context_length)
        with connected(launcher) as pool:
            work, finished = self._prepare(pool.describe(self.source, self.options, costs), renderer)
            probing_began, attempt = time.perf_counter(), account(self.folder, None, Share())
            pending = bool(work.pending(finished, Share()))
            done = pool.do(self.source, self.options, out, attempt.name) if pending else []
        return self._run(work, finished, done, attempt.name, probing_began)

    def _model(self) -> Any:
        if not isinstance(self.source, ModelSpec):
            return self.source
        return self.source.load(resolve_device(self.source.device, self.ranks) if self.ranks else None)

    def _prepare(self, model: ProbeManifest, renderer: Renderer) -> tuple[Work, NDArray[np.int64]]:
        """The work, and what of it is finished."""
        description = describe(model, renderer, self.trajectories)
        work = Work(*prepare(self.folder, description, self.trajectories, renderer, self.on_existing), self.options)
        totals = work.probe.manifest.totals
        if totals.unknown:
            say(f"{totals.unknown} of {totals.tokens} tokens are unknown to the tokenizer")
        if left_out := len(self.trajectories.account.skipped):
            say(f"{left_out} records left out; {self.folder / SKIPPED} says why")
        finished = work.probe.finished()
        if self.mirror is not None:
            self.mirror.push_all()
        return work, finished

    def _run(self, work: Work, finished: NDArray[np.int64], done: list[Counts], attempt: str, probing_began: float) -> ProbeRun:
        turn, pending = work.items.turn, work.pending(finished, Share())
        pending_turns = sum(int((turn[batch] >= 0).sum()) for batch in pending)
        turns, rows, tokens = (sum(getattr(each, name) for each in done) for name in ("turns", "rows", "tokens"))
        n_turns = int((turn >= 0).sum())
        now = time.perf_counter()
        return ProbeRun(
            probed=rows - turns,
            kept=len(turn) - n_turns - (sum(map(len, pending)) - pending_turns),
            probed_turns=turns,
            kept_turns=n_turns - pending_turns,
            batch_tokens=min((each.batch_tokens for each in done), default=work.batch_tokens),
            padding_share=padding_share(work.items, work.plan),
            probing_seconds=now - probing_began,
            usage=Usage(tokens, tokens, wall_seconds=now - self.began, cpu_seconds=sum(each.cpu_seconds for each in done)),
            earlier=total_usage(self.folder, without=attempt),
        )
