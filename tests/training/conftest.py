"""What the tests of trainings share."""

from pathlib import Path

import pytest
from transformers.utils import logging

from helpers.tiny import tiny_tokenizer
from helpers.training import make_sft_folder


@pytest.fixture(autouse=True, scope="package")
def no_bars():
    """The command line turns them off before it loads what draws them; here that is loaded already."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="package")
def sft_folder(tmp_path_factory) -> Path:
    """The models `qwen3` and `llama`, and `corpus.jsonl`."""
    return make_sft_folder(tmp_path_factory.mktemp("sft"))
