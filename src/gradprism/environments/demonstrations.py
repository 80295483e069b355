"""Gold trajectories from an environment's expert."""

from collections.abc import Sequence

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.runtime.progress import Progress
from gradprism.trajectories.record import Message, Trajectory

CHUNK = 32  # tasks sent to the pool at once: often enough for the progress bar, seldom enough to keep all workers busy


def collect(environment: Environment, tasks: Sequence[Task], max_steps: int = 50, workers: int | None = None) -> list[Trajectory]:
    """The expert's successful episodes on `tasks`, in their order: observations as user turns, actions as assistant turns.

    A task that the expert does not solve within `max_steps` is left out.
    """
    trajectories = []
    with SessionPool(environment, workers) as pool, Progress("demonstrations", len(tasks)) as progress:
        for begin in range(0, len(tasks), CHUNK):
            chunk = tasks[begin : begin + CHUNK]
            for task, pairs in zip(chunk, pool.demonstrate([t.id for t in chunk], max_steps), strict=True):
                if pairs is not None:
                    turns = [m for o, a in pairs for m in (Message("user", o), Message("assistant", a))]
                    trajectories.append(Trajectory(task.id, tuple(turns), task.reference()))
            progress.advance(len(chunk))
    return trajectories
