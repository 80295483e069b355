"""What all tests share."""

import os
from pathlib import Path

# Tests run small tensors, often beside worker processes: more threads than cores would only make them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What the probe measures of this machine is kept here between runs of the tests, apart from the user's own.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".pytest_cache" / "xdg")
