"""How fast the studio is with 100,000 trajectories of 252 matrices: makes such a probe folder, serves it, and asks a browser.

    python benchmarks/studio.py --out /tmp/studio [--trajectories 100000] [--layers 36] [--export PROBE --model MODEL]

Prints a line of JSON: seconds to the first picture and until all columns are there; milliseconds per move of the slider and per filter
until the next frame is drawn, and (`_cpu_ms`) of all processes of the browser, which other work on the machine does not lengthen; and the
server's peak memory. The folder is made once, and used again. With `--export` it is the size of that probe's pages as one file, and the
seconds until they show the corpus.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from playwright.sync_api import Page, sync_playwright

import gradprism as gp
from gradprism.probing.folder import WHOLE, ProbeFolder, ProbeRow
from gradprism.probing.manifest import ProbeManifest, Totals
from gradprism.runtime.files import sha256_file, write_json

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
TYPES = ("pick_and_place", "look_at_obj", "clean", "heat", "cool", "pick_two", "search", "buy")
SHARD = 2000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def make_probe(folder: Path, n: int, layers: int) -> None:
    """Writes a probe folder of `n` made-up trajectories; nothing where it is there."""
    if (folder / "manifest.json").is_file():
        return
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    turns = random.integers(3, 12, n)
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
        for i in range(n):
            kind = TYPES[i % len(TYPES)]
            messages = [{"role": "user", "content": f"You are in the middle of a room. Your task is to {kind} object {i}."}]
            for turn in range(turns[i]):
                messages += [
                    {"role": "assistant", "content": f"go to shelf {turn}"},
                    {"role": "user", "content": f"On it is a cup {i % 97}."},
                ]
            task = {"env": "made-up", "id": f"made/{kind}/{i}", "task_type": kind}
            file.write(json.dumps({"id": f"made/{kind}/{i}", "messages": messages[:-1], "task": task}) + "\n")
    units = tuple(f"layers.{layer}.{matrix}_proj" for layer in range(layers) for matrix in MATRICES)
    manifest = ProbeManifest(
        units=units,
        n_parameters=(1 << 20,) * len(units),
        weight_norms=(10.0,) * len(units),
        model="made-up",
        dtype="float32",
        context_length=4096,
        n_trajectories=n,
        corpus_sha256=sha256_file(folder / "corpus.jsonl"),
        totals=Totals(tokens=int(turns.sum()) * 40, response_tokens=int(turns.sum()) * 8, turns=int(turns.sum())),
    )
    write_json(folder / "manifest.json", manifest.to_json())
    probe = ProbeFolder(folder)
    base = np.exp(random.normal(0, 0.6, len(units)))
    for start in range(0, n, SHARD):
        rows = range(start, min(n, start + SHARD))
        norms = base * np.exp(random.normal(0, 0.3 + 0.1 * random.random((len(rows), 1)), (len(rows), len(units))))
        probe.append([_row(i, int(turns[i]), norm.astype(np.float32), random) for i, norm in zip(rows, norms, strict=True)])


def _row(i: int, turns: int, norms: np.ndarray, random: np.random.Generator) -> ProbeRow:
    loss = float(np.exp(random.normal(-1, 0.5)))
    kind, l2 = TYPES[i % len(TYPES)], float(np.linalg.norm(norms))
    return ProbeRow(
        i, f"made/{kind}/{i}", WHOLE, n_tokens=40 * turns, n_response_tokens=8 * turns, n_turns=turns, loss=loss, l2=l2, norms=norms
    )


@contextmanager
def opened() -> Iterator[Page]:
    """A page of a browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser.new_page(viewport={"width": 1440, "height": 1000})
        browser.close()


