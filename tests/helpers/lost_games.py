"""Counting games that end with the first action, lost."""

from dataclasses import dataclass, replace

from gradprism.environments.protocol import Step
from helpers.broken_games import BrokenGames, BrokenSession


@dataclass(frozen=True)
class LostGames(BrokenGames):
    def session(self):
        return LostSession(self.folder)


class LostSession(BrokenSession):
    def step(self, action: str) -> Step:
        return replace(super().step(action), done=True)
