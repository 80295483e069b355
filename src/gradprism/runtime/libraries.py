"""What other libraries print while they work for us."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """A block in which transformers draws no bars, and bitsandbytes, which peft loads, tells nothing of kernels that are not used.

    After it the user's own settings hold again.
    """
    from transformers.utils import logging as bars

    bitsandbytes, drawn = logging.getLogger("bitsandbytes"), bars.is_progress_bar_enabled()
    level = bitsandbytes.level
    bars.disable_progress_bar()
    bitsandbytes.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        bitsandbytes.setLevel(level)
        if drawn:
            with warnings.catch_warnings(action="ignore"):  # where the environment forbids the hub's own
                bars.enable_progress_bar()
