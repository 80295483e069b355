"""Whether held-out demonstrations can be read, and are none that arms train on; asked before anything is paid for."""

from collections.abc import Iterator, Mapping

from gradprism.environments.protocol import Environment
from gradprism.experiments.playable import told_task
from gradprism.experiments.stages import Collect, Files
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import sha256_json
from gradprism.trajectories.corpus_files import Record, iter_records


def check_apart(demonstrations: Files | Collect, corpus: Files | Collect, environment: Environment) -> None:
    """Raises `DataError` for files of demonstrations that cannot be read, and `ConfigError` where they hold none, or one that the files
    of the corpus hold as well; of demonstrations that are to be collected, where a record of the corpus names one of their tasks.

    Records are compared as they stand, but for their ids: the same trajectory in another format is not found.
    """
    if isinstance(demonstrations, Files):
        if not list(demonstrations.read()):
            raise ConfigError("held_out.files: hold no trajectory; name files that do, or leave held_out out")
        own = {_content(record): record.place for record in _records(demonstrations)}
        twice = ((record.place, own[key]) for record in _of_files(corpus) if (key := _content(record)) in own)
        if found := next(twice, None):
            raise ConfigError(f"held_out.files: {found[1]} is {found[0]} of the corpus, which arms train on; leave it out of one")
        return
    wanted = demonstrations.config
    ids = {task.id for task in environment.tasks(wanted.split or "", wanted.count, wanted.skip)}
    for record in _of_files(corpus):
        task = told_task(record.value, corpus) if isinstance(corpus, Files) else None
        if isinstance(task, Mapping) and task.get("env", environment.name) == environment.name and task.get("id") in ids:
            raise ConfigError(
                f"held_out.collect: task {task['id']!r} is that of {record.place}, which arms train on; name another split, or skip it"
            )


def _of_files(corpus: Files | Collect) -> Iterator[Record]:
    return _records(corpus) if isinstance(corpus, Files) else iter(())


def _records(files: Files) -> Iterator[Record]:
    """The records that are objects; who reads them tells of the others."""
    for path in files.paths:
        yield from (record for record in iter_records(path, keep_bad=True) if isinstance(record.value, Mapping))


def _content(record: Record) -> str:
    return sha256_json({key: value for key, value in record.value.items() if key != "id"})
