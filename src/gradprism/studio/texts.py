"""The texts of a corpus by their places in files: read one by one, or gone through for search, without being held."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gradprism.runtime.errors import DataError
from gradprism.runtime.files import parse_json
from gradprism.studio.columns import MOST_VALUES, Column, category
from gradprism.trajectories.formats import parse_record
from gradprism.trajectories.record import Trajectory

PREVIEW = 160  # characters
_BLOCK = 2048  # lines that are read at once
_MOST_KEYS = 12  # of tasks that become columns
_CHANGED = "has changed since it was read; load the page again"


class _Head(msgspec.Struct, gc=False):
    """What of a line columns are made of; the rest is skipped, not parsed."""

    id: Any
    task: dict[str, Any] | None = None


class _Said(msgspec.Struct, gc=False):
    role: str = ""
    content: str = ""
    reasoning_content: str = ""
    tool_calls: msgspec.Raw = msgspec.Raw(b"")


class _Body(msgspec.Struct, gc=False):
    id: Any
    messages: list[_Said] = []
    prompt: list[_Said] = []

    @property
    def turns(self) -> list[_Said]:
        return self.messages or self.prompt


@dataclass(frozen=True)
class Texts:
    """Row i is the line of `size[i]` bytes at `start[i]` of the file `files[file[i]]`, all `[n]`, a record of `messages` or, of RL's side
    of a route, of a `prompt`. `file` is 255 where there is no line. `tasks` has each key of the tasks that makes a category."""

    files: Sequence[Path]
    file: NDArray[np.uint8]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    tasks: tuple[Column, ...]
    named: NDArray[np.bool_]

    @classmethod
    def of_corpus(cls, path: Path, blocks: Iterable[Sequence[bytes]]) -> "Texts":
        """Those of a probe's corpus, whose lines are all of the file `path`."""
        sizes, heads = list[int](), _Heads()
        for lines in blocks:
            sizes += map(len, lines)
            heads.add(lines, path)
        size = np.array(sizes, dtype=np.int64)
        start = np.cumsum(size + 1) - size - 1
        return cls([path], np.zeros(len(size), np.uint8), start, size, heads.columns(), np.array(heads.named, dtype=bool))

    @classmethod
    def of_sets(cls, files: Sequence[Path], ids: Sequence[str]) -> "Texts":
        """Those of a route's two sets, in the order of `ids`."""
        row = {id: number for number, id in enumerate(ids)}
        file, heads = np.full(len(ids), 255, dtype=np.uint8), _Heads()
        start, size, of_row = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64), list[int]()
        for number, path in enumerate(files):
            place = 0
            with open(path, "rb") as lines:
                for line in lines:
                    (id,) = heads.add([line], path)
                    if id in row and file[row[id]] == 255:  # of both sides the first file has the whole
                        at = row[id]
                        file[at], start[at], size[at] = number, place, len(line)
                        of_row.append(at)
                    else:
                        heads.drop()
                    place += len(line)
        return cls(files, file, start, size, heads.columns(of_row, len(ids)), heads.named_of(of_row, len(ids)))

    def line(self, row: int) -> bytes | None:
        """A row's line; None where there is none."""
        if self.file[row] == 255:
            return None
        path = self.files[self.file[row]]
        with open(path, "rb") as file:
            file.seek(int(self.start[row]))
            return file.read(int(self.size[row]))

    def trajectory(self, row: int) -> tuple[Trajectory | None, bool]:
        """A row's trajectory, and whether only its prompt is there; raises `DataError` where the file is not what it was."""
        line = self.line(row)
        if line is None:
            return None, False
        path = self.files[self.file[row]]
        try:
            record = parse_json(line)
            prompt = "messages" not in record
            if prompt:
                record["messages"] = [*record.pop("prompt"), {"role": "assistant", "content": ""}]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: {_CHANGED}") from None
        parsed = parse_record(record, "messages", f"{path}", "")
        if not prompt:
            return parsed, False
        return Trajectory(parsed.id, parsed.messages[:-1], parsed.task, parsed.source, parsed.tools), True

    def previews(self) -> list[str]:
        """The beginning of each row's first user turn, its white space as single blanks."""
        said = (next((turn.content for turn in body.turns if turn.role == "user"), "") if body else "" for body in self._bodies())
        return [" ".join(content[: 4 * PREVIEW].split())[:PREVIEW] for content in said]

    def search(self, wanted: str) -> NDArray[np.uint32]:
        """Rows with `wanted` in their id, a turn's text or reasoning, or a call, whatever the case, in order."""
        wanted, found = wanted.casefold(), list[int]()
        for row, body in enumerate(self._bodies()):
            if body and any(wanted in text.casefold() for text in _texts(body)):
                found.append(row)
        return np.array(found, dtype=np.uint32)

    def _bodies(self) -> Iterator[_Body | None]:
        """What every row says, in order."""
        decode = msgspec.json.Decoder(_Body).decode
        for first in range(0, len(self.file), _BLOCK):
            rows = range(first, min(first + _BLOCK, len(self.file)))
            for line in self._lines(rows):
                try:
                    yield None if line is None else decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    raise DataError(f"{self.files[0]}: {_CHANGED}") from None

    def _lines(self, rows: Sequence[int]) -> Iterator[bytes | None]:
        if len(self.files) > 1:
            yield from map(self.line, rows)
            return
        with open(self.files[0], "rb") as file:  # one after the other: read at once
            begin, end = int(self.start[rows[0]]), int(self.start[rows[-1]] + self.size[rows[-1]])
            file.seek(begin)
            block = file.read(end - begin)
        for row in rows:
            at = int(self.start[row]) - begin
            yield block[at : at + int(self.size[row])]


