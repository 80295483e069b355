"""Counting games of which every third is corrupt."""

from dataclasses import dataclass

from gradprism.environments.protocol import Task
from helpers.broken_games import BrokenGames


@dataclass(frozen=True)
class CorruptGames(BrokenGames):
    def tasks(self, split: str, count: int | None = None, start: int = 0, task_type: str | None = None) -> list[Task]:
        return [Task(self.name, "corrupt" if i % 3 == 2 else f"{split}/{i}", "kind", split) for i in range(count or 9)]
