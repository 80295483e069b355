"""Corpora as lists."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gradprism.trajectories.corpus import canonical_line, load_corpus, write_messages_jsonl
from gradprism.trajectories.record import Trajectory

__all__ = ["canonical_line", "iter_trajectories", "read_trajectories", "write_messages_jsonl"]


def iter_trajectories(paths: Sequence[Path], format: str | None = None) -> Iterator[Trajectory]:
    return iter(load_corpus(list(paths), format=format))


def read_trajectories(paths: Sequence[Path], format: str | None = None) -> list[Trajectory]:
    return list(load_corpus(list(paths), format=format))
