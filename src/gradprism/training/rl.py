"""Reinforcement learning on routed tasks: play a round, score it, take the policy-gradient steps, log, save, evaluate."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import fsdp2_prepare_model

from gradprism.attention import masks_of
from gradprism.environments.pool import SessionPool, default_workers
from gradprism.environments.protocol import Environment, Task
from gradprism.models import check_context_length
from gradprism.rollouts.config import RolloutConfig
from gradprism.rollouts.player import Player
from gradprism.routing.sets import RlTask
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import sha256_json
from gradprism.runtime.folders import Manifest, OnExisting
from gradprism.runtime.progress import say
from gradprism.runtime.ranks import processes_here
from gradprism.runtime.usage import Usage
from gradprism.training.batches import Batch, make_batch
from gradprism.training.doctor import Doctor, of_round
from gradprism.training.frame import training_frame
from gradprism.training.head import add_head, score_tokens
from gradprism.training.loop import Loop, constant, cosine
from gradprism.training.loss import policy_loss, sampling_correction
from gradprism.training.rl_check import check_rl
from gradprism.training.rl_config import RlConfig
from gradprism.training.rounds import Rounds, figures_of
from gradprism.training.rows import Row, row_weight, split_rows
from gradprism.training.summary import TrainingSummary
from gradprism.training.tasks import TaskStream, as_tasks, check_tasks, weighs
from gradprism.training.trees import linear_weight, make_trees, pack
from gradprism.trajectories.rendering import Renderer

# Asked between rounds, with the model and how many rounds have been played: tasks to go on with, or None for the same as before.
Refresh = Callable[[Any, int], Sequence[Task] | None]
# Figures of which the summary has the mean over the last rounds.
DIAGNOSES = (
    "success",
    "entropy",
    "kl",
    "clipped_low",
    "clipped_high",
    "groups_without_gradient",
    "invalid_share",
    "repeated_share",
)
BROKEN = 0.05  # of the episodes: more that are cut short is worth a warning
PREFLIGHT = 16  # tasks whose first observation is tried for its length before training


def train_rl(
    model: Any,
    tokenizer: Any,
    environment: Environment,
    tasks: Sequence[Task | RlTask],
    config: RlConfig = RlConfig(),
    *,
    out: Path | str,
    workers: int | None = None,
    device: str = "auto",
    on_existing: OnExisting = "resume",
    refresh: Refresh | None = None,
) -> TrainingSummary:
    """Trains `model` in place on `tasks` and makes `out` a training folder with the result.

    `tasks` are the environment's or those of a route (`Routes.rl`), each counted once, and drawn by its weight. Only they are used, never a
    gold action. Tokens of observations get no loss. The model may lie on the CPU: it is moved to `device` (auto, cpu or cuda). Under
    `torchrun` or `accelerate launch` every process calls this with the same arguments. A training that was cut short goes on from its
    last checkpoint, and gives what it would have given; one that has finished is not repeated (`reused`), and goes on for more rounds
    from a checkpoint that was kept. `refresh` may replace the tasks between rounds.

    Raises `ConfigError` before training for settings that cannot be met, `FolderInUseError` for a folder that holds something else,
    and `ModelError` where training diverges.
    """
    tasks = as_tasks(tasks, environment)
    check_tasks(tasks)
    if weighs(tasks) and (refresh is not None or config.order == "given"):
        raise ConfigError("tasks with weights: are drawn by them, which leaves no order, and no refresh; give one of them")
    with training_frame(model, tokenizer, config, out, device, on_existing) as frame:
        length = check_context_length(frame.model, config.context_length)
        config, renderer = config.model_copy(update={"context_length": length}), Renderer(frame.tokenizer, length)
        frame.config = config
        check_rl(config, frame.world, frame.model, renderer)

        def inputs() -> Manifest:
            known = [task.reference() for task in tasks]
            weighed = [[task, one.weight] for task, one in zip(known, tasks, strict=True)] if weighs(tasks) else known
            return {"tasks_sha256": sha256_json(weighed), "environment": environment.identity(tasks)}

        if finished := frame.claim("rl", inputs, config.rounds * config.steps_per_round, config.stop_when):
            return finished
        frame.warn(*config.without_effect)
        with SessionPool(environment, workers or max(1, default_workers() // processes_here())) as pool:
            training = RlTraining(frame.model, renderer, pool, tasks, config, frame.out, device)
            training.plan_rounds(refresh)
            if config.evaluate_every:
                split = config.evaluate_split or environment.dev_split or environment.evaluation_splits[0]
                training.evaluation_tasks = _evaluation_tasks(environment, split, config.evaluate_tasks)
            training.run(frame.step)
        evaluated = training.seconds["evaluation"]
        frame.warn(*training.warnings)
        return frame.finish(training.loop, len(tasks), training.counts, evaluated, training.stopped)


class RlTraining:
    """A model, what plays it, and the loop that trains it. `totals` are counts over all rounds, `seconds` where the time went."""

    def __init__(
        self, model: Any, renderer: Renderer, pool: SessionPool, tasks: Sequence[Task], config: RlConfig, out: Path, device: str
    ) -> None:
        self.config, self.tasks, self.renderer, self.pool = config, tasks, renderer, pool
        self.evaluation_tasks: Sequence[Task] = ()
        self.totals: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)
        self.doctor, self.stopped = Doctor(), ""
        self.best: dict[str, float] = {}  # success and round of the best evaluation
        # With adapters the reference is the model without them.
        reference = copy.deepcopy(model).requires_grad_(False).eval() if config.kl and config.lora_rank is None else None
        for each in (model, reference) if reference is not None else (model,):
            add_head(each, config.temperature)
        _turn_off_dropout(model)
        decay = config.decay_rounds * config.steps_per_round
        schedule = cosine(decay, config.warmup_steps, config.decay_to) if decay else constant(config.warmup_steps)
        self.loop = loop = Loop(model, config, out, schedule, device=device, label="RL")
        self.reference = reference
        if reference is not None:
            self.reference = fsdp2_prepare_model(loop.accelerator, reference) if loop.sharded else reference.to(loop.device)
        self.vllm, self._synced = _vllm(loop, renderer, config), -1
        self.player = self._player(config)
        self.masks = masks_of(model, self.player.context_length)
        self.linear_weight = linear_weight(model) if self.masks is not None else 0.0

    def plan_rounds(self, refresh: Refresh | None = None) -> None:
        """Sets out the rounds; the first tasks' prompts are tried for their length."""
        loop, config = self.loop, self.config
        self.player.check_fits(self.tasks[:PREFLIGHT])
        stream = TaskStream(self.tasks, config.seed, loop.rank, loop.world, as_given=config.order == "given")
        ask = None if refresh is None else lambda count: refresh(loop.unwrapped, count)
        summed = loop.summed if loop.world > 1 else None
        self.rounds = Rounds(stream, self._play, config, config.tasks_per_round // loop.world, ask, summed)

    def run(self, resumes_at: int = 0) -> None:
        """Plays and trains on all rounds that are left after the checkpoint of step `resumes_at`."""
        loop, config = self.loop, self.config
        if resumes_at:
            state = loop.restore(resumes_at)
            self.rounds.state = state["rounds"]
            self.totals.update(state["totals"])
            self.seconds.update(state["seconds"])
            self.doctor.state, self.best = state["doctor"], state["best"] if loop.has_best or not config.keep_best else {}
            self._stop_where_asked()
        elif self.evaluation_tasks:
            loop.log(found := self._evaluate())
            self.doctor.begin(found)
        with loop.progress as progress:
            progress.begin(config.rounds * config.steps_per_round, loop.step)
            while self.rounds.count < config.rounds and not self.stopped:
                self._round()
                # After the last round the model follows at once: a checkpoint is only for more rounds that may be asked for.
                last = self.rounds.count == config.rounds or self.stopped
                if config.keep_checkpoints if last else self.rounds.count % config.save_every == 0:
                    loop.save(self._state)
        if config.keep_best:
            if self.stopped and not config.evaluates_after(self.rounds.count):
                loop.log(self._evaluate())
            if loop.has_best:
                loop.restore_best()

    @property
    def _state(self) -> dict[str, Any]:
        """All that the next round depends on beside weights and optimizer, or that the summary tells; JSON-serialisable."""
        account = {"totals": self.totals, "seconds": self.seconds, "doctor": self.doctor.state, "best": self.best}
        return {"rounds": self.rounds.state, **account}

    def _round(self) -> None:
        """One round: its rollouts, its optimizer steps, each a line of the log, and the evaluation after it."""
        loop, config = self.loop, self.config
        loop.begin_step()
        clock = time.perf_counter()
        self._sync()
        rows, figures = self._rollouts()
        figures["rollout_seconds"] = time.perf_counter() - clock
        clock = time.perf_counter()
        parts = split_rows(rows, config.updates_per_round, seed=config.seed + self.rounds.played)
        updates = [self._batches(part) for part in parts] * config.epochs_per_round
        self.seconds["update"] += time.perf_counter() - clock
        of_updates = []
        for number, batches in enumerate(updates, 1):
            if number > 1:
                loop.begin_step()
            figures |= self._update(batches)
            if number == len(updates) and config.evaluates_after(self.rounds.count):
                figures |= self._evaluate()
            loop.log(figures, self._note(figures))
            of_updates.append(figures)
            figures = {}
        self._examine(of_round(of_updates))

    def _examine(self, figures: Mapping[str, float]) -> None:
        """Says the alarms that this round raises; one that was asked for ends the training."""
        for alarm in self.doctor.add(figures):
            say(f"round {self.rounds.count}: {alarm}")
        self._stop_where_asked()

    def _stop_where_asked(self) -> None:
        """Ends the training where an alarm that was asked for is true, though it may have been raised before it was asked for."""
        self.stopped = next((alarm.name for alarm in self.doctor.alarms() if alarm.name in self.config.stop_when), "")

    def _rollouts(self) -> tuple[list[Row], dict[str, float]]:
        """The rows of the next round, and the log's figures of what was played."""
        limit = self.config.steps_limit(self.rounds.count)
        self.player = player = self._player(self.config.model_copy(update={"max_steps": limit}))
        round_ = self.rounds.next()
        self.seconds["generate"] += player.generate_seconds
        self.seconds["environment"] += player.environment_seconds
        used = list(player.used.to_json().values())
        summed = self.loop.summed([*round_.counts.values(), *used])
        self.loop.used += Usage(*map(int, summed[-len(used) :]))
        counts = dict(zip(round_.counts, summed, strict=False))
        for name, value in counts.items():
            self.totals[name] += value
        self.totals["rounds_without_gradient"] += counts["without_gradient"] == counts["taken"]
        return round_.rows, figures_of(counts)

    def _play(self, tasks: Sequence[Task], seed: int) -> Any:
        played, count, progress = 0, self.rounds.count, self.loop.progress

        def told(_: object) -> None:
            nonlocal played
            played += 1
            progress.advance(0, f"round {count}: {played} of {len(tasks)} episodes")

        progress.advance(0, f"round {count}: {len(tasks)} episodes begin")
        with self.loop.autocast():
            return self.player.play(tasks, seed, told)

    def _batches(self, rows: list[Row]) -> list[Batch]:
        """The micro-batches of one optimizer step, with what the loss reads of the models as they are now."""
        loop, config = self.loop, self.config
        # The loss divides by all rows and tokens, also those that are not passed since they have no gradient.
        n_rows, n_tokens = loop.summed([len(rows), sum(len(row.logprobs) for row in rows)])
        trees = make_trees([row for row in rows if config.kl or config.entropy or any(row.advantages)], self.linear_weight)
        packed = pack(trees, config.micro_batch(loop.device.type))
        # Every process makes as many passes, since passes are collective where a model is sharded.
        counts: Any = loop.accelerator.gather(torch.tensor([len(packed)], device=loop.device))
        packed += [[]] * (max(1, int(counts.max())) - len(packed))
        batches = []
        for part in packed:
            of_trees = [row for tree in part for row in tree.rows]
            weights = [row_weight(row, config.loss, n_rows, n_tokens, self.player.context_length) for row in of_trees]
            batch = make_batch(part, weights, loop.device, self.masks)
            if self.vllm is not None:  # another engine, whose probabilities are not quite this model's
                batch.old = self._logprobs(loop.unwrapped, batch)
                batch.correction = sampling_correction(batch)
            elif config.steps_per_round > 1:
                batch.old = batch.sampled
            if self.reference is not None:
                batch.reference = self._logprobs(self.reference, batch)
            elif config.kl:
                with loop.unwrapped.disable_adapter():
                    batch.reference = self._logprobs(loop.unwrapped, batch)
            batches.append(batch)
        return batches

    @torch.no_grad()
    def _logprobs(self, model: Any, batch: Batch) -> torch.Tensor:
        with self.loop.autocast():
            return score_tokens(model, model, batch.inputs, batch.places).log_probs[0][batch.repeated]  # pyright: ignore[reportOptionalSubscript]

    def _update(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimizer step; its figures. Means are over the tokens that were passed."""
        loop, clock = self.loop, time.perf_counter()
        sums = torch.zeros(5, dtype=torch.float64, device=loop.device)  # loss, entropy, KL, clipped below, clipped above
        for number, batch in enumerate(batches, 1):
            with loop.forward_pass(last=number == len(batches)):
                with loop.autocast():
                    found: Any = score_tokens(loop.model, loop.unwrapped, batch.inputs, batch.places)
                logprobs, entropy = (of_places[0][batch.repeated] for of_places in (found.log_probs, found.entropy))
                loss, of_tokens = policy_loss(logprobs, entropy, batch, self.config)
                loop.backward(loss)
            entropies = entropy.detach().sum().double() * bool(batch.actions)
            sums += torch.stack([loss.detach().double(), entropies, *of_tokens])
        tokens, actions = sum(batch.tokens for batch in batches), sum(batch.actions for batch in batches)
        loss, *rest = sums.tolist()
        figures = loop.update(loss, tokens, actions)
        means = [value / max(1, figures["response_tokens"]) for value in loop.summed(rest)]
        seconds = time.perf_counter() - clock
        self.seconds["update"] += seconds
        if figures["response_tokens"]:  # of a round without a gradient nothing is passed, and there is nothing to take a mean of
            figures |= dict(zip(("entropy", "kl", "clipped_low", "clipped_high"), means, strict=True))
        if not self.config.kl:
            figures.pop("kl", None)
        return {**figures, "update_seconds": seconds}

    def _evaluate(self) -> dict[str, float]:
        """Plays the evaluation's tasks, each process its share; success and score over all. Outside the step's time.

        The best one is the one of most successes, of equal ones that of the highest score.
        """
        clock, config = time.perf_counter(), self.config
        self._sync()
        greedy = config.model_copy(update={"temperature": 0.0})
        figures: dict[str, float] = dict(zip(("success", "score"), self._play_evaluation(greedy), strict=True))
        if config.evaluate_sampled:
            figures["sampled_success"], figures["sampled_score"] = self._play_evaluation(config)
        found = {"success": figures["success"], "score": figures["score"]}
        if not self.best or tuple(found.values()) > (self.best["success"], self.best["score"]):
            self.best = {**found, "round": self.rounds.count}
            if config.keep_best:
                self.loop.save_best()
        self.seconds["evaluation"] += time.perf_counter() - clock
        return {f"evaluation/{name}": value for name, value in figures.items()}

    def _play_evaluation(self, config: RolloutConfig) -> tuple[float, float]:
        loop, player = self.loop, self._player(config)
        with loop.autocast():
            played = player.play(self.evaluation_tasks[loop.rank :: loop.world], self.config.seed)
        n, won, score = loop.summed([len(played), sum(e.success for e in played), sum(e.score for e in played)])
        return won / n, score / n

    def _player(self, config: RolloutConfig) -> Player:
        vllm = self.vllm
        make = None if vllm is None else lambda slots: vllm.generator(config.temperature)
        return Player(self.loop.unwrapped, self.renderer, self.pool, config, make, refuse_long=False)

    def _sync(self) -> None:
        """Brings vLLM the weights, where they have changed."""
        if self.vllm is not None and self._synced != self.loop.step:
            self.vllm.sync()
            self._synced = self.loop.step

    def _note(self, figures: dict[str, float]) -> str:
        return f"reward {figures['reward']:.3f}, {figures['tokens_per_second']:.0f} tokens/s" if "reward" in figures else ""

    @property
    def counts(self) -> dict[str, float]:
        """Figures of the summary: counts over all rounds, and seconds, which are this process's own."""
        names = (
            "episodes",
            "groups",
            "zero_variance_groups",
            "replaced_groups",
            "failed_episodes",
            "cut_by_context",
            "out_of_steps",
            "rounds_without_gradient",
        )
        seconds = {f"{part}_seconds": self.seconds[part] for part in ("generate", "environment", "update")}
        best = {f"best_{name}": value for name, value in self.best.items()}
        last = {f"last_{name}": mean for name in DIAGNOSES if np.isfinite(mean := self.doctor.late(name))}
        return {"rounds": self.rounds.count, **{name: self.totals[name] for name in names}, **seconds, **best, **last}

    @property
    def warnings(self) -> list[str]:
        """Sentences about rounds that trained on nothing, and episodes that broke off."""
        rounds, empty, episodes = self.rounds.count, self.totals["rounds_without_gradient"], max(1.0, self.totals["episodes"])
        told = [f"raised in round {self.doctor.raised[alarm.name]} and still true, {alarm}" for alarm in self.doctor.alarms()]
        if empty:
            told.append(
                f"{empty:.0f} of {rounds} rounds had no gradient of the reward, since none of their groups differed: play more episodes "
                "per task, easier or harder tasks, or a reward with degrees"
            )
        for name, what in (("failed_episodes", "were broken off by the environment"), ("cut_by_context", "ran out of context")):
            if self.totals[name] > episodes * BROKEN:
                told.append(f"{self.totals[name] / episodes:.1%} of the episodes {what}")
        return told


def _vllm(loop: Loop, renderer: Renderer, config: RlConfig) -> Any:
    if config.vllm == "off":
        return None
    from gradprism.rollouts.vllm import TrainedVllm

    return TrainedVllm(
        loop.unwrapped,
        loop.accelerator,
        renderer.tokenizer,
        url=config.vllm_url if config.vllm == "server" else None,
        memory=config.vllm_memory,
        max_tokens=config.max_action_tokens,
        context_length=config.context_length or 0,
    )


def _evaluation_tasks(environment: Environment, split: str, count: int) -> list[Task]:
    try:
        return environment.tasks(split, count)
    except ConfigError as error:
        raise ConfigError(f"evaluate_tasks {count}: {error}") from None


def _turn_off_dropout(model: Any) -> None:
    """Episodes are played without dropout and routers' jitter, with which the ratio of probabilities would be noise.

    Attention and routers read theirs from a number beside them while the model is being trained, as it must be for activation
    checkpointing. PhiMoE's `router_jitter_noise` is none of these: it is the width of a mask, whenever the model is used.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name) and name != "router_jitter_noise":
                setattr(module, name, 0.0)
