"""ALFWorld's engine beside the plain library on the same games and the same actions, in alternating runs, on one core.

    OMP_NUM_THREADS=1 python benchmarks/alfworld_speed.py --data-dir $ALFWORLD_DATA --games 12

Without --data-dir generated full-size rooms are played. `first` is the first load ever (an empty cache folder), `cached` one from the
cache folder in a fresh process, `again` a reset of a game that was just played. Actions are the expert's. `sessions` counts the memory of
64 sessions in one worker process. Prints JSON: medians and 95th percentiles in milliseconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

GRADPRISM, PLAIN = "gradprism", "plain library"


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds."""
    ordered = sorted(seconds)
    return {"median": round(1e3 * statistics.median(ordered), 1), "p95": round(1e3 * ordered[int(0.95 * (len(ordered) - 1))], 1)}


def environment(data_dir: str) -> Any:
    """The environment to take games from."""
    from gradprism.environments.alfworld.environment import AlfworldEnvironment

    return AlfworldEnvironment(difficulty="full", data_dir=data_dir)


def choose(data_dir: str, count: int) -> list[str]:
    """Games from all over the training split, task types in turn."""
    tasks = environment(data_dir).tasks("train", None if data_dir else count)
    return [task.id for task in tasks[:: max(1, len(tasks) // count)][:count]]


def play(data_dir: str, names: list[str]) -> dict[str, Any]:
    """Each game with the cached engine: load, reset and steps in seconds, and the actions."""
    env = environment(data_dir)
    session = env.session()
    loads, agains, steps, actions = [], [], [], {}
    for name in names:
        clock = time.perf_counter()
        step = session.reset(name)
        loads.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        step = session.reset(name)
        agains.append(time.perf_counter() - clock)
        expert, played = env.expert(), []
        while not step.done and len(played) < 50:
            played.append(expert.act(step))
            clock = time.perf_counter()
            step = session.step(played[-1])
            steps.append(time.perf_counter() - clock)
        actions[name] = played
    return {"loads": loads, "agains": agains, "steps": steps, "actions": actions}


def play_plain(data_dir: str, actions: dict[str, list[str]]) -> dict[str, Any]:
    """The same actions in the library as it comes."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
    from textworld.envs.pddl import PddlEnv

    from gradprism.environments.alfworld.generator import generate
    from gradprism.environments.alfworld.official import games_folder, load_official

    with open(ALFRED_PDDL_PATH) as domain_file, open(ALFRED_TWL2_PATH) as grammar_file:
        domain, grammar = domain_file.read(), grammar_file.read()
    engine = AlfredDemangler(PddlEnv(textworld.EnvInfos(admissible_commands=True)))
    loads, agains, steps = [], [], []
    for name, played in actions.items():
        game = load_official(games_folder(data_dir), name) if data_dir else generate(name)
        data = {"pddl_domain": domain, "grammar": grammar.replace("UNKNOWN GOAL", game.goal), "pddl_problem": game.pddl_problem}
        clock = time.perf_counter()
        engine.load(data)
        state: Any = engine.reset()
        loads.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        state = engine.reset()
        agains.append(time.perf_counter() - clock)
        for action in played:
            clock = time.perf_counter()
            state, _, _ = engine.step(action)
            steps.append(time.perf_counter() - clock)
        if not state["won"]:
            raise SystemExit(f"{name}: the plain library does not agree that the game is won")
    return {"loads": loads, "agains": agains, "steps": steps}


def memory(data_dir: str, names: list[str]) -> float:
    """MiB of resident memory of one process with 64 sessions, each in a game."""
    import psutil

    env = environment(data_dir)
    sessions = [env.session() for _ in range(64)]
    for index, session in enumerate(sessions):
        session.reset(names[index % len(names)])
    return psutil.Process().memory_info().rss / 2**20


def child(work: str, argument: Any, cache: str) -> Any:
    """Runs a part of this script in a process of its own."""
    command = [sys.executable, __file__, "--work", work]
    done = subprocess.run(
        command, input=json.dumps(argument), capture_output=True, text=True, env={**os.environ, "XDG_CACHE_HOME": cache}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Alternates the two, `repeats` times, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--games", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work = {"play": play, "plain": play_plain, "memory": memory}[arguments.work]
        print(json.dumps(work(*json.load(sys.stdin))))
        return
    names = choose(arguments.data_dir, arguments.games)
    times: dict[str, dict[str, list[float]]] = {GRADPRISM: {}, PLAIN: {}}

    def add(way: str, **measured: list[float]) -> None:
        for what, seconds in measured.items():
            times[way].setdefault(what, []).extend(seconds)

    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as cache:
            first = child("play", [arguments.data_dir, names], cache)
            add(GRADPRISM, first=first["loads"], again=first["agains"], step=first["steps"])
            add(GRADPRISM, cached=child("play", [arguments.data_dir, names], cache)["loads"])
            plain = child("plain", [arguments.data_dir, first["actions"]], cache)
            add(PLAIN, first=plain["loads"], again=plain["agains"], step=plain["steps"])
            rss = child("memory", [arguments.data_dir, names], cache)
    table = {way: {what: percentiles(seconds) for what, seconds in rows.items()} for way, rows in times.items()}
    counts = {"games": len(names), "repeats": arguments.repeats, "steps": len(times[GRADPRISM]["step"])}
    print(json.dumps({"milliseconds": table, "sessions_64_mib": round(rss), **counts}, indent=2))


if __name__ == "__main__":
    main()
