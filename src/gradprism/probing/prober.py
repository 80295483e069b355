"""Loss and gradient norms of a batch of trajectories, one forward and one input-only backward pass of the frozen model.

Hooks on each projection find its input A and the gradient B of its output, take the norm of BᵀA at once and drop both. Weights never
require a gradient, so none is formed. What reaches the loss is little in the last layer: only the rows of response tokens go through
its queries, its attention output and its feed-forward network, and through the head.

Shapes: n trajectories, T positions, R target rows of a batch, V vocabulary, N units.
"""

import posixpath
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from gradprism.models import keep_unpacked
from gradprism.passes import failures_named
from gradprism.probing.collect import Batch, Pass, replaced
from gradprism.probing.costs import measured_costs
from gradprism.probing.experts import measured
from gradprism.probing.matrices import MatrixScores, Projections
from gradprism.probing.norms import Costs
from gradprism.probing.pass_scores import check_pass_scores
from gradprism.probing.trial import check_causal, differ, trial_tokens
from gradprism.probing.units import ExpertsTap, LinearTap, Units, canonical_path, find_units
from gradprism.runtime.errors import DataError, ModelError
from gradprism.trajectories.rendering import RenderedTrajectory, check_vocabulary

# The models that hooks are in at the moment; both change under the lock.
_PROBED: "weakref.WeakSet[PreTrainedModel]" = weakref.WeakSet()
_LOCK = threading.Lock()


def target_positions(trajectory: RenderedTrajectory) -> NDArray[np.intp]:
    """Positions of the tokens that the loss predicts: response tokens that have a token before them."""
    return np.flatnonzero(trajectory.response_mask[1:]) + 1


def read_length(trajectory: RenderedTrajectory) -> int:
    """Number of tokens that the model reads: those before the last target, since nothing after them reaches the loss."""
    targets = target_positions(trajectory)
    if not targets.size:
        raise DataError(f"trajectory {trajectory.id!r}: empty response mask, so there is no loss to take a gradient of")
    return int(targets[-1])


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """`norms` float64 `[n, N]`; `loss` float64 `[n]`, in nats, the mean over `n_response_tokens` int64 `[n]`.

    `token_losses` are those of the single tokens, float16 `[n_response_tokens]` for each trajectory, at its `target_positions`. `scores`
    has what `pass_scores` were asked for: float32 `[n, N]` of units, float64 `[n]` of single numbers, float32 `[n, k]` of a sketch.
    """

    norms: NDArray[np.float64]
    loss: NDArray[np.float64]
    n_response_tokens: NDArray[np.int64]
    token_losses: Sequence[NDArray[np.float16]]
    scores: Mapping[str, NDArray[Any]]


