"""Reinforcement learning on routed tasks: rounds of multi-turn episodes, played by our own player, learnt from by TRL's trainer."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradprism.environments.pool import SessionPool, default_workers
from gradprism.environments.protocol import Environment, Task
from gradprism.models import check_context_length, resolve_device
from gradprism.rollouts.player import Player
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError, ModelError
from gradprism.runtime.files import sha256_json
from gradprism.runtime.progress import Progress, quiet
from gradprism.runtime.usage import Usage
from gradprism.training.checkpoints import (
    OnExisting,
    claim_training_folder,
    decide,
    describe_training,
    finish_training,
    finished_training,
    save_total_limit,
    save_trained,
    sole_training,
    training_cost,
)
from gradprism.training.processes import join_processes, processes_here
from gradprism.training.rl_config import RlConfig
from gradprism.training.rounds import Rounds, TaskStream
from gradprism.training.summary import TrainingSummary
from gradprism.training.tracking import check_trackers, tracking_arguments
from gradprism.trajectories.rendering import Renderer

# Asked between rounds, with the model and how many rounds have been played: tasks to go on with, or None for the same as before.
Refresh = Callable[[Any, int], Sequence[Task] | None]
PREFLIGHT = 16  # tasks whose first observation is tried for its length before training


def read_tasks(path: Path, environment: Environment) -> list[Task]:
    """The tasks of a route folder's `rl.jsonl`, without repeats; raises `DataError` naming the line that has none."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; give the rl.jsonl of a route folder")
    tasks: dict[str, Task] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                task = environment.task(json.loads(line)["task"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{number}: no task of environment {environment.name!r} ({error})") from None
            tasks[task.id] = task
    return list(tasks.values())


def train_rl(
    model: Any,
    tokenizer: Any,
    environment: Environment,
    tasks: Sequence[Task],
    config: RlConfig = RlConfig(),
    *,
    out: Path | str,
    workers: int | None = None,
    device: str = "auto",
    on_existing: OnExisting = "resume",
    refresh: Refresh | None = None,
) -> TrainingSummary:
    """Trains `model` in place on `tasks` and makes `out` a training folder with the result.

    Only the tasks are used, never a gold action. Tokens of observations get no loss. The model may lie on the CPU: it is moved to
    `device`. Under `torchrun` or `accelerate launch` every process calls this with the same arguments. A training that was cut short
    goes on from its last checkpoint, and gives what it would have given; one that has finished is not repeated (`reused`).

    Raises `ConfigError` before training for settings that cannot be met, `FolderInUseError` for a folder that holds something else,
    and `ModelError` where training diverges.
    """
    check_trackers(config)
    out, ranks = Path(out), join_processes(device)
    context_length = check_context_length(model, config.context_length)
    config = config.model_copy(update={"context_length": context_length})
    renderer = Renderer(tokenizer, context_length)
    _check(tasks, config, ranks.world if ranks else 1, model, renderer, context_length)
    with quiet(ranks is not None and not ranks.is_first), sole_training(out, ranks):
        manifest = describe_training(
            "rl",
            config,
            model,
            renderer.tokenizer,
            ranks.world if ranks else 1,
            tasks_sha256=sha256_json([task.reference() for task in tasks]),
            environment=environment.name,
            device=resolve_device(device).partition(":")[0],
        )
        claimed = decide(ranks, lambda: _claim(out, manifest, on_existing))
        if claimed["finished"] is not None:
            return _summary(claimed["finished"])
        checkpoint = Path(claimed["checkpoint"]) if claimed["checkpoint"] else None
        with SessionPool(environment, workers or max(1, default_workers() // processes_here())) as pool:
            summary, attempt = _train(
                model, renderer, environment, pool, tasks, config, out, context_length, device, checkpoint, refresh
            )
        return _summary(decide(ranks, lambda: _finish(out, summary, attempt, config.keep_checkpoints)))


def _summary(record: dict[str, Any]) -> TrainingSummary:
    earlier = Usage.from_json(record["earlier_cost"])
    used = Usage.from_json({k: v for k, v in record.items() if not k.endswith("_seconds")})
    seconds = sum(record[f"{part}_seconds"] for part in ("generate", "environment", "update", "evaluation"))
    names = ("rounds", "episodes", "zero_variance_groups", "replaced_groups", "failed_episodes", "cut_by_context")
    times = ("generate_seconds", "environment_seconds", "update_seconds")
    return TrainingSummary(
        examples=record["tasks"],
        steps=record["optimizer_steps"],
        parameters_trained=0,
        usage=used + Usage(wall_seconds=earlier.wall_seconds + seconds),
        earlier=earlier,
        evaluation_seconds=record["evaluation_seconds"],
        counts={name: record[name] for name in (*names, *times)},
        history=tuple(record["history"]),
        evaluations=tuple(record["evaluation"]),
        reused=record["reused"],
    )


def _claim(out: Path, manifest: dict[str, Any], on_existing: OnExisting) -> dict[str, Any]:
    """The checkpoint to go on from, and the summary of a training that has finished."""
    checkpoint = claim_training_folder(out, manifest, on_existing)
    finished = finished_training(out)
    if finished is not None:
        finished |= {"earlier_cost": training_cost(out), "reused": True}
    return {"checkpoint": checkpoint and str(checkpoint), "finished": finished}


def _finish(out: Path, summary: dict[str, Any], attempt: str, keep_checkpoints: bool) -> dict[str, Any]:
    summary |= {"earlier_cost": training_cost(out, without=attempt)}
    finish_training(out, summary, keep_checkpoints)
    return {**summary, "reused": False}


def _train(
    model: Any,
    renderer: Renderer,
    environment: Environment,
    pool: SessionPool,
    tasks: Sequence[Task],
    config: RlConfig,
    out: Path,
    context_length: int,
    device: str,
    checkpoint: Path | None,
    refresh: Refresh | None,
) -> tuple[dict[str, Any], str]:
    """Trains and saves; the summary, and the name of this attempt in the account of costs."""
    from transformers import PrinterCallback

    from gradprism.training.callbacks import LogCallback, ProgressCallback, log_history
    from gradprism.training.episode_trainer import EvaluationCallback

    trainer = build_trainer(model, renderer, config, out, device)
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    player = Player(trainer.model, renderer, pool, config, _generators(trainer, config, config.temperature), refuse_long=False)
    player.check_fits(tasks[:PREFLIGHT])
    asked = None if refresh is None else lambda count: _ask(refresh, trainer.model, count)
    trainer.rounds = Rounds(
        TaskStream(tasks, config.seed, rank, world),
        player.play,
        config,
        config.tasks_per_round // world,
        asked,
        trainer.summed if world > 1 else None,
    )
    trainer.statistics = player.costs
    trainer.micro_batch_tokens = config.micro_batch_tokens
    if checkpoint is not None:
        trainer.restore(checkpoint)
    log = LogCallback(out)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(log)  # first, since it begins the log that the others write to
    if config.evaluate_every:
        trainer.evaluation = _evaluation(trainer, renderer, environment, pool, config)
        trainer.add_callback(EvaluationCallback(trainer, config.evaluate_every * config.steps_per_round))
    with Progress("RL", 0) as progress:
        trainer.add_callback(ProgressCallback(progress, "reward"))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    save_trained(trainer, renderer.tokenizer, out)
    statistics = player.costs
    # Counts of all processes, and times of the first.
    read, generated, steps, trained = trainer.summed(
        [statistics.tokens_read, statistics.tokens_generated, statistics.environment_steps, trainer.tokens_trained]
    )
    summary = {
        "tasks": len(tasks),
        "rounds": config.rounds,
        "optimizer_steps": trainer.state.global_step,
        "episodes": int(trainer.played["episodes"]),
        "replaced_groups": int(trainer.played["replaced_groups"]),
        "zero_variance_groups": int(trainer.played["zero_variance_groups"]),
        "failed_episodes": int(trainer.played["failed"]),
        "cut_by_context": int(trainer.played["cut_by_context"]),
        "tokens_generated": int(generated),
        "tokens_forward": int(read + trained),
        "tokens_backward": int(trained),
        "environment_steps": int(steps),
        "generate_seconds": statistics.generate_seconds,
        "environment_seconds": statistics.environment_seconds,
        "update_seconds": trainer.update_seconds,
        "evaluation_seconds": trainer.evaluation_seconds,
        "evaluation": evaluations(trainer.state.log_history),
        "history": log_history(trainer),
    }
    return summary, log.attempt.name


def _ask(refresh: Refresh, model: Any, rounds: int) -> Sequence[Task] | None:
    """Asks with the model as it is outside of training: accelerate's bfloat16 autocast is the forward pass's, whoever calls it."""
    autocast = model.__dict__.get("forward") if "_original_forward" in model.__dict__ else None
    if autocast is not None:
        model.forward = model._original_forward
    try:
        return refresh(model, rounds)
    finally:
        if autocast is not None:
            model.forward = autocast


def evaluations(log: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Step, success and score of every evaluation in a trainer's log."""
    return [
        {"step": row["step"], "success": row["evaluation/success"], "score": row["evaluation/score"]}
        for row in log
        if "evaluation/success" in row
    ]


def _check(tasks: Sequence[Task], config: RlConfig, world: int, model: Any, renderer: Renderer, context_length: int) -> None:
    """What can be known to fail before anything is loaded or written."""
    import importlib.util

    if not tasks:
        raise ConfigError("no tasks to train on: the route sends nothing to RL; lower the threshold or use another policy")
    if config.tasks_per_round % world:
        raise ConfigError(
            f"tasks_per_round {config.tasks_per_round}: must be a multiple of the {world} processes, so that none shares a group"
        )
    if config.max_action_tokens >= context_length:
        raise ConfigError(f"max_action_tokens {config.max_action_tokens}: leaves no room in a context of {context_length}")
    if config.vllm != "off" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"vllm {config.vllm}: vLLM is not installed here; pip install vllm, or --vllm off")
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(renderer.tokenizer)
    if tokens > rows:
        raise ModelError(f"the tokenizer has {tokens} tokens and the model {rows} embeddings: it is another model's tokenizer")
    if config.prompt.history is None:
        renderer.turn_suffix_ids("")  # a template that rewrites earlier turns is refused here


def build_trainer(model: Any, renderer: Renderer, config: RlConfig, out: Path, device: str = "auto") -> Any:
    """The trainer, without its rounds."""
    import os

    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig

    from gradprism.training.adapters import peft_config
    from gradprism.training.episode_trainer import EpisodeTrainer

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # TRL's data loader says how many steps there are; which tasks are played is the rounds' affair.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    episodes = config.tasks_per_round * config.rollouts_per_task // processes  # that a process plays in a round
    dataset = Dataset.from_dict({"prompt": [""] * (config.tasks_per_round * config.updates_per_round)})
    vllm = {}
    if config.vllm != "off":
        vllm = {
            "use_vllm": True,
            "vllm_mode": config.vllm,
            "vllm_server_base_url": config.vllm_url if config.vllm == "server" else None,
            "vllm_gpu_memory_utilization": config.vllm_memory,
            "vllm_max_model_length": renderer.context_length,
            "vllm_enable_sleep_mode": False,  # it would wake and sleep at every turn
        }
    arguments = GRPOConfig(
        output_dir=str(out),
        max_steps=config.rounds * config.steps_per_round,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        per_device_train_batch_size=episodes,  # a colocated vLLM answers as many prompts at once, times the updates
        gradient_accumulation_steps=1,
        steps_per_generation=config.updates_per_round,
        num_generations=config.rollouts_per_task,
        num_iterations=config.epochs_per_round,
        max_completion_length=config.max_action_tokens if vllm else renderer.context_length,
        temperature=config.temperature,
        beta=config.kl,
        epsilon=config.clip,
        epsilon_high=config.clip_high,
        loss_type=config.loss,
        disable_dropout=True,  # episodes are played without it, and the ratio of probabilities would be noise
        router_aux_loss_coef=0.0,  # a mixture of experts keeps its router's balance by the policy's loss alone
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps",
        save_steps=config.save_every * config.steps_per_round,
        save_total_limit=save_total_limit(config.keep_checkpoints),
        use_cpu=resolve_device(device) == "cpu",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        activation_checkpointing=config.activation_checkpointing,
        **vllm,
        **tracking_arguments(config, out),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process trains on one device, however many it sees
    trainer = EpisodeTrainer(
        model=model,
        reward_funcs=_no_reward,
        args=arguments,
        train_dataset=dataset,
        processing_class=renderer.tokenizer,
        peft_config=peft_config(config, model),
    )
    trainer.max_completion_length = renderer.context_length  # what dr_grpo divides by is an episode's length, not an action's
    if str(trainer.accelerator.distributed_type.value) == "DEEPSPEED":
        raise ConfigError("DeepSpeed takes an optimizer step at every micro-batch of RL; use FSDP, or several processes without it")
    if config.vllm == "off" and str(trainer.accelerator.distributed_type.value) == "FSDP":
        raise ConfigError(
            "a sharded model cannot play: its processes would wait for each other's turns; use --vllm colocate or server"
        )
    return trainer


def _generators(trainer: Any, config: RlConfig, temperature: float) -> Any:
    """What makes the player's generators: None for the model itself, else vLLM's."""
    if config.vllm == "off":
        return None
    from gradprism.rollouts.vllm import VllmGenerator

    return lambda slots: VllmGenerator(vllm_engine(trainer, config, temperature))


def vllm_engine(trainer: Any, config: RlConfig, temperature: float) -> Any:
    """Asks the trainer's vLLM. No call waits for another process: their episodes take different numbers of turns."""
    if config.vllm == "colocate":
        generation = trainer.vllm_generation

        def ask(prompts: list[list[int]]) -> Any:
            before, generation.temperature = generation.temperature, temperature
            try:
                _, completions, logprobs, _ = generation.generate(prompts, None, 1)
            finally:
                generation.temperature = before
            return completions, logprobs

        return ask

    from trl.generation.vllm_client import VLLMClient

    client = VLLMClient(base_url=config.vllm_url)  # every process has its own; TRL's, in the first, also sends the weights

    def ask_server(prompts: list[list[int]]) -> Any:
        said = client.generate(prompts, temperature=temperature, max_tokens=config.max_action_tokens, logprobs=0)
        return said["completion_ids"], said["logprobs"]

    return ask_server


def _evaluation(
    trainer: Any, renderer: Renderer, environment: Environment, pool: SessionPool, config: RlConfig
) -> Callable[[], dict[str, float]]:
    """Plays the evaluation's tasks greedily, each process its share; success and score over all."""
    accelerator = trainer.accelerator
    split = config.evaluate_split or environment.evaluation_splits[0]
    greedy = config.model_copy(update={"temperature": 0.0})
    tasks = environment.tasks(split, config.evaluate_tasks)[accelerator.process_index :: accelerator.num_processes]

    def evaluate() -> dict[str, float]:
        player = Player(trainer.model, renderer, pool, greedy, _generators(trainer, config, 0.0), refuse_long=False)
        episodes = player.play(tasks)
        n, won, score = trainer.summed([len(episodes), sum(e.success for e in episodes), sum(e.score for e in episodes)])
        return {"success": won / n, "score": score / n}

    return evaluate


def _no_reward(**_: Any) -> list[float | None]:
    """TRL wants a reward function; rewards come with the rounds."""
    raise AssertionError("rewards are the rounds'")
