"""Whether held-out demonstrations can be read, and are none that arms train on; asked before anything is paid for."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from gradprism.environments.protocol import Environment
from gradprism.experiments.playable import told_task
from gradprism.experiments.stages import Collect, Files
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import sha256_json
from gradprism.trajectories.corpus import Account
from gradprism.trajectories.corpus import Corpus as Trajectories
from gradprism.trajectories.corpus_files import Record, iter_records
from gradprism.trajectories.dialect import THOUGHT
from gradprism.trajectories.record import Trajectory


def check_apart(demonstrations: Files | Collect, corpus: Files | Collect, environment: Environment) -> None:
    """Raises `DataError` for files of demonstrations that cannot be read, and `ConfigError` where they hold none, or one that the files
    of the corpus hold as well; of demonstrations that are to be collected, where a record of the corpus names one of their tasks.

    Trajectories are compared by who says and calls what, in whatever format: not by ids, weights, thoughts and names of speakers.
    """
    if isinstance(demonstrations, Files):
        own = {_content(trajectory): trajectory.source for trajectory in _quietly(demonstrations)}
        if not own:
            raise ConfigError("held_out.files: hold no trajectory; name files that do, or leave held_out out")
        of_corpus = _quietly(corpus) if isinstance(corpus, Files) else ()
        twice = ((trajectory.source, own[key]) for trajectory in of_corpus if (key := _content(trajectory)) in own)
        if found := next(twice, None):
            raise ConfigError(f"held_out.files: {found[1]} is {found[0]} of the corpus, which arms train on; leave it out of one")
        return
    if not isinstance(corpus, Files):
        return
    wanted = demonstrations.config
    ids = {task.id for task in environment.tasks(wanted.split or "", wanted.count, wanted.skip)}
    for record in _records(corpus):
        task = told_task(record.value, corpus)
        if isinstance(task, Mapping) and task.get("env", environment.name) == environment.name and task.get("id") in ids:
            raise ConfigError(
                f"held_out.collect: task {task['id']!r} is that of {record.place}, which arms train on; name another split, or skip it"
            )


def _records(files: Files) -> Iterator[Record]:
    """The records that are objects; who reads them tells of the others."""
    for path in files.paths:
        yield from (record for record in iter_records(path, keep_bad=True) if isinstance(record.value, Mapping))


def _quietly(files: Files) -> Trajectories:
    """Who reads them for good tells of what nothing uses."""
    return replace(files.read(), account=Account(said=True))


def _content(trajectory: Trajectory) -> str:
    """Of formats that tell more or less, what all of them do: who says and calls what. Successive turns of one speaker are one."""
    said = []
    for role, successive in groupby(trajectory.messages, key=attrgetter("role")):
        turns = list(successive)
        text = "".join(THOUGHT.sub("", turn.content).strip() for turn in turns)
        said.append([role, text, [[call.name, call.arguments] for turn in turns for call in turn.tool_calls]])
    return sha256_json(said)
