"""What the server of a schedule's workers imports before it forks them: libraries that take seconds, start no thread, and are what every
stage with a model needs. To import this module is to import them: nothing but the server does, which it names.

They are imported without a word; what cannot be imported is told by the worker that needs it.
"""

import os
from contextlib import redirect_stderr, redirect_stdout, suppress

with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), suppress(Exception, SystemExit):
    import torch  # noqa: F401 # pyright: ignore[reportUnusedImport]
    import transformers.modeling_utils  # noqa: F401 # pyright: ignore[reportUnusedImport]
