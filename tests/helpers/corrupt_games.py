"""Counting games of which every third is corrupt."""

from dataclasses import dataclass

from gradprism.environments.protocol import Task
from helpers.broken_games import BrokenGames


@dataclass(frozen=True)
class CorruptGames(BrokenGames):
    def ids(self, split: str, task_type: str | None = None) -> list[str]:
        return ["corrupt" if i % 3 == 2 else f"{split}/{i}" for i in range(9)]

    def find(self, task_id: str) -> Task:
        return Task(self.name, task_id, "kind", "test")
