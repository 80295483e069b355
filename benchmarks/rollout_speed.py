"""Rollouts of a shipped model: episodes per second, and generation with the cache kept through the turns against encoding it all again.

    OMP_NUM_THREADS=1 python benchmarks/rollout_speed.py --env alfworld
    OMP_NUM_THREADS=1 python benchmarks/rollout_speed.py --env webshop

The other way is what TRL's own loop does at every turn: `generate` on the whole history of every episode that still plays. Both play the
same tasks in this process, in turn, `--repeats` times; ratios are within a repetition. Then a few RL rounds, for the share of each part,
and one more under the profiler, for the share of each kind of operator in this process's computing time.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from gradprism.environments.pool import SessionPool
from gradprism.environments.registry import make_environment
from gradprism.models import load_model
from gradprism.rollouts.config import RolloutConfig
from gradprism.rollouts.generator import Generated
from gradprism.rollouts.player import Player
from gradprism.runtime import progress
from gradprism.training.rl import train_rl
from gradprism.training.rl_config import RlConfig
from gradprism.trajectories.rendering import Renderer, load_tokenizer

# environment -> (model, its options, actions per episode, tokens per action, context)
CASES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "alfworld": ("models/alfworld-tiny", {"difficulty": "small"}, 20, 16, 1024),
    "webshop": ("models/webshop-tiny", {}, 8, 40, 2048),
}


# kind of operator -> how the names of those that are of it begin; all others pass over memory, element by element
OPERATORS = {"matrix products": ("aten::mm", "aten::addmm", "aten::bmm"), "attention": ("aten::_scaled_dot_product",)}


class Reencoding:
    """`Generator` that encodes every conversation from its beginning at every turn, with `generate`."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int) -> None:
        self._model, self._pad, self._end, self._max_tokens = model, tokenizer.pad_token_id, tokenizer.eos_token_id, max_tokens
        self.tokens_read = 0

    @torch.no_grad()
    def generate(
        self, slots: Sequence[int], prompts: Sequence[list[int]], streams: Sequence[np.random.Generator]
    ) -> list[Generated]:
        """See `Generator`; no log-probabilities."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        said = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=self._max_tokens,
            eos_token_id=self._end,
            pad_token_id=self._pad,
        )[:, width:].tolist()
        self.tokens_read += sum(map(len, prompts))
        answers = [row[: row.index(self._end) + 1] if self._end in row else row for row in said]
        return [Generated(ids, [0.0] * len(ids)) for ids in answers]


def operator_shares(profiled: profile) -> dict[str, float]:
    """Share of each kind in the seconds that operators computed themselves, in all threads that called any."""
    seconds = dict.fromkeys([*OPERATORS, "element by element"], 0.0)
    for event in profiled.key_averages():
        kind = next((kind for kind, names in OPERATORS.items() if event.key.startswith(names)), "element by element")
        seconds[kind] += event.self_cpu_time_total
    return {kind: each / sum(seconds.values()) for kind, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=sorted(CASES), default="alfworld")
    parser.add_argument("--model", help="default: the shipped one of the environment")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="RL rounds for the shares")
    parser.add_argument("--workers", type=int, help="environment processes; default one per core")
    arguments = parser.parse_args()
    progress.set_quiet(True)
    shipped, options, max_steps, max_tokens, context = CASES[arguments.env]
    name = arguments.model or shipped
    environment, model = make_environment(arguments.env, **options), load_model(name)
    tokenizer = load_tokenizer(name)
    renderer = Renderer(tokenizer, context)
    tasks = environment.tasks("train", arguments.tasks)
    config = RolloutConfig(max_steps=max_steps, max_action_tokens=max_tokens, context_length=context)

    def play(kept: bool, pool: SessionPool, seed: int) -> dict[str, float]:
        make = None if kept else lambda slots: Reencoding(model, tokenizer, max_tokens)
        player = Player(model, renderer, pool, config, make, cohorts=2 if kept else 1)
        torch.manual_seed(seed)
        clock = time.perf_counter()
        episodes = player.play([task for task in tasks for _ in range(8)], seed)
        seconds = time.perf_counter() - clock
        return {
            "episodes_per_second": len(episodes) / seconds,
            "generate_seconds": player.generate_seconds,
            "waited_seconds": player.environment_seconds,
            "generated_per_second": player.used.tokens_generated / player.generate_seconds,
            "steps": player.used.environment_steps,
        }

    with SessionPool(environment, arguments.workers) as pool:
        play(True, pool, 0)  # games are generated and caches filled
        pairs = [(play(True, pool, seed), play(False, pool, seed)) for seed in range(arguments.repeats)]
    with tempfile.TemporaryDirectory() as folder:
        rl = RlConfig(
            rounds=arguments.rounds,
            tasks_per_round=arguments.tasks,
            learning_rate=1e-5,
            max_steps=max_steps,
            max_action_tokens=max_tokens,
            invalid_penalty=0.01,
            context_length=context,
        )
        summary = train_rl(model, tokenizer, environment, tasks, rl, out=Path(folder) / "rl", workers=arguments.workers)
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
            one = rl.model_copy(update={"rounds": 1})
            train_rl(model, tokenizer, environment, tasks, one, out=Path(folder) / "profiled", workers=arguments.workers)
    parts = {part: summary.counts[f"{part}_seconds"] for part in ("generate", "environment", "update")}
    kept, again = ([pair[i] for pair in pairs] for i in (0, 1))
    print(
        json.dumps(
            {
                "environment": arguments.env,
                "threads": torch.get_num_threads(),
                "kept": {key: statistics.median(row[key] for row in kept) for key in kept[0]},
                "encoded_again": {key: statistics.median(row[key] for row in again) for key in again[0]},
                "generation_ratio": [a["generated_per_second"] / b["generated_per_second"] for a, b in pairs],
                "episodes_ratio": [a["episodes_per_second"] / b["episodes_per_second"] for a, b in pairs],
                "rl_shares": {part: seconds / sum(parts.values()) for part, seconds in parts.items()},
                "operator_shares": operator_shares(profiled),
                "rl_seconds_per_round": sum(parts.values()) / arguments.rounds,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
