"""Episodes to numbers: success and score with 95 % intervals, by task type."""

import math
from collections.abc import Iterable, Sequence
from typing import Any


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
                    **_score([t["score"] for t in chosen]),
                    "mean_steps": steps / len(chosen),
                    "invalid_share": sum(t["invalid"] for t in chosen) / max(1, steps),
                    "failures": sum("failure" in t for t in chosen),
                }
            )
    return rows


def _score(scores: Sequence[float]) -> dict[str, float]:
    """Mean, and its 95 % interval by the normal approximation, cut to the range of scores; the whole range for one episode."""
    n = len(scores)
    mean = sum(scores) / n
    half = 1.959963984540054 * math.sqrt(sum((s - mean) ** 2 for s in scores) / (n - 1) / n) if n > 1 else 1.0
    return {"score": mean, "score_low": max(0.0, mean - half), "score_high": min(1.0, mean + half)}


def headline(rows: Iterable[dict[str, Any]]) -> str:
    """`unseen 12.5 % [6.9, 21.5] · seen …`: one line for a log."""
    return " · ".join(
        f"{row['split']} {100 * row['success']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        for row in rows
        if row["task_type"] == "all"
    )
