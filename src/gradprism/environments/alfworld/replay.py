"""Trajectories of an older ALFWorld, played again in the installed one, so that corpus and environment use the same text.

The actions are kept, in today's words (`put X in/on Y` is now `move X to Y`); the observations are the engine's own. A trajectory is
kept if every action is accepted and the last one solves the task.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from gradprism.environments.alfworld import official
from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.play import play
from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Step, Task
from gradprism.runtime.errors import ConfigError, EnvironmentPlayError
from gradprism.runtime.progress import Progress
from gradprism.trajectories.record import Trajectory

_PUT = re.compile(r"put (.+?) (?:in/on|in|on) (.+)")
_GAME = re.compile(r"([^/]+)/([^/]+)/([^/]+?)(?:/game\.tw-pddl)?$")
IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class Lost:
    """A trajectory that does not replay: `step` counts its actions from 1, 0 where it could not be begun."""

    id: str
    step: int
    action: str
    why: str


@dataclass(slots=True)
class _Script:
    """Gives a trajectory's actions, as long as the engine accepts them."""

    actions: list[str]
    given: int = 0

    def act(self, step: Step) -> str:
        if not step.info.valid:
            raise EnvironmentPlayError("the engine does not accept it there")
        if self.given == len(self.actions):
            raise EnvironmentPlayError("the task is not solved at its end")
        self.given += 1
        return self.actions[self.given - 1]


@dataclass(frozen=True, slots=True)
class Replay:
    """The trajectories in today's text, with tasks that the environment knows, and those that do not replay; each in their order."""

    kept: list[Trajectory]
    lost: list[Lost]

    @property
    def share(self) -> float:
        """Share of the trajectories that was kept; 1.0 of none."""
        return len(self.kept) / (len(self.kept) + len(self.lost)) if self.lost else 1.0

    def report(self) -> dict[str, object]:
        """The number kept, and why the others were not, as JSON."""
        n = len(self.kept) + len(self.lost)
        return {"trajectories": n, "kept": len(self.kept), "kept_share": self.share, "lost": [asdict(one) for one in self.lost]}


def replay(environment: AlfworldEnvironment, trajectories: Sequence[Trajectory], workers: int | None = None) -> Replay:
    """Plays the actions of `trajectories`, which name official games, in `workers` processes (default one per core)."""
    kept: list[Trajectory] = []
    lost: dict[int, Lost] = {}
    with SessionPool(environment, workers) as pool, Progress("replays", len(trajectories)) as progress:
        for begin in range(0, len(trajectories), IN_FLIGHT):
            numbers = range(begin, min(begin + IN_FLIGHT, len(trajectories)))
            found: dict[int, Task] = {}
            for number in numbers:
                try:
                    found[number] = _find(environment, trajectories[number])
                except ConfigError as error:
                    lost[number] = Lost(trajectories[number].id, 0, "", str(error))
            scripts = [_Script(_actions(trajectories[number])) for number in found]
            longest = max((len(script.actions) for script in scripts), default=0)
            for number, one in zip(found, play(pool, list(found.values()), scripts, longest + 1), strict=True):
                if one.last.info.success:
                    kept.append(one.trajectory(trajectories[number].id))
                else:
                    action, why = one.actions[-1] if one.actions else "", one.last.info.failure or one.gave_up
                    lost[number] = Lost(trajectories[number].id, len(one.actions), action, why)
            progress.advance(len(numbers), f"{len(lost)} lost")
    return Replay(kept, [lost[number] for number in sorted(lost)])


def new_action(action: str) -> str:
    """An action in today's words: what follows the last `Action:`, if there is one, with `move … to` for `put … in/on`."""
    action = action.rpartition("Action:")[2].strip()
    match = _PUT.fullmatch(action)
    return f"move {match[1]} to {match[2]}" if match else action


def _actions(trajectory: Trajectory) -> list[str]:
    # Some corpora open with rules and an acknowledgement: what counts begins with the task.
    starts = [i for i, m in enumerate(trajectory.messages) if m.role == "user" and "Your task is to:" in m.content]
    turns = trajectory.messages[starts[-1] :] if starts else trajectory.messages
    return [new_action(m.content) for m in turns if m.role == "assistant"]


def _find(environment: AlfworldEnvironment, trajectory: Trajectory) -> Task:
    """The official game of a trajectory; raises `ConfigError` where it names none, or one that is not there."""
    named = trajectory.task.get("game_file") or trajectory.task.get("id")
    match = _GAME.search(named) if isinstance(named, str) else None
    if match is None:
        raise ConfigError(f"names no game (game_file): {named!r}")
    task = environment.find("/".join((official.PREFIX, *match.groups())))
    official.game_path(official.games_folder(environment.data_dir), task.id)
    return task
