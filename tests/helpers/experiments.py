"""A synthetic experiment, as its `results.json` would have it, and the rows of Markdown tables."""

from typing import Any

import numpy as np

from gradprism.experiments.comparison import Comparison
from gradprism.experiments.results import check_results
from gradprism.reporting.document import Table, markdown
from gradprism.reporting.tables import SHORT_NAMES

TYPES = list(SHORT_NAMES)
# Arm: title, group, true success, the trained stages and the minutes that each takes.
ARMS: dict[str, tuple[str, str, float, dict[str, float]]] = {
    "base": ("Base", "table1", 0.10, {}),
    "sft": ("SFT, all", "table1", 0.25, {"sft": 14}),
    "grpo": ("GRPO, all", "table1", 0.40, {"rl": 120}),
    "random": ("Random 50:50", "table1", 0.38, {"route": 0.1, "sft": 7, "rl": 60}),
    "sft-then-rl": ("SFT then RL, 100:100", "table1", 0.42, {"sft": 14, "rl": 120}),
    "gini": ("PRISM, Gini 50:50", "table1", 0.56, {"probe": 0.5, "route": 0.1, "sft": 7, "rl": 58}),
    "inverse": ("Inverse routing", "controls", 0.30, {"probe": 0.5, "route": 0.1, "sft": 7, "rl": 62}),
    "gini-30": ("PRISM, Gini 70:30", "sweep", 0.36, {"probe": 0.5, "route": 0.1, "sft": 10, "rl": 40}),
}


def synthetic(seeds: int = 3) -> dict[str, Any]:
    """Successes drawn around each arm's, on tasks that are easy or hard for all; costs that grow with the seed."""
    rng = np.random.default_rng(0)
    tasks = {
        split: [{"id": f"{split}-{i}", "task_type": TYPES[i % 6]} for i in range(n)] for split, n in (("unseen", 60), ("seen", 30))
    }
    ease = {split: rng.normal(0, 0.15, len(rows)) for split, rows in tasks.items()}
    stages: dict[str, Any] = {}
    arms = []
    for name, (title, group, success, minutes) in ARMS.items():
        runs = []
        for seed in range(seeds if minutes else 1):
            won = {split: (rng.random(len(e)) < success + e).astype(int) for split, e in ease.items()}
            of_run = []
            for kind, length in minutes.items():
                key = f"{kind}-{name}-{seed}"
                tokens = int(length * 1e6)
                stages[key] = {
                    "kind": kind,
                    "wall_seconds": 60 * length * (1 + 0.05 * seed) + 30,
                    "cpu_seconds": 110 * length,
                    "peak_memory_mib": 900 + 100 * length,
                    "tokens_forward": tokens,
                    "tokens_backward": tokens // 2 if kind != "route" else 0,
                    "tokens_generated": tokens // 10 if kind == "rl" else 0,
                    "environment_steps": tokens // 100 if kind == "rl" else 0,
                    "flops": 4.0e6 * tokens,
                    "evaluation_seconds": 30,
                }
                of_run.append(key)
            levels = [("base", 0.0, 0.1)]
            for kind in [k for k in ("sft", "rl") if k in minutes]:
                start = levels[-1][2]
                end = success if kind == "rl" or "rl" not in minutes else 0.22
                levels += [(kind, f, start + (end - start) * f + rng.normal(0, 0.01)) for f in (0.25, 0.5, 0.75, 1.0)]
            runs.append(
                {
                    "seed": seed,
                    "success": {split: "".join(map(str, w)) for split, w in won.items()},
                    "score": {split: w.astype(float).tolist() for split, w in won.items()},
                    "n_sft": 300 if "sft" in minutes else 0,
                    "n_rl": 300 if "rl" in minutes else 0,
                    "stages": of_run,
                    "curve": [{"stage": s, "fraction": f, "success": float(y), "tasks": 48} for s, f, y in levels],
                }
            )
        arms.append({"name": name, "title": title, "group": group, "runs": runs})
    return {
        "name": "alfworld-mini",
        "environment": "alfworld",
        "created": "2026-01-01T00:00:00+00:00",
        "machines": [{"cpu": "Xeon", "cores": 2, "memory_gib": 24, "versions": {"gradprism": "0.1.0"}}],
        "model": {"id": "models/alfworld-tiny", "parameters": 2500000},
        "trajectories": 600,
        "tasks": tasks,
        "seeds": list(range(seeds)),
        "reference_arms": ["random", "sft-then-rl"],
        "full_rl_arm": "grpo",
        "base_arm": "base",
        "sft_arm": "sft",
        "regime": {"base_low": 0.05, "base_high": 0.20, "ceiling": 0.95},
        "claims": [
            {"text": "Gini beats a random split", "better": "gini", "worse": "random"},
            {"text": "Inverse routing is worse than random", "better": "random", "worse": "inverse"},
            {"text": "SFT alone beats RL alone", "better": "sft", "worse": "grpo"},
            {"text": "Gini beats CV", "better": "gini", "worse": "cv"},
        ],
        "sweeps": [{"title": "RL share, Gini", "arms": {"0.3": "gini-30", "0.5": "gini", "0.7": "gini-70"}}],
        "arms": arms,
        "stages": stages,
        "audits": {
            "gini": {
                "spearman": {"loss": -0.16, "n_response_tokens": None},
                "eta_squared": 0.31,
                "agreement": {"loss": {"same_side": 0.55, "jaccard": 0.38}},
                "threshold_standard_error": 0.0041,
                "share_within_one_standard_error": 0.035,
                "stability": {"another context length": {"jaccard": 0.9, "same_side": 0.95, "spearman": 0.99}},
                "warnings": ["the score follows | loss"],
            },
            "cv": {"spearman": {"loss": -0.2}},
            "kurtosis": {},
        },
    }


def comparison(results: dict[str, Any] | None = None) -> Comparison:
    return Comparison(check_results(synthetic() if results is None else results))


def cells(table: Table | str | None) -> list[list[str]]:
    text = table if isinstance(table, str) else markdown([table] if table else [])
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]


def row_of(table: Table | str | None, name: str) -> dict[str, str]:
    headings, _, *rows = cells(table)
    [row] = [row for row in rows if row[0] == name]
    return dict(zip(headings, row, strict=True))