class Prober:
    """Probes trajectories on `model`, a causal language model whose units `find_units` knows.

    `units` names other units than those found. `costs` decide between the forms of a norm (default: those measured on the model's
    device). `checkpoint_activations` keeps only the inputs of layers and runs each layer again in the backward pass. The norms depend
    on neither beyond rounding. `scores` names what of `pass_scores.PASS_SCORES` is measured beside the norms.

    Between calls of `probe` the model is as it was: its hooks, `requires_grad` flags and training modes are restored. Several threads
    may call `probe` of one prober at once; of two probers of one model the second raises `ModelError`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        units: Units | None = None,
        *,
        costs: Costs | None = None,
        checkpoint_activations: bool = False,
        scores: Sequence[str] = (),
    ) -> None:
        found = find_units(model) if units is None else units
        keep_unpacked(model)
        self.model = model
        self.units, self.unit_names = found.units, [unit.name for unit in found.units]
        embeddings = _embeddings(model)
        self.vocabulary = int(embeddings.weight.shape[0])
        # Weights that accelerate keeps elsewhere have no device of their own: it brings them to this one.
        device = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
        self.device = embeddings.weight.device if device is None else torch.device(device)
        self.costs = measured_costs(str(self.device), model.dtype) if costs is None else costs
        self.found, self.scores = found, check_pass_scores(scores)
        self._projections = Projections()
        self._special = modality_tokens(model.config)
        self._row_modules = _modules_of_target_rows(model, found)
        self._checkpoint_activations = checkpoint_activations
        self._quantised = any(isinstance(tap, LinearTap) and _is_quantised(tap.module) for tap in found.taps)
        if checkpoint_activations and not found.layers:
            raise ModelError(f"{type(model).__name__}: its layers are not known, so their activations cannot be checkpointed")
        self._thread = threading.local()
        self._n_running = 0
        self._is_tried = False
        self._restore = ExitStack()

    def probe(self, trajectories: Sequence[RenderedTrajectory]) -> ProbeResult:
        """Norms of the gradient of each trajectory's mean cross-entropy with respect to each unit's weight.

        Raises `DataError` for a trajectory without targets, `ModelError` for another model's tokens or where the model does not run its
        units as expected.
        Non-finite results are returned, not raised: the caller knows what to save first.
        """
        batch = self._collate(trajectories)
        current = self._pass(batch, self.scores)
        # The sum of the trajectories' means: each one's gradient comes out as if it were alone. Each mean is multiplied by a power
        # of two near its number of tokens, which changes no digit, and keeps small gradients of long responses out of float16's
        # lowest range.
        count_n = batch.rows.bincount(minlength=len(trajectories))
        scale_n = count_n.double().log2().ceil().exp2()
        weight_n = scale_n / count_n
        # Threads of a launcher's process begin with another device than its own as the current one.
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with on_device, self._attached(), torch.enable_grad():
            self._thread.current = current
            with failures_named(self.model, lambda: self._again(batch, weight_n)):
                loss_R = self._run(batch, weight_n)
        if missing := current.missing(slot for tap in self.found.taps for slot in tap.slots):
            raise ModelError(f"{type(self.model).__name__}: {missing[0]} took no part in the loss of this batch; leave it out")
        # On the host, where sums have one order: an atomic add on a GPU has not.
        rows = batch.rows.cpu().numpy()
        count_n = count_n.cpu().numpy()
        losses = loss_R.detach().double().cpu().numpy()

        def mean(values_R: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.bincount(rows, weights=values_R, minlength=len(trajectories)) / count_n

        single = np.split(losses.astype(np.float16), np.cumsum(count_n)[:-1])  # rows ascend
        # Ranks and concentration are the same of a gradient times a number.
        scaled = {
            name: (v / scale_n[:, None] if name in ("nuclear_norm", "sketch") else v) for name, v in current.scores.values.items()
        }
        scores: dict[str, NDArray[Any]] = {name: values.float().cpu().numpy() for name, values in scaled.items()}
        if "token_variance" in self.scores:
            p_R = np.exp(-losses)
            scores["token_variance"] = mean(p_R * (1 - p_R))
        norms = (current.squared_nN.sqrt() / scale_n[:, None]).cpu().numpy()
        return ProbeResult(norms, mean(losses), count_n, single, scores)

    def _run(self, batch: Batch, weight_n: Tensor) -> Tensor:
        """Both passes; the loss of each target row, `[R]`."""
        logits_RV = self.model(input_ids=batch.input_ids, use_cache=False).logits[0]
        if logits_RV.dtype in (torch.float16, torch.bfloat16):
            logits_RV = logits_RV.float()
        loss_R = nn.functional.cross_entropy(logits_RV, batch.targets.to(logits_RV.device), reduction="none")
        (loss_R * weight_n.to(loss_R)[batch.rows.to(loss_R.device)]).sum().backward()
        return loss_R

    def _again(self, batch: Batch, weight_n: Tensor) -> None:
        """Both passes once more, to see where they fail."""
        self._thread.current = self._pass(batch)
        self._run(batch, weight_n)

    def _pass(self, batch: Batch, scores: Sequence[str] = ()) -> Pass:
        matrices = MatrixScores(scores, self.unit_names, len(batch.input_ids), self._projections, batch.input_ids.device)
        return Pass(batch, len(self.units), self.costs, matrices, self._checkpoint_activations)

    def _collate(self, trajectories: Sequence[RenderedTrajectory]) -> Batch:
        # A causal model's tokens never look right, so padding there needs no mask, and attention keeps its fast causal path.
        lengths = [read_length(trajectory) for trajectory in trajectories]
        n, T = len(trajectories), max(lengths)
        input_ids = np.zeros((n, T), dtype=np.int64)
        rows, columns, targets, places = [], [], [], []
        for row, (trajectory, length) in enumerate(zip(trajectories, lengths, strict=True)):
            check_vocabulary(trajectory, self.vocabulary)
            if self._special and (token := self._special & set(trajectory.input_ids[:length].tolist())):
                raise DataError(
                    f"trajectory {trajectory.id!r}: token {min(token)} stands for an image, a video or a sound; the probe reads text alone"
                )
            input_ids[row, :length] = trajectory.input_ids[:length]
            positions = target_positions(trajectory)
            rows.append(np.full(len(positions), row))
            columns.append(positions - 1)
            targets.append(trajectory.input_ids[positions])
            places.append(np.arange(len(positions)))

        def tensor(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(self.device)

        return Batch(
            input_ids=tensor(input_ids),
            rows=tensor(np.concatenate(rows)),
            columns=tensor(np.concatenate(columns)),
            targets=tensor(np.concatenate(targets)),
            places=tensor(np.concatenate(places)),
            most=max(map(len, places)),
        )

    @contextmanager
    def _attached(self) -> Iterator[None]:
        """Freezes the model and hooks into it, from the first call that is running to the last."""
        with _LOCK:
            if not self._n_running:
                if self.model in _PROBED:
                    raise ModelError(
                        f"{type(self.model).__name__}: another probe of this model is running; wait for it, or load the model again"
                    )
                self._restore = self._attach() if self._is_tried else self._try_out()
                _PROBED.add(self.model)
                self._restore.callback(_PROBED.discard, self.model)
            self._n_running += 1
        try:
            yield
        finally:
            # What a failed pass leaves behind would otherwise live as long as its thread.
            self._thread.current = None
            with _LOCK:
                self._n_running -= 1
                if not self._n_running:
                    self._restore.close()

    def _try_out(self) -> ExitStack:
        """`_attach`, after a trial of the model; without modules that run on target rows alone where they would change the logits.

        A convolution behind the queries, for one, reads what stands before the targets.
        """
        logits = check_causal(self.model, self.vocabulary, self.device)
        ids = trial_tokens(self.vocabulary, self.device)
        columns = torch.arange(2, ids.shape[1], 3, device=self.device)
        none = torch.zeros_like(columns)
        batch = Batch(ids, none, columns, none, torch.arange(len(columns), device=self.device), len(columns))
        stack = self._attach()
        try:
            self._thread.current = self._pass(batch)
            with torch.no_grad(), failures_named(self.model):
                found = self.model(input_ids=ids, use_cache=False).logits[0].float()
        except BaseException:
            stack.close()
            raise
        if differ(found, logits[0, columns], self.model):
            stack.close()
            self._row_modules = []
            stack = self._attach()
        self._is_tried = True
        return stack

    def _attach(self) -> ExitStack:
        """Hooks into and freezes the model; closing the result takes that back."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(self.model).__name__}: has no output embeddings; the probe needs a causal language model")
        with ExitStack() as stack:
            for module in self.model.modules():
                stack.callback(setattr, module, "training", module.training)
            for parameter in self.model.parameters():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
            self.model.eval()
            stack.callback(head.register_forward_pre_hook(lambda module, args: (self._batch.pick(args[0]), *args[1:])).remove)
            for module in self._row_modules:
                stack.callback(module.register_forward_pre_hook(lambda module, args: (self._batch.pick(args[0]), *args[1:])).remove)
            for tap in self.found.taps:
                self._listen(tap, stack)
            for module in self._row_modules:  # after the taps, whose hooks shall see the rows
                stack.callback(module.register_forward_hook(lambda module, args, output: self._spread(output)).remove)
            if self._checkpoint_activations:
                for layer in self.found.layers:
                    stack.enter_context(replaced(layer, "forward", self._checkpointed(layer.forward)))
            return stack.pop_all()

    @property
    def _batch(self) -> Batch:
        return self._thread.current.batch

    def _spread(self, output: Any) -> Any:
        # Some mixtures of experts return more than the hidden states.
        return self._batch.spread(output) if isinstance(output, Tensor) else (self._batch.spread(output[0]), *output[1:])

    def _listen(self, tap: LinearTap | ExpertsTap, stack: ExitStack) -> None:
        if isinstance(tap, ExpertsTap):
            stack.enter_context(measured(tap, lambda: self._thread.current))
            return

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._thread.current.tap_input(tap, args[0])

        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            self._thread.current.output(tap.path, output)

        stack.callback(tap.module.register_forward_pre_hook(before).remove)
        stack.callback(tap.module.register_forward_hook(after).remove)

    def _checkpointed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            current = self._thread.current

            @contextmanager
            def again() -> Iterator[None]:
                # The backward pass of a GPU runs in a thread of its own.
                before, self._thread.current = getattr(self._thread, "current", None), current
                try:
                    with current.again():
                        yield
                finally:
                    self._thread.current = before

            return checkpoint(
                forward,
                *args,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (ExitStack(), again()),
                early_stop=not self._quantised,
                **kwargs,
            )

        return run


