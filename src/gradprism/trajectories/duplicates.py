"""Trajectories that are nearly the same, by MinHash (Broder 1997) with banding (Leskovec et al., Mining of Massive Datasets, 3.4).

Two texts are as alike as the sets of their five-word sequences: intersection over union. A signature of 64 minima estimates that, and
only texts whose signatures agree in one of 8 bands are compared.
"""

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradprism.trajectories.record import Message, Trajectory

ALIKE = 0.9  # share of five-word sequences in common from which two trajectories are near duplicates
_WORDS, _HASHES, _BANDS = 5, 64, 8
_RANDOM = np.random.default_rng(20260107).integers(1, 1 << 61, size=(2, _HASHES), dtype=np.uint64) | np.uint64(1)
_PRIMES = np.array([1, 31, 961, 29791, 923521], dtype=np.uint64)


class _Crc(dict[str, int]):
    """Hashes of words, each computed once."""

    def __missing__(self, word: str) -> int:
        value = self[word] = zlib.crc32(word.encode())
        return value


_CRC = _Crc()


@dataclass(frozen=True, slots=True)
class Print:
    """By what a trajectory is known again: the hash of all its turns, and the signature `[64]` of what follows its opening (None: too
    short to tell)."""

    digest: bytes
    signature: NDArray[np.uint64] | None

    @classmethod
    def of(cls, trajectory: Trajectory) -> "Print":
        """The print of a trajectory, whatever its task."""
        digest = hashlib.sha256(repr(trajectory.messages).encode("utf-8", "surrogatepass")).digest()
        return cls(digest, _signature(after_opening(trajectory)))


class Duplicates:
    """Finds, of prints that are given one by one, those that came before, exactly or nearly."""

    def __init__(self) -> None:
        self._exact: dict[bytes, str] = {}
        self._bands: dict[tuple[int, bytes], int] = {}
        self._signatures: list[NDArray[np.uint64]] = []
        self._ids: list[str] = []

    def add(self, id: str, print_: Print) -> tuple[str, str] | None:
        """(`exact` or `near`, the id of the one before) where there was one."""
        if print_.digest in self._exact:
            return "exact", self._exact[print_.digest]
        self._exact[print_.digest] = id
        signature = print_.signature
        if signature is None:
            return None
        bands = [(k, part.tobytes()) for k, part in enumerate(np.split(signature, _BANDS))]
        found = {self._bands[band] for band in bands if band in self._bands}
        for index in sorted(found):
            if float((self._signatures[index] == signature).mean()) >= ALIKE:
                return "near", self._ids[index]
        self._signatures.append(signature)
        self._ids.append(id)
        for band in bands:
            self._bands.setdefault(band, len(self._ids) - 1)
        return None


def _signature(messages: Iterable[Message]) -> NDArray[np.uint64] | None:
    """Minima `[64]` over the sequences of words; None for a text of too few words to tell."""
    texts = (f"{m.content} {m.reasoning} {' '.join(f'{c.name} {dict(c.arguments)}' for c in m.tool_calls)}" for m in messages)
    words = np.array([_CRC[word] for text in texts for word in text.split()], dtype=np.uint64)
    if len(words) < 4 * _WORDS:
        return None
    with np.errstate(over="ignore"):
        windows = np.lib.stride_tricks.sliding_window_view(words, _WORDS)
        shingles = np.unique((windows * _PRIMES).sum(axis=1, dtype=np.uint64))
        factors, offsets = _RANDOM
        # The high bits of a product are the well mixed ones.
        return ((shingles[:, None] * factors + offsets) >> np.uint64(17)).min(axis=0)


def after_opening(trajectory: Trajectory) -> tuple[Message, ...]:
    """The messages from the first assistant turn on: what comes before is often the same for a whole corpus."""
    first = next((k for k, message in enumerate(trajectory.messages) if message.role == "assistant"), 0)
    return trajectory.messages[first:]


@dataclass(frozen=True, slots=True)
class Opening:
    """What a trajectory begins with, by which its task is known where nothing names it: hashes of what is said to the agent before its
    first and before its second turn, and the names in its task."""

    short: str
    long: str
    names: frozenset[str]

    @classmethod
    def of(cls, trajectory: Trajectory) -> "Opening":
        """The opening of a trajectory."""
        answers = [k for k, message in enumerate(trajectory.messages) if message.role == "assistant"]
        hashes = []
        for end in (answers[0], answers[1] if len(answers) > 1 else len(trajectory.messages)):
            said = "\n".join(" ".join(m.content.split()) for m in trajectory.messages[:end] if m.role in ("user", "tool"))
            hashes.append(hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest())
        return cls(hashes[0], hashes[1], task_names(trajectory.task))


def shared(own: Mapping[str, Opening], others: Sequence[Opening]) -> list[str]:
    """The keys of those whose task is also one of `others`: the same name in the task, or the same opening.

    Some corpora open every trajectory with the same instructions, and tell the task in the turn after: an opening counts up to the
    first assistant turn where that tells half of the trajectories apart, else up to the second.
    """
    short = len({opening.short for opening in own.values()}) * 2 > len(own)
    hashes = {opening.short if short else opening.long for opening in others}
    names = frozenset().union(*(opening.names for opening in others))
    return [key for key, opening in own.items() if (opening.short if short else opening.long) in hashes or opening.names & names]


_NAMES = ("id", "task_id", "game", "game_file", "instance_id", "item_id", "goal_id", "session")


def task_names(task: Mapping[str, Any]) -> frozenset[str]:
    """By what a task is named: `key=value`; a game's file by its last folders, wherever it lies."""
    names = set()
    for key in _NAMES:
        value = task.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            text = "/".join(str(value).removesuffix("/game.tw-pddl").split("/")[-2:]) if "game" in key else str(value)
            names.add(f"{'game' if 'game' in key else key}={text}")
    return frozenset(names)
