"""Measures on this machine's device, part by part: see docs/device.md.

python benchmarks/device/run.py agreement probe corpus      # these parts, one after another
python benchmarks/device/run.py probe --budget 480          # begins no case that would end after 480 seconds
python benchmarks/device/run.py --smoke                     # all parts with tiny models on a CPU
python benchmarks/device/run.py --list                      # the parts, their cases, and what is done

Each case is written when it is done, and each part's tables after it; the same command again goes on with what is pending.
Exit code 0: all was measured. 2: nothing could be done, for the reason that is said. 3: the device was lost; give the command again.
4: all was tried, and some failed. 5: some cases are pending. 1 is Python's own: an error of the kit, whose lines say where.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

BEGAN = time.monotonic()  # a budget is all of the command's time, the imports below among it

# Modules of this folder have plain names, so they are found by the package's alone.
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if path != str(HERE)), str(HERE.parents[1] / "src")]

from device.machine import this_machine  # noqa: E402
from device.results import Part, Store  # noqa: E402
from device.runner import DeviceLostError, run_part  # noqa: E402
from device.setting import BUILD, Setting  # noqa: E402
from gradprism.runtime.errors import ConfigError, GradprismError, one_line  # noqa: E402

# By worth. A part's module is imported when it is asked for: one needs pydantic, another TRL.
PARTS = ("agreement", "probe", "corpus", "training", "arms")
PENDING = 5  # not 1, with which Python ends where an error is not caught


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is running is kept, and what it has started ends with it
    try:
        return _measure(options, _setting(options))
    except DeviceLostError as error:
        print(error, file=sys.stderr)
        return 3
    except (GradprismError, OSError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command again goes on with what is pending", file=sys.stderr)
        return PENDING


def _measure(options: argparse.Namespace, setting: Setting) -> int:
    pending, failed = 0, 0
    for name in options.parts or PARTS:
        try:
            part = make_part(name, setting)
        except ImportError as error:
            print(f"{name}: {error}; docs/device.md tells what it needs", file=sys.stderr)
            failed += 1
            continue
        if options.list:
            print(_listed(part, setting.out))
            continue
        left = options.budget - (time.monotonic() - BEGAN)
        pending += len(run_part(part, setting.out, setting.machine, left, retry=options.retry))
        failed += sum(outcome.status == "failed" for outcome in _outcomes(part, setting.out))
        print((setting.out / f"{name}.md").read_text(encoding="utf-8"), flush=True)
    print(f"{time.monotonic() - BEGAN:.0f} s in all; {pending} cases pending, {failed} failed", flush=True)
    return PENDING if pending else 4 if failed else 0


def make_part(name: str, setting: Setting) -> Part:
    """A part by its name."""
    maker: Callable[[Setting], Part] = getattr(import_module(f"device.{name}"), f"{name}_part")
    part = maker(setting)
    # Tiny cases take as long as the machine is busy: none is left out for its time.
    return replace(part, cases=[replace(case, seconds=0.0) for case in part.cases]) if setting.smoke else part


def _setting(options: argparse.Namespace) -> Setting:
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() and not options.smoke else "cpu")
    if device == "cpu" and not (options.smoke or options.list):
        raise ConfigError("there is no CUDA device here; --smoke runs all parts with tiny models on a CPU")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here")
    if device == "cpu":
        torch.set_num_threads(1)  # tiny models gain nothing from more, and on a busy machine lose much
    default = BUILD / ("smoke" if options.smoke else "results")
    out = (options.out or default).resolve()
    # What the probe measures of this device is kept with the results: a home folder may not be there next time.
    os.environ.setdefault("XDG_CACHE_HOME", str(BUILD / "cache"))
    return Setting(device, this_machine(device), options.smoke, out, options.model.resolve(), options.jobs)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; default all")
    parser.add_argument("--smoke", action="store_true", help="tiny models on a CPU, to see that everything runs")
    parser.add_argument("--out", type=Path, help="folder of the results; default build/device/results, or build/device/smoke")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds of all parts together")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default cuda, and cpu with --smoke")
    parser.add_argument("--model", type=Path, default=BUILD / "smollm2-135m", help="folder of the converted SmolLM2-135M")
    parser.add_argument("--jobs", type=int, default=4, help="stages of the arms that run at once")
    parser.add_argument("--retry", action="store_true", help="measure failed cases again")
    parser.add_argument("--list", action="store_true", help="print the cases and what is known of them, and stop")
    options = parser.parse_args(arguments)
    if not options.budget > 0:
        parser.error(f"--budget {options.budget:g}: a number of seconds above 0")
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least 1")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; choose among {', '.join(PARTS)}")
    return options


def _outcomes(part: Part, out: Path):
    store = Store(out, part.name)
    return [outcome for case in part.cases if (outcome := store.read(case.name))]


def _listed(part: Part, out: Path) -> str:
    known = {outcome.case: outcome.status for outcome in _outcomes(part, out)}
    lines = [f"{case.name:28} about {case.seconds:4.0f} s   {known.get(case.name, 'pending')}" for case in part.cases]
    return "\n".join([f"{part.name}: {part.title}", *(f"  {line}" for line in lines)])


if __name__ == "__main__":
    sys.exit(main())