def measure(address: str) -> dict[str, float]:
    """Seconds and milliseconds that a browser takes with the one corpus at `address`."""
    with opened() as page:
        page.goto(address)
        page.locator(".folders tbody a").first.wait_for()
        corpus = page.locator(".folders .pages a").first.get_attribute("href")
        found = {}
        for name in ("first_picture_cold_s", "first_picture_s"):  # the server scores the norms once
            page.goto("about:blank")
            began = time.perf_counter()
            page.goto(f"{address.split('?')[0]}{corpus}")
            page.locator(".sides td.n").first.wait_for()
            page.evaluate(_FRAME)
            found[name] = time.perf_counter() - began
        page.locator(".grid-head", has_text="kurtosis").wait_for(timeout=120_000)
        page.locator(".grid-head", has_text="beginning").wait_for(timeout=120_000)
        found["all_columns_s"] = time.perf_counter() - began
        page.wait_for_timeout(1000)
        for name, act in (("slider", _moves), ("filter", _filters)):
            with _processors() as seconds:
                times = list(act(page))
            found |= {f"{name}_ms": max(times), f"{name}_median_ms": float(np.median(times))}
            found[f"{name}_cpu_ms"] = 1000 * seconds[0] / len(times)
        page.locator(".scatter select").nth(1).select_option("l2")
        page.evaluate(_FRAME)
        found["sort_ms"] = _timed(
            page, "() => document.querySelector('.grid-head [role=columnheader]:nth-child(3) button').click()"
        )
    return {name: round(value, 3 if name.endswith("_s") else 1) for name, value in found.items()}


@contextmanager
def _processors() -> Iterator[list[float]]:
    """Gives the seconds that the browser's processes work within, all together."""

    def worked() -> float:
        children = psutil.Process().children(recursive=True)
        times = [child.cpu_times() for child in children if "chrom" in child.name()]
        return sum(time.user + time.system for time in times)

    seconds, before = [0.0], worked()
    yield seconds
    seconds[0] = worked() - before


def measure_export(probe: Path, models: list[str], out: Path) -> dict[str, float]:
    """Megabytes of a probe's pages as one file, and seconds until a browser shows them."""
    made = gp.export_studio(probe, out, models=models)
    with opened() as page:
        began = time.perf_counter()
        page.goto(made.absolute().as_uri())
        page.locator(".sides td.n").first.wait_for()
        page.evaluate(_FRAME)
        seconds = time.perf_counter() - began
    return {
        "trajectories": len(gp.Probe.load(probe)),
        "export_mb": round(made.stat().st_size / 1e6, 1),
        "opens_s": round(seconds, 2),
    }


# Until the next frame has been drawn.
_FRAME = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))"


def _timed(page: Page, action: str) -> float:
    """Milliseconds from `action`, a JavaScript function, until what it changed is drawn."""
    wait = f"await ({_FRAME})()"
    return page.evaluate(
        f"async () => {{ const began = performance.now(); ({action})(); {wait}; return performance.now() - began; }}"
    )


def _moves(page: Page) -> Iterator[float]:
    for share in np.linspace(0.3, 0.7, 15):
        action = f"""() => {{
          const slider = document.querySelector('.cut-row input[type=range]');
          slider.value = Number(slider.min) + {share} * (slider.max - slider.min);
          slider.dispatchEvent(new Event('input', {{bubbles: true}}));
        }}"""
        yield _timed(page, action)
        page.wait_for_timeout(30)


def _filters(page: Page) -> Iterator[float]:
    for k in (0, 0, 1, 2):
        yield _timed(page, f"() => document.querySelectorAll('.strata-table tbody button')[{k}].click()")
        page.wait_for_timeout(50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trajectories", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--model", action="append", default=[])
    given = parser.parse_args()
    if given.export:
        given.out.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure_export(given.export, given.model, given.out / "export.html")))
        return
    folder = given.out / f"probe-{given.trajectories}x{7 * given.layers}"
    make_probe(folder, given.trajectories, given.layers)
    command = [sys.executable, "-m", "gradprism", "studio", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            address = next(line.strip() for line in server.stdout if line.startswith("http"))
            found = measure(address)
            status = Path(f"/proc/{server.pid}/status").read_text()
            found["server_peak_mib"] = round(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        finally:
            server.terminate()
    print(json.dumps({"trajectories": given.trajectories, "matrices": 7 * given.layers, **found}))


if __name__ == "__main__":
    main()
