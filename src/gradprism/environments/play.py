"""Episodes of players that are no models: an environment's expert, a script."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Expert, Step, Task
from gradprism.runtime.errors import EnvironmentPlayError
from gradprism.trajectories.record import Message, Trajectory


@dataclass(slots=True)
class Play:
    """One episode: a step for the reset and for each action. `gave_up`: why the player knew no further action, if it did not."""

    task: Task
    steps: list[Step] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    gave_up: str = ""

    @property
    def last(self) -> Step:
        """The latest step."""
        return self.steps[-1]

    def trajectory(self, identifier: str) -> Trajectory:
        """Its observations as user turns and its actions as assistant turns; what the last action led to is left out."""
        pairs = zip(self.steps, self.actions, strict=False)
        turns = [turn for step, action in pairs for turn in (Message("user", step.observation), Message("assistant", action))]
        return Trajectory(identifier, tuple(turns), dict(self.task.reference()))


def play(
    pool: SessionPool,
    tasks: Sequence[Task],
    players: Sequence[Expert],
    max_steps: int,
    on_done: Callable[[Play], object] = lambda play: None,
) -> list[Play]:
    """One episode per task, side by side, each by its own player; `on_done` is called as each ends.

    An episode ends with its environment, after `max_steps` actions, or where its player raises `EnvironmentPlayError`. Raises
    `ConfigError` for a task that the environment does not know.
    """
    plays = [Play(task, [step]) for task, step in zip(tasks, pool.reset(range(len(tasks)), [t.id for t in tasks]), strict=True)]
    playing = list(range(len(plays)))
    while playing:
        acting = []
        for index in playing:
            one = plays[index]
            try:
                if not one.last.done and len(one.actions) < max_steps:
                    one.actions.append(players[index].act(one.last))
                    acting.append(index)
                    continue
            except EnvironmentPlayError as error:
                one.gave_up = str(error)
            on_done(one)
        for index, step in zip(acting, pool.step(acting, [plays[index].actions[-1] for index in acting]), strict=True):
            plays[index].steps.append(step)
        playing = acting
    return plays
