"""Every error that gradprism raises on purpose.

Each class derives from `GradprismError` and from the standard exception it refines, so that a caller may catch either. A message is
one line: it names the file and line or the trajectory id, says what was wrong, and what to do about it. The command line prints it
without a traceback and exits with code 2.
"""


class GradprismError(Exception):
    """Root of every deliberate error."""


class ConfigError(GradprismError, ValueError):
    """A configuration value or a command-line argument is unusable."""


class DataError(GradprismError, ValueError):
    """A corpus, a record in it, or a stored artefact is malformed."""


class MissingFileError(GradprismError, FileNotFoundError):
    """A named file or folder does not exist."""


class WriteError(GradprismError, OSError):
    """A file or folder cannot be written: a full disk, a read-only folder."""


class FolderInUseError(GradprismError, FileExistsError):
    """The output folder already holds something that this command would destroy or mix with."""


class ModelError(GradprismError, ValueError):
    """A model or tokenizer cannot be used for what was asked."""


class EnvironmentPlayError(GradprismError, RuntimeError):
    """A game, its engine or a worker process failed."""


class MissingDependencyError(GradprismError, ImportError):
    """An optional package is not installed."""


class WorkerError(GradprismError, RuntimeError):
    """A process that does part of the work, or the cluster it is to run on, failed."""


class StageError(GradprismError, RuntimeError):
    """A stage of an experiment failed."""


def one_line(error: BaseException, length: int = 300) -> str:
    """Text of another library's error, white space as single blanks, cut to `length` characters: for the middle of a message."""
    return " ".join(str(error).split())[:length]
