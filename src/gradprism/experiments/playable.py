"""Whether RL can play a corpus, asked before anything is paid for."""

import json
from collections.abc import Mapping
from contextlib import suppress

from gradprism.environments.protocol import Environment
from gradprism.experiments.stages import Files, OwnFiles
from gradprism.runtime.errors import DataError
from gradprism.runtime.progress import quiet
from gradprism.trajectories.corpus_files import Record, iter_records
from gradprism.trajectories.mapping import value_at


def check_tasks(corpus: Files, environment: Environment) -> None:
    """Asks the environment for the task of every trajectory, for any of them may be sent to RL; raises `DataError` naming the first
    whose task it does not know. Records that cannot be read are left to who reads them."""
    for path in corpus.paths:
        for record in iter_records(path, keep_bad=True):
            # A record's turns, on which reading spends its time, need not be read where its task is told as corpora tell it.
            if isinstance(record.value, Mapping) and _refusal(told_task(record.value, corpus), environment):
                _check(record, corpus, environment)


def told_task(record: Mapping[str, object], corpus: Files) -> object:
    """The task that a record of the corpus tells, under the corpus's own name for it; it may be JSON text."""
    own = dict(corpus.mapping).get("task", "task") if isinstance(corpus, OwnFiles) else "task"
    told = value_at(record, own)
    if isinstance(told, str):
        with suppress(ValueError, RecursionError):
            return json.loads(told)
    return told


def _refusal(task: object, environment: Environment) -> str:
    """Why the environment cannot set up a task; empty where it can."""
    if not task or not isinstance(task, Mapping):
        return "names no task"
    why = environment.refusal(task)
    return f"environment {environment.name!r} does not know its task ({why})" if why else ""


def _check(record: Record, corpus: Files, environment: Environment) -> None:
    """Reads the record as the corpus is read; raises `DataError` where its task is none of the environment's."""
    try:
        with quiet(True):
            read = list(corpus.read([record.value]))
    except DataError:
        return
    for trajectory in read:
        if why := _refusal(trajectory.task, environment):
            told = record.value.get("id") is not None
            raise DataError(
                f"{record.place}: {f'trajectory {trajectory.id!r}' if told else 'the trajectory'}: {why}, so RL cannot play it; give its "
                "'task' the env and id of one of that environment's, name the right environment, or leave it out of corpus.files"
            )
