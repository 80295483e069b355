"""Episodes to numbers: success and score with 95 % intervals, by task type."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment
from gradprism.files import write_json, write_jsonl
from gradprism.progress import Progress
from gradprism.rollouts.episodes import Episode, PlayConfig, Player
from gradprism.trajectories.rendering import Renderer


class EvaluationConfig(BaseModel):
    """Settings of an evaluation: which tasks, and how they are played."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    splits: dict[str, PositiveInt] = Field(
        default={"unseen": 96, "seen": 96}, min_length=1, description="Tasks of each split, task types in turn."
    )
    start: int = Field(default=0, ge=0, description="Index of the first task of each type.")
    max_steps: int = Field(default=20, ge=1, description="Actions an episode.")
    max_action_tokens: int = Field(default=16, ge=1, description="Tokens an action.")
    temperature: float = Field(default=0.0, ge=0, description="Sampling temperature; 0 is greedy.")
    in_flight: int = Field(default=64, ge=1, description="Episodes played at once.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of sampling.")


def wilson_interval(successes: int, episodes: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson 1927), as fractions; (0, 1) for no episodes."""
    if episodes == 0:
        return 0.0, 1.0
    p, z2 = successes / episodes, z * z
    centre = (p + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = z / (1 + z2 / episodes) * math.sqrt(p * (1 - p) / episodes + z2 / (4 * episodes * episodes))
    # At 0 and at all successes an end of the interval is the proportion itself, up to rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == episodes else centre + half)


def summarise(transcripts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a split and task type, and one with task type `all`, in order of first appearance."""
    rows = []
    for split in dict.fromkeys(t["split"] for t in transcripts):
        of_split = [t for t in transcripts if t["split"] == split]
        for task_type in ["all", *sorted({t["task_type"] for t in of_split})]:
            chosen = [t for t in of_split if task_type in ("all", t["task_type"])]
            successes, steps = sum(t["success"] for t in chosen), sum(t["steps"] for t in chosen)
            low, high = wilson_interval(successes, len(chosen))
            rows.append(
                {
                    "split": split,
                    "task_type": task_type,
                    "episodes": len(chosen),
                    "successes": successes,
                    "success": successes / len(chosen),
                    "low": low,
                    "high": high,
                    "score": sum(t["score"] for t in chosen) / len(chosen),
                    "mean_steps": steps / len(chosen),
                    "invalid_share": sum(t["invalid"] for t in chosen) / max(1, steps),
                }
            )
    return rows


def evaluate(
    model: Any,
    renderer: Renderer,
    environment: Environment,
    config: EvaluationConfig,
    out: Path,
    *,
    context_length: int,
    workers: int | None = None,
) -> dict[str, Any]:
    """Plays every task of `config` and writes `episodes.jsonl` (transcripts, in task order) and `summary.json` into `out`.

    Returns the summary: `rows` as `summarise` gives them, and what it cost.
    """
    tasks = [task for split, count in config.splits.items() for task in environment.tasks(split, count, config.start)]
    play = PlayConfig(
        max_steps=config.max_steps,
        max_action_tokens=config.max_action_tokens,
        temperature=config.temperature,
        context_length=context_length,
        in_flight=config.in_flight,
    )
    won = 0
    with SessionPool(environment, workers) as pool, Progress("episodes", len(tasks)) as progress:
        player = Player(model, renderer, pool, play)

        def on_done(episode: Episode) -> None:
            nonlocal won
            won += episode.success
            progress.advance(1, f"{won} won")

        episodes = player.play(tasks, config.seed, on_done)
    transcripts = [episode.transcript() for episode in episodes]
    write_jsonl(out / "episodes.jsonl", transcripts)
    statistics = player.statistics
    summary = {
        "rows": summarise(transcripts),
        "episodes": len(episodes),
        "tokens_forward": statistics.tokens_read,
        "tokens_generated": statistics.tokens_generated,
        "environment_steps": statistics.environment_steps,
        "generate_seconds": statistics.generate_seconds,
        "environment_seconds": statistics.environment_seconds,
    }
    write_json(out / "summary.json", summary)
    return summary


def headline(rows: Iterable[dict[str, Any]]) -> str:
    """`unseen 12.5 % [6.9, 21.5] · seen …`: one line for a log."""
    return " · ".join(
        f"{row['split']} {100 * row['success']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        for row in rows
        if row["task_type"] == "all"
    )
