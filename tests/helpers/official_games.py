"""ALFWorld's official training games, where their archive lies beside the checkout."""

import lzma
import tarfile
from pathlib import Path

import pytest

from gradprism.runtime.files import cache_folder

ARCHIVE = Path(__file__).parents[2].parent / "shared" / "data" / "alfworld" / "json_2.1.1-train-valid_train.tar.xz"


def official_games() -> Path:
    """The folder with `json_2.1.1` in it, unpacked once; skips the test where there is none."""
    if not ARCHIVE.is_file():
        pytest.skip("the official games are not here")
    root = cache_folder() / "official"
    if not (root / "done").exists():
        with lzma.open(ARCHIVE) as file, tarfile.open(fileobj=file) as tar:
            tar.extractall(root, filter="data")
        (root / "done").touch()
    return root
