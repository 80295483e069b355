"""WebShop: load, search and step, on the official files or on generated catalogues.

    OMP_NUM_THREADS=1 python benchmarks/webshop_speed.py --data-dir FOLDER
    OMP_NUM_THREADS=1 python benchmarks/webshop_speed.py --products 100000

Queries are 500 goals' instructions (the expert's own searches); steps are those of a random agent with seed 0 on as many goals, searches
included. Prints JSON: seconds to load, medians and 99th percentiles in milliseconds.
"""

import argparse
import json
import time

from gradprism.environments.webshop.environment import WebshopEnvironment
from gradprism.evaluation.agents import RandomPolicy


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    ordered = sorted(seconds)
    return {name: round(1e3 * ordered[int(share * (len(ordered) - 1))], 3) for name, share in (("median", 0.5), ("p99", 0.99))}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--products", type=int, default=1000)
    parser.add_argument("--goals", type=int, default=500)
    arguments = parser.parse_args()
    environment = WebshopEnvironment(data_dir=arguments.data_dir, products=arguments.products)
    clock = time.perf_counter()
    store = environment.store
    load = time.perf_counter() - clock
    searches, steps = [], []
    session = environment.session()
    for task in environment.tasks("train", min(arguments.goals, environment.size("train"))):
        step, policy = session.reset(task.id), RandomPolicy(f"0/{task.id}")
        query = store.goals[store.number(task.id)].text
        clock = time.perf_counter()
        store.shop.search(query)
        searches.append(time.perf_counter() - clock)
        for _ in range(15):
            action = policy.act(step)
            clock = time.perf_counter()
            step = session.step(action)
            steps.append(time.perf_counter() - clock)
            if step.done:
                break
    counts = {"catalogue": store.id, "products": len(store.shop.by_asin), "goals": len(store.goals), "steps": len(steps)}
    print(json.dumps({**counts, "load_seconds": round(load, 2), "search": quantiles(searches), "step": quantiles(steps)}, indent=2))


if __name__ == "__main__":
    main()
