"""Does RL raise unseen success? Trains every seed of an algorithm from a shipped base, evaluates each, and draws the curves.

    OMP_NUM_THREADS=1 python benchmarks/learning.py alfworld --algorithm grpo gigpo --seeds 0 1 2 --out runs/learning
    OMP_NUM_THREADS=1 python benchmarks/learning.py webshop --algorithm sft --out runs/learning
    python benchmarks/learning.py --report runs/learning --results docs/training

Every training and evaluation goes on where it was cut, and none is repeated: give the same command again. All evaluations play the same
unseen tasks greedily. `--report` writes `results.json` and the pictures from whatever is in the folder.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradprism.environments.registry import make_environment
from gradprism.evaluation.agents import ModelAgent
from gradprism.evaluation.config import EvaluationConfig
from gradprism.evaluation.run import evaluate
from gradprism.evaluation.summary import wilson_interval
from gradprism.files import read_json, write_json
from gradprism.models import load_model
from gradprism.probing.fingerprint import weights_fingerprint
from gradprism.training.rl import train_rl
from gradprism.training.rl_config import RlConfig
from gradprism.training.sft import SftConfig, train_sft
from gradprism.trajectories.readers import read_trajectories
from gradprism.trajectories.rendering import Renderer, load_tokenizer

DRAWS = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Case:
    """One environment's base, tasks and settings."""

    model: str
    options: dict[str, Any]
    context: int
    max_steps: int
    max_action_tokens: int
    train_tasks: int
    split: str
    evaluated: int
    rl: dict[str, Any]
    sft: dict[str, Any]


CASES = {
    "alfworld": Case(
        model="models/alfworld-tiny",
        options={"difficulty": "tiny"},
        context=1024,
        max_steps=15,
        max_action_tokens=16,
        train_tasks=564,
        split="unseen",
        evaluated=300,
        rl={},
        sft={"epochs": 6, "learning_rate": 5e-4, "batch_size": 8, "bf16": True},
    ),
    "webshop": Case(
        model="models/webshop-tiny",
        options={},
        context=2048,
        max_steps=8,
        max_action_tokens=40,
        train_tasks=564,
        split="test",
        evaluated=300,
        rl={"reward": "score", "groups": 8, "steps": 16, "evaluate_every": 4},
        sft={"epochs": 3, "learning_rate": 5e-4, "batch_size": 8, "bf16": True},
    ),
}
# Learning rates are large because the models are tiny. Rewards are the environment's, less a little for each refused action, which gives
# groups without a success something to learn; sampled at temperature 1 these bases hardly ever succeed.
COMMON = {
    "steps": 40,
    "groups": 16,
    "rollouts": 8,
    "learning_rate": 1.5e-4,
    "temperature": 0.8,
    "invalid_penalty": 0.01,
    "loss": "grpo",
    "bf16": True,
    "evaluate_every": 5,
    "evaluate_tasks": 96,
    "save_every": 5,
}


def train(name: str, algorithm: str, seed: int, out: Path, steps: int | None) -> None:
    """One training and its evaluation, both resumable."""
    case = CASES[name]
    environment = make_environment(name, case.options)
    renderer = Renderer(load_tokenizer(case.model), case.context)
    folder = out / f"{name}-{algorithm}-{seed}"
    if algorithm == "base":
        model = load_model(case.model)
    elif algorithm == "sft":
        from gradprism.environments.demonstrations import collect
        from gradprism.trajectories.readers import write_messages_jsonl

        corpus = out / f"{name}-corpus.jsonl"
        if not corpus.exists():
            write_messages_jsonl(corpus, collect(environment, environment.tasks("train", case.train_tasks), case.max_steps))
        model = load_model(case.model)
        train_sft(model, renderer, read_trajectories([corpus]), SftConfig(**case.sft, seed=seed), folder)
        model = load_model(str(folder))
    else:
        settings = {**COMMON, **case.rl, **({"steps": steps} if steps else {})}
        config = RlConfig(
            algorithm=algorithm,  # pyright: ignore[reportArgumentType]
            max_steps=case.max_steps,
            max_action_tokens=case.max_action_tokens,
            evaluate_split=case.split,
            seed=seed,
            **settings,
        )
        tasks = environment.tasks("train", case.train_tasks)
        train_rl(load_model(case.model), renderer, environment, tasks, config, folder, context_length=case.context, workers=1)
        model = load_model(str(folder))
    summary = evaluate(
        ModelAgent(model, renderer, case.context, {"weights": weights_fingerprint(model)}),
        environment,
        EvaluationConfig(
            splits={case.split: case.evaluated}, max_steps=case.max_steps, max_action_tokens=case.max_action_tokens, in_flight=100
        ),
        out / f"{name}-{algorithm}-{seed}-evaluation",
        workers=1,
    )
    print(f"{name} {algorithm} seed {seed}: {100 * summary['rows'][0]['success']:.1f} %", flush=True)


