"""Gold trajectories from an environment's expert."""

from collections.abc import Sequence

from gradprism.environments.play import play
from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.environments.registry import as_environment
from gradprism.runtime.errors import EnvironmentPlayError
from gradprism.runtime.progress import Progress, say
from gradprism.trajectories.record import Trajectory

IN_FLIGHT = 64  # episodes at once
COUNT = 240  # tasks of a split without end, where nobody says how many


def default_tasks(
    environment: Environment, split: str | None = None, count: int | None = None, start: int = 0, task_type: str | None = None
) -> list[Task]:
    """`count` tasks of a split (default the one for training); default all there are, or 240 of a split without end."""
    split = split or environment.splits[0]
    return environment.tasks(split, COUNT if count is None and environment.size(split) is None else count, start, task_type)


def collect(
    environment: Environment | str,
    tasks: Sequence[Task] | None = None,
    *,
    split: str | None = None,
    count: int | None = None,
    max_steps: int = 50,
    workers: int | None = None,
) -> list[Trajectory]:
    """The expert's successful episodes, in the order of the tasks: observations as user turns, actions as assistant turns.

    `tasks`, or else the first `count` of `split` as `default_tasks` has them. A task that the expert does not solve within `max_steps` is
    left out, and so is one that its engine breaks off, which a line tells. The trajectories do not depend on `workers`, the number of
    processes that play (default one per core). `environment` may be the name of one. Raises `EnvironmentPlayError` where every task breaks
    off or none is solved, `ConfigError` where the environment has no expert.
    """
    environment = as_environment(environment)
    if tasks is None:
        tasks = default_tasks(environment, split, count)
    trajectories, failures, cut = [], [], 0
    with SessionPool(environment, workers) as pool, Progress("demonstrations", len(tasks)) as progress:
        for begin in range(0, len(tasks), IN_FLIGHT):
            chunk = tasks[begin : begin + IN_FLIGHT]
            for one in play(pool, chunk, [environment.expert() for _ in chunk], max_steps, lambda _: progress.advance(1)):
                if one.last.info.failure:
                    failures.append(one.last.info.failure)
                elif one.last.info.success:
                    trajectories.append(environment.recorded(one.trajectory(one.task.id)))
                else:
                    cut += not one.last.done
    if failures:
        line = (
            f"{len(failures)} of {len(tasks)} tasks were broken off by the environment and are left out; the first: {failures[0]}"
        )
        if len(failures) == len(tasks):
            raise EnvironmentPlayError(line)
        say(line)
    if tasks and not trajectories:
        why = f"{cut} end by max_steps {max_steps}, so give more" if cut else "name other tasks"
        raise EnvironmentPlayError(f"the expert solves none of the tasks ({len(tasks)}); {why}")
    return trajectories
