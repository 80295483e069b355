"""TRL's GRPO trainer on rounds of multi-turn episodes: rows of any number and length, advantages of their own for every token.

TRL takes a fixed number of completions a step and pads them all to the longest. Episodes differ in length by an order of magnitude, and a
prompt that is rebuilt at every step makes one row a step. So a step of the trainer takes a list of micro-batches here, packed by tokens,
and passes them one after the other; loss, reference model, optimizer, weights for vLLM and checkpoints stay TRL's and transformers'.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer

from gradprism.rollouts.player import PlayCosts
from gradprism.runtime.files import read_json, write_json
from gradprism.training.batches import pack, split_rows, tensors
from gradprism.training.checkpoints import AtomicCheckpoints
from gradprism.training.rounds import Round, Rounds, Row, means, sums
from gradprism.training.tracking import CountedTokens

STATE = "rounds-{rank}.json"


class EpisodeTrainer(CountedTokens, AtomicCheckpoints, GRPOTrainer):
    """`rounds` and `statistics` (those of its player) are set before training. Everything else is `GRPOTrainer`'s."""

    rounds: Rounds
    statistics: PlayCosts
    micro_batch_tokens: int
    update_seconds = evaluation_seconds = 0.0
    tokens_trained = 0
    _actions: torch.Tensor  # [B, C], of the micro-batch that is scored
    played: dict[str, float]
    # Plays an evaluation and gives its figures, the same on every process; None for no evaluation.
    evaluation: Callable[[], dict[str, float]] | None = None

    def _prepare_inputs(self, generation_batch: Any) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        updates = self.rounds.config.updates_per_round
        if self._step % (updates * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._play_round()
        return self._buffered_inputs[self._step % updates]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One optimizer step: every micro-batch forward and backward."""
        self.start_clock()
        model.train()
        batches = self._prepare_inputs(inputs)
        clock = time.perf_counter()
        total = torch.zeros((), device=self.accelerator.device)
        logged = {key: len(values) for key, values in self._metrics["train"].items()}
        for number, batch in enumerate(batches, 1):
            # DDP adds up gradients over processes once a step; FSDP at every micro-batch, which keeps them sharded.
            waits = number < len(batches) and isinstance(model, DistributedDataParallel)
            with model.no_sync() if waits else contextlib.nullcontext():
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, batch) * batch["weight"]
                self.accelerator.backward(loss)
            total += loss.detach()
            self.count_tokens(batch["tokens"], batch["action_tokens"])
        self._weigh_metrics(logged, [batch["action_tokens"] for batch in batches])
        self._step += 1
        seconds = time.perf_counter() - clock
        self.update_seconds += seconds
        self._metrics["train"]["update_seconds"].append(seconds)
        return total

    def _weigh_metrics(self, logged: dict[str, int], weights: list[int]) -> None:
        """Makes one mean over tokens of what TRL has logged for each micro-batch; they differ much in size."""
        for key, values in self._metrics["train"].items():
            new = values[logged.get(key, 0) :]
            if len(new) == len(weights) and not key.endswith(("_min", "_max")) and sum(weights):
                mean = sum(w * value for w, value in zip(weights, new, strict=True) if w) / sum(weights)
                self._metrics["train"][key] = [*values[: logged.get(key, 0)], mean]

    def evaluate_now(self) -> dict[str, float]:
        """Plays the evaluation, outside the step's time; nothing without one."""
        if self.evaluation is None:
            return {}
        clock = time.perf_counter()
        self._sync_vllm()
        figures = {f"evaluation/{key}": value for key, value in self.evaluation().items()}
        seconds = time.perf_counter() - clock
        self.evaluation_seconds += seconds
        if self._clock is not None:
            self._clock += seconds
        return figures

    def _sync_vllm(self) -> None:
        if self.use_vllm and self.state.global_step != self._last_loaded_step:
            self.vllm_generation.sync_weights()
            self.accelerator.wait_for_everyone()  # the first process sends a server the weights, and all ask it
            self._last_loaded_step = self.state.global_step

    def _play_round(self) -> list[list[dict[str, Any]]]:
        """Plays, and makes the micro-batches of each optimizer step of the round."""
        clock = time.perf_counter()
        self._sync_vllm()
        round_ = self.rounds.next()
        self._log_round(round_, time.perf_counter() - clock)
        updates = self.rounds.config.updates_per_round
        parts = split_rows(round_.rows, updates, seed=self.rounds.config.seed + self.rounds.played)
        return [self._micro_batches(part, updates) for part in parts]

    def _micro_batches(self, rows: list[Row], updates: int) -> list[dict[str, Any]]:
        # What the loss divides by counts every row, also those that are not passed for want of anything to learn.
        n_rows, n_tokens = self.summed([len(rows), sum(sum(row.mask) for row in rows)])
        mean_rows = max(1.0, n_rows) / self.accelerator.num_processes
        learnt = [row for row in rows if self.beta or any(row.advantages)]
        packed = pack(learnt, self.micro_batch_tokens)
        # Every process makes as many passes, since passes are collective where a model is sharded.
        counts: Any = self.accelerator.gather(torch.tensor([len(packed)], device=self.accelerator.device))
        pad: Any = self._tokenizer.pad_token_id
        packed += [[_idle(pad)]] * (max(1, int(counts.max())) - len(packed))
        batches = []
        for part in packed:
            batch = tensors(part, pad, self.accelerator.device)
            # TRL's dapo loss divides by the tokens of all updates of a round; its other losses are means over the rows they are given.
            batch["num_items_in_batch"] = torch.tensor(n_tokens * updates, device=self.accelerator.device)
            batch["weight"] = 1.0 if self.loss_type == "dapo" else len(part) / mean_rows
            batch["tokens"], batch["action_tokens"] = sum(map(len, part)), sum(sum(row.mask) for row in part)
            self._add_logprobs(batch)
            batches.append(batch)
        self.tokens_trained += sum(map(len, learnt)) * self.num_iterations
        return batches

    @torch.no_grad()
    def _add_logprobs(self, batch: dict[str, Any]) -> None:
        """Log-probabilities under the model as it is now, where later steps need them, and under the reference."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        width = batch["completion_ids"].shape[1]
        self._actions = batch["tool_mask"]

        def logprobs(model: Any) -> torch.Tensor:
            return self._get_per_token_logps_and_entropies(model, ids, mask, width)[0]

        if self.rounds.config.steps_per_round > 1 or self.use_vllm:
            batch["old_per_token_logps"] = logprobs(self.model)
        if self.use_vllm and self.vllm_importance_sampling_correction:
            # Another engine sampled: its probabilities differ a little from this model's (truncated importance sampling).
            difference = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]) * batch["tool_mask"]
            ratio = difference.nan_to_num(nan=0.0).exp()  # what the engine could not tell is left uncorrected
            batch["importance_sampling_ratio"] = ratio.clamp(max=self.vllm_importance_sampling_clip_max)
        if self.beta:
            if self.ref_model is not None:
                batch["ref_per_token_logps"] = logprobs(self.ref_model)
            else:  # a LoRA adapter: the model without it
                with self.accelerator.unwrap_model(self.model).disable_adapter():
                    batch["ref_per_token_logps"] = logprobs(self.model)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._actions = inputs["tool_mask"]
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *_: Any, **__: Any
    ) -> tuple[Any, Any, None]:
        """Log-probabilities and entropies [B, C] of the actions' tokens under `model`; zero for all others.

        TRL's head scores every token of an episode where it has no Triton kernel. Most are observations, and with a small model the head
        is most of the work. So the head is handed only the hidden states that predict an action: [1, K, H] instead of [B, P + C, H].
        """
        actions = self._actions.bool()
        if not actions.any():  # an idle row: one token is scored, which no loss counts, so that the result depends on the model
            actions = actions.index_fill(1, torch.tensor([0], device=actions.device), True)
        rows, columns = actions.nonzero(as_tuple=True)
        # Without padding on the left no mask is needed, since nothing looks right, and attention keeps its fast causal path.
        width = input_ids.shape[1]
        pads = (attention_mask[:, : width - logits_to_keep] == 0).sum(1)
        places = (torch.arange(width, device=pads.device) + pads[:, None]).clamp(max=width - 1)
        token_ids = input_ids.gather(1, places)
        scored = width - logits_to_keep + columns - pads[rows]

        def pick(module: Any, args: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[rows, scored - 1][None]  # a token is predicted by the one before it
            return output

        unwrapped = self.accelerator.unwrap_model(model)
        backbone = (unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped).base_model
        handle = backbone.register_forward_hook(pick)
        try:
            with self.accelerator.autocast():
                found = model(input_ids=token_ids, shift_labels=token_ids[rows, scored][None], fused_lm_head=True)
        finally:
            handle.remove()
        logps, entropies = (
            None if value is None else value.new_zeros(actions.shape).index_put((rows, columns), value[0])
            for value in (found.log_probs, found.entropy)  # a reference model gives no entropy
        )
        return logps, entropies, None

    def _log_round(self, round_: Round, seconds: float) -> None:
        local = sums(round_)
        named = dict(zip(local, self.summed(list(local.values())), strict=True))
        self.played = {key: getattr(self, "played", {}).get(key, 0.0) + value for key, value in named.items()}
        for key, value in {**means(named), "rollout_seconds": seconds}.items():
            self._metrics["train"][key].append(value)

    def summed(self, values: list[float]) -> list[float]:
        """Each value added over all processes."""
        local = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        total: Any = self.accelerator.reduce(local, reduction="sum")
        return total.tolist()

    def save_more(self, folder: Path) -> None:
        """What this process plays next, and what its rounds have cost."""
        state = {
            "rounds": self.rounds.state,
            "played": self.played,
            "tokens_trained": self.tokens_trained,
            "update_seconds": self.update_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "statistics": dataclasses.asdict(self.statistics),
        }
        write_json(folder / STATE.format(rank=self.accelerator.process_index), state)

    def restore(self, checkpoint: Path) -> None:
        """Goes on with the rounds after a checkpoint."""
        state = read_json(checkpoint / STATE.format(rank=self.accelerator.process_index))
        self.rounds.state = state["rounds"]
        self.played, self.tokens_trained, self.update_seconds = state["played"], state["tokens_trained"], state["update_seconds"]
        self.evaluation_seconds = state["evaluation_seconds"]
        for name, value in state["statistics"].items():
            setattr(self.statistics, name, value)


class EvaluationCallback(TrainerCallback):
    """Evaluates an `EpisodeTrainer` before the first and after every `every`-th optimizer step."""

    def __init__(self, trainer: EpisodeTrainer, every: int) -> None:
        self.trainer, self.every = trainer, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.trainer.log(self.trainer.evaluate_now())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            for key, value in self.trainer.evaluate_now().items():
                self.trainer._metrics["train"][key].append(value)


def _idle(token: int) -> Row:
    """A row that teaches nothing."""
    return Row([token], [token], [0], [0.0], [0.0])
