"""Tries recipes of RL and tells how each does on the environment's dev split.

    OMP_NUM_THREADS=1 python scripts/rl_search.py configs/search/alfworld-tiny.toml --out build/search [--only NAME --only NAME]

Each recipe is a training in `OUT/NAME`, which goes on where it was after a kill. `OUT/table.md` has a row per recipe that has begun: its
settings where they differ from the common ones, greedy success on the dev split by round, the best and the last evaluation, sampled success
beside them, minutes and alarms; `--table` makes it from what the folders hold. `--starts` makes every checkpoint to begin from and plays
the dev split with it, so that a length of SFT can be chosen. No split that results are reported on is ever played.
"""

import argparse
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradprism as gp
from gradprism.training.doctor import Doctor
from gradprism.training.folder import finished_training, read_log


def start_model(name: str, search: Mapping[str, Any], environment: Any, out: Path) -> str:
    """The folder of a checkpoint to begin from: the base, or an SFT of the base on the expert's trajectories of the first `tasks` tasks."""
    base = str(gp.shipped(search["model"]))
    if name == "base":
        return base
    folder = out / name
    if finished_training(folder) is None:
        settings = dict(search["starts"][name])
        count = settings.pop("tasks", search["tasks"])
        expert = gp.collect(environment, split="train", count=count, max_steps=search["rl"]["max_steps"])
        config = gp.SftConfig.model_validate(settings)
        gp.train_sft(base, None, expert, config, out=folder, context_length=search["rl"]["context_length"])
    return str(folder)


def starts_table(search: Mapping[str, Any], environment: Any, out: Path) -> str:
    """A row per checkpoint to begin from, each played greedily and at temperature 1 on the dev split."""
    shared = {key: search["rl"][key] for key in ("max_steps", "context_length", "max_action_tokens") if key in search["rl"]}
    lines = ["| start | settings | dev success, greedy (%) | at temperature 1 (%) | dev score, greedy |", "|---|---|---|---|---|"]
    for name in ("base", *search["starts"]):
        model = start_model(name, search, environment, out)
        told = []
        for temperature in (0.0, 1.0):
            config = gp.EvaluationConfig(
                splits={environment.dev_split: search["rl"]["evaluate_tasks"]}, temperature=temperature, **shared
            )
            played = gp.evaluate(model, environment, config, out=out / f"{name}-dev-{temperature:g}", workers=search.get("workers"))
            told.append(played.episodes)
        success = [100 * sum(episode.success for episode in episodes) / len(episodes) for episodes in told]
        score = sum(episode.score for episode in told[0]) / len(told[0])
        settings = ", ".join(f"{key} {value}" for key, value in search["starts"].get(name, {}).items())
        lines.append(f"| {name} | {settings} | {success[0]:.1f} | {success[1]:.1f} | {score:.3f} |")
    return "\n".join(lines) + "\n"


def table(search: Mapping[str, Any], out: Path) -> str:
    """A row per recipe that has begun."""
    lines = [
        "| recipe | from | settings | dev success, greedy, by round (%) | best | last | last, sampled | minutes | alarms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, recipe in search["recipes"].items():
        folder = out / name
        log = read_log(folder) if (folder / "log.jsonl").is_file() else []
        rows = [row for row in log if "evaluation/success" in row]
        if not rows:
            continue
        steps = recipe.get("updates_per_round", search["rl"].get("updates_per_round", 1))
        curve = [(int(row["step"] // steps), 100 * row["evaluation/success"]) for row in rows]
        settings = ", ".join(f"{key} {value}" for key, value in recipe.items() if key != "from")
        sampled = 100 * rows[-1].get("evaluation/sampled_success", float("nan"))
        done = finished_training(folder)
        minutes = f"{done.usage.wall_seconds / 60:.0f}" if done else "under way"
        alarms = "; ".join(alarm.name for alarm in Doctor.of(log).alarms())
        by_round = ", ".join(f"{n}: {value:.1f}" for n, value in curve)
        best = max(value for _, value in curve)
        cells = (name, recipe["from"], settings, by_round, f"{best:.1f}", f"{curve[-1][1]:.1f}", f"{sampled:.1f}", minutes, alarms)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path, help="TOML: environment, model, tasks, starts, rl, recipes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a recipe; may be repeated")
    parser.add_argument("--table", action="store_true", help="make the table and train nothing")
    parser.add_argument("--starts", action="store_true", help="make the checkpoints to begin from, and their table, alone")
    options = parser.parse_args()
    search = tomllib.loads(options.search.read_text(encoding="utf-8"))
    unknown = set(options.only or ()) - search["recipes"].keys()
    if unknown:
        parser.error(f"--only {sorted(unknown)}: choose of {sorted(search['recipes'])}")
    environment = gp.make_environment(search["environment"], **search.get("options", {}))
    options.out.mkdir(parents=True, exist_ok=True)
    if options.starts:
        (options.out / "starts.md").write_text(starts_table(search, environment, options.out), encoding="utf-8")
        return
    for name in () if options.table else options.only or search["recipes"]:
        recipe = search["recipes"][name]
        model = start_model(recipe["from"], search, environment, options.out)
        settings = {key: value for key, value in recipe.items() if key not in ("from", "tasks")}
        config = gp.RlConfig.model_validate({**search["rl"], **settings})
        tasks = environment.tasks("train", recipe.get("tasks", search["tasks"]))
        gp.train_rl(model, None, environment, tasks, config, out=options.out / name, workers=search.get("workers"))
        (options.out / "table.md").write_text(table(search, options.out), encoding="utf-8")
    (options.out / "table.md").write_text(table(search, options.out), encoding="utf-8")


if __name__ == "__main__":
    main()