def _is_quantised(module: Any) -> bool:
    """Whether weights are packed integers: such a product keeps nothing that autograd knows of, so that a checkpointed layer's second
    run would stop before it reaches the last one."""
    weight = getattr(module, "weight", None)
    return weight is None or not weight.is_floating_point()


def _embeddings(model: Any) -> Any:
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # what transformers raises for a model that has none
        embeddings = None
    if getattr(embeddings, "weight", None) is None:
        raise ModelError(f"{type(model).__name__}: has no embeddings of tokens; the probe needs a causal language model")
    return embeddings


def modality_tokens(config: Any) -> frozenset[int]:
    """The tokens that a model of several modalities replaces by what it makes of images, videos or sounds."""
    keys = [f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index")]
    return frozenset(value for key in keys if isinstance(value := getattr(config, key, None), int))


def _modules_of_target_rows(model: nn.Module, found: Units) -> list[nn.Module]:
    """Modules of the last layer that work on each token by itself and whose other outputs reach neither loss nor other tokens."""
    if not (found.layers and found.recognised):
        return []
    last = max(unit.layer for unit in found.units)
    feed_forward, others, modules = [], [], []
    for tap in found.taps:
        if tap.layer == last:
            kinds = {found.units[index].kind for index in tap.unit_indices}
            if kinds <= {"gate", "up", "down"}:
                feed_forward.append(tap.path.split("."))
            else:
                others.append(tap.path.split("."))
                if kinds in ({"q"}, {"o"}):
                    modules.append(tap.module)
    if feed_forward:
        # The module that holds them all, its router included, but nothing else: `layers.5.mlp`.
        path = posixpath.commonpath(["/".join(path[:-1]) for path in feed_forward]).split("/")
        parent = next(module for name, module in model.named_modules() if canonical_path(name) == ".".join(path))
        if not any(other[: len(path)] == path for other in others) and all(parent is not layer for layer in found.layers):
            modules.append(parent)
    return modules
