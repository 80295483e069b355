"""What all tests share."""

import os

# Tests run small tensors, often beside worker processes: more threads than cores would only make them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
