"""Trajectories of an older ALFWorld, played again in the installed one, so that corpus and environment speak one text.

The actions are kept, in today's words (`put X in/on Y` is now `move X to Y`); the observations are the engine's own. A trajectory is
kept if every action is accepted and the last one solves the task.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gradprism.environments.alfworld.official import PREFIX, parse_official
from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.progress import Progress
from gradprism.trajectories.record import Message, Trajectory

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
class _Replay:
    """One trajectory on its way; `turns` is what becomes of it."""

    source: Trajectory
    task_id: str
    actions: list[str]
    turns: list[Message]
    lost: Lost | None = None


def replay(
    environment: Environment, trajectories: Sequence[Trajectory], workers: int | None = None
) -> tuple[list[Trajectory], list[Lost]]:
    """The trajectories in today's text, in their order and with tasks that the environment knows, and those that do not replay."""
    kept, lost = [], []
    with SessionPool(environment, workers) as pool, Progress("replays", len(trajectories)) as progress:
        for begin in range(0, len(trajectories), IN_FLIGHT):
            chunk = [_begin(trajectory) for trajectory in trajectories[begin : begin + IN_FLIGHT]]
            _play(pool, [one for one in chunk if one.lost is None])
            for one in chunk:
                if one.lost is None:
                    reference = environment.task({"env": environment.name, "id": one.task_id}).reference()
                    kept.append(Trajectory(one.source.id, tuple(one.turns), reference))
                else:
                    lost.append(one.lost)
            progress.advance(len(chunk), f"{len(lost)} lost")
    return kept, lost


def report(n: int, lost: Iterable[Lost]) -> dict[str, Any]:
    """What was kept of `n` trajectories and why the others were not; JSON-serialisable."""
    rows = [asdict(one) for one in lost]
    return {"trajectories": n, "kept": n - len(rows), "kept_share": (n - len(rows)) / n if n else 1.0, "lost": rows}


def new_action(action: str) -> str:
    """An action in today's words: what follows the last `Action:`, if there is one, with `move … to` for `put … in/on`."""
    action = action.rpartition("Action:")[2].strip()
    match = _PUT.fullmatch(action)
    return f"move {match[1]} to {match[2]}" if match else action


def _begin(trajectory: Trajectory) -> _Replay:
    one = _Replay(trajectory, "", [], [])
    try:
        one.task_id = _task_id(trajectory)
    except ConfigError as error:
        one.lost = Lost(trajectory.id, 0, "", str(error))
        return one
    # Some corpora open with rules and an acknowledgement: what counts begins with the task.
    starts = [i for i, m in enumerate(trajectory.messages) if m.role == "user" and "Your task is to:" in m.content]
    turns = trajectory.messages[starts[-1] :] if starts else trajectory.messages
    one.actions = [new_action(m.content) for m in turns if m.role == "assistant"]
    return one


def _task_id(trajectory: Trajectory) -> str:
    named = trajectory.task.get("game_file") or trajectory.task.get("id")
    match = _GAME.search(named) if isinstance(named, str) else None
    if match is None:
        raise ConfigError(f"names no game (game_file): {named!r}")
    name = f"{PREFIX}/{match[1]}/{match[2]}/{match[3]}"
    parse_official(name)
    return name


def _play(pool: SessionPool, playing: list[_Replay]) -> None:
    try:
        starts = pool.reset(range(len(playing)), [one.task_id for one in playing])
    except ConfigError:
        starts = []
        for index, one in enumerate(playing):  # one of them is unknown: see which
            try:
                starts += pool.reset([index], [one.task_id])
            except ConfigError as error:
                one.lost = Lost(one.source.id, 0, "", str(error))
                starts.append(None)
    for one, start in zip(playing, starts, strict=True):
        if start is not None and start.done:
            one.lost = Lost(one.source.id, 0, "", start.info.failure)
        elif start is not None:
            one.turns.append(Message("user", start.observation))
    active = {index: one for index, one in enumerate(playing) if one.lost is None}
    number = 0
    while active:
        number += 1
        for index, one in list(active.items()):
            if number > len(one.actions):
                one.lost = Lost(one.source.id, len(one.actions), one.actions[-1], "the task is not solved at its end")
                del active[index]
        steps = pool.step(list(active), [one.actions[number - 1] for one in active.values()])
        for (index, one), step in zip(list(active.items()), steps, strict=True):
            action = one.actions[number - 1]
            one.turns.append(Message("assistant", action))
            if step.info.success:
                del active[index]
            elif step.done or not step.info.valid:
                one.lost = Lost(one.source.id, number, action, step.info.failure or "the engine does not accept it there")
                del active[index]
            else:
                one.turns.append(Message("user", step.observation))