def report(out: Path, results: Path) -> None:
    """`results.json` and one picture an environment, from the folders in `out`."""
    written: dict[str, Any] = {}
    for name in CASES:
        episodes = {
            folder.name.removesuffix("-evaluation").removeprefix(f"{name}-"): [
                json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()
            ]
            for folder in sorted(out.glob(f"{name}-*-evaluation"))
            if (folder / "summary.json").exists()
        }
        if "base-0" not in episodes:
            continue
        base = np.array([e["success"] for e in episodes["base-0"]], dtype=float)
        rows, curves = [], {}
        for algorithm in ("sft", "grpo", "gigpo"):
            seeds = sorted(int(key.rpartition("-")[2]) for key in episodes if key.rpartition("-")[0] == algorithm)
            if not seeds:
                continue
            won = np.array([[e["success"] for e in episodes[f"{algorithm}-{seed}"]] for seed in seeds], dtype=float)
            rows.append({"algorithm": algorithm, "seeds": seeds, **_compare(base, won)})
            curves[algorithm] = [
                read_json(path).get("evaluation", [])
                for s in seeds
                if (path := out / f"{name}-{algorithm}-{s}" / "summary.json").exists()
            ]
        low, high = wilson_interval(int(base.sum()), len(base))
        written[name] = {"episodes": len(base), "base": {"success": base.mean(), "low": low, "high": high}, "rows": rows}
        _draw(name, written[name], curves, results / f"{name}.svg")
    write_json(results / "results.json", written)
    print(json.dumps(written, indent=2))


def _compare(base: np.ndarray, won: np.ndarray) -> dict[str, Any]:
    """Success of each seed [seeds, tasks] and its gain over the base on the same tasks, with bootstrap intervals over tasks and seeds."""
    rng = np.random.default_rng(0)
    tasks = rng.integers(0, len(base), (DRAWS, len(base)))
    seeds = rng.integers(0, len(won), (DRAWS, len(won)))
    gain = won - base
    over_both = np.array([gain[np.ix_(s, t)].mean() for s, t in zip(seeds, tasks, strict=True)])
    each = [(row.mean(), *np.quantile(row[tasks].mean(1), [0.025, 0.975])) for row in gain]
    return {
        "success": won.mean(1).tolist(),
        "gain": gain.mean(),
        "gain_low": float(np.quantile(over_both, 0.025)),
        "gain_high": float(np.quantile(over_both, 0.975)),
        "gain_of_each_seed": [list(map(float, row)) for row in each],
    }


def _draw(name: str, found: dict[str, Any], curves: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gradprism"  # the same curves, the same bytes
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for algorithm, colour in (("grpo", "tab:blue"), ("gigpo", "tab:orange")):
        for number, curve in enumerate(curves.get(algorithm, [])):
            axes.plot(
                [row["step"] for row in curve],
                [100 * row["success"] for row in curve],
                color=colour,
                alpha=0.75,
                label={"grpo": "GRPO", "gigpo": "GiGPO"}[algorithm] if number == 0 else None,
            )
    for row in found["rows"]:
        if row["algorithm"] == "sft":
            axes.axhline(100 * float(np.mean(row["success"])), color="tab:green", linestyle=":", label="SFT, full corpus")
    axes.axhline(100 * found["base"]["success"], color="grey", linestyle="--", label="base")
    axes.set(xlabel="optimizer step", ylabel="unseen success, greedy, %", title=name, ylim=(0, None))
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", choices=sorted(CASES))
    parser.add_argument("--algorithm", nargs="+", default=["base", "grpo", "gigpo"], choices=["base", "sft", "grpo", "gigpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="RL steps, to try things out")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--report", type=Path, help="folder of finished trainings to report")
    parser.add_argument("--results", type=Path, default=Path("docs/training"))
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.report, arguments.results)
        return
    if arguments.case is None:
        sys.exit("name an environment, or --report FOLDER")
    for seed in arguments.seeds:
        for algorithm in arguments.algorithm:
            if algorithm != "base" or seed == arguments.seeds[0]:
                train(arguments.case, algorithm, seed if algorithm != "base" else 0, arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