def _texts(body: _Body) -> Iterator[str]:
    yield str(body.id)
    for turn in body.turns:
        yield turn.content
        yield turn.reasoning_content
        if turn.tool_calls:
            yield bytes(turn.tool_calls).decode()


class _Heads:
    """The keys of tasks, gathered line by line."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Head).decode
        self._tasks: list[dict[str, str]] = []
        self.named: list[bool] = []
        self._texts: dict[str, str] = {}

    def add(self, lines: Sequence[bytes], path: Path) -> list[Any]:
        """Takes lines; their ids."""
        try:
            heads = [self._decode(line) for line in lines]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise DataError(f"{path}: is not the corpus of this folder; give the command again that wrote it") from None
        for head in heads:
            self._tasks.append({key: one for key, value in (head.task or {}).items() if (one := self._text(value)) is not None})
            self.named.append(head.task is not None)
        return [head.id for head in heads]

    def drop(self) -> None:
        """Forgets the last line."""
        self._tasks.pop()
        self.named.pop()

    def _text(self, value: Any) -> str | None:
        if not isinstance(value, str | int | float | bool) or len(text := str(value)) > 200:
            return None
        return self._texts.setdefault(text, text)

    def named_of(self, rows: Sequence[int], n: int) -> NDArray[np.bool_]:
        """`named` by row of n."""
        named = np.zeros(n, dtype=bool)
        named[np.array(rows, dtype=np.intp)] = self.named
        return named

    def columns(self, rows: Sequence[int] | None = None, n: int | None = None) -> tuple[Column, ...]:
        """A category per key that has a few values; of rows that are elsewhere than in the order of the lines, by `rows` of n."""
        counts = Counter(key for task in self._tasks for key in task)
        made = []
        for key, _ in counts.most_common():
            values: list[str | None] = [task.get(key) for task in self._tasks]
            kinds = len(set(values) - {None})
            few = kinds <= min(MOST_VALUES, max(50, len(values) // 4))
            if key != "id" and (few or key == "task_type") and len(made) < _MOST_KEYS:
                if rows is not None and n is not None:
                    placed: list[str | None] = [None] * n
                    for row, value in zip(rows, values, strict=True):
                        placed[row] = value
                    values = placed
                label = key.replace("_", " ")
                made.append(category(key if key == "task_type" else f"task.{key}", label, values, help=f"The task's {key}."))
        return tuple(sorted(made, key=lambda column: (column.name != "task_type", column.name)))


def task_types(texts: Texts) -> list[str | None]:
    """The task type of each row."""
    found = next((column for column in texts.tasks if column.name == "task_type"), None)
    if found is None:
        return [None] * len(texts.file)
    names: Mapping[int, str] = dict(enumerate(found.names or ()))
    return [names.get(int(code)) for code in found.values]
