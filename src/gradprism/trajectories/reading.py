"""What readers of records share: values in words, JSON within text, and the account of what a record held that nothing used."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gradprism.runtime.errors import DataError

Record = Mapping[str, Any]  # one JSON object of a corpus
_MEDIA = ("images", "videos", "audios", "image", "video", "audio", "image_url")
_MEDIA_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".mp4", ".wav", ".mp3")


@dataclass(slots=True)
class Notes:
    """What a corpus held and a trajectory has no place for, counted by name: said once, at the end."""

    turn_keys: Counter[str] = field(default_factory=Counter)
    record_keys: Counter[str] = field(default_factory=Counter)
    task_texts: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    formats: dict[str, Counter[str]] = field(default_factory=dict)  # of each file

    def lines(self) -> list[str]:
        """A line for each kind of thing; none where everything was used."""
        lines = []
        for counts, where in ((self.record_keys, "a record"), (self.turn_keys, "a turn")):
            if counts:
                names = ", ".join(f"{key!r} ({count})" for key, count in _by_count(counts).items())
                lines.append(f"keys of {where} that nothing uses (times): {names}; a map names those that mean something")
        if self.task_texts:
            names = ", ".join(f"{key!r} ({count})" for key, count in _by_count(self.task_texts).items())
            lines.append(
                f"texts beside the turns, kept in the task alone (times): {names}; a map names those that the model is to see"
            )
        for file, formats in self.mixed().items():
            told = ", ".join(f"{name} ({count})" for name, count in formats.items())
            lines.append(f"{file}: records of several formats, each read by its own: {told}; format NAME takes one for all")
        return lines + [f"{remark} ({count})" for remark, count in _by_count(self.remarks).items()]

    def mixed(self) -> dict[str, dict[str, int]]:
        """The files whose records are of several formats, with the counts of each."""
        return {file: _by_count(formats) for file, formats in self.formats.items() if len(formats) > 1}

    def to_json(self) -> dict[str, Any]:
        """Counts by name."""
        return {
            "unused_record_keys": _by_count(self.record_keys),
            "unused_turn_keys": _by_count(self.turn_keys),
            "task_texts": _by_count(self.task_texts),
            "remarks": _by_count(self.remarks),
            "mixed_formats": self.mixed(),
        }

    def unused(self, turn: Record, used: Iterable[str]) -> None:
        """Counts the keys of a turn that say something and are not `used`."""
        self.turn_keys.update(key for key in turn.keys() - used if says_something(turn[key]))


def _by_count(counts: Counter[str]) -> dict[str, int]:
    """The most frequent first, those of one count by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def says_something(value: Any) -> bool:
    """Whether a value tells anything: it is not null, "", [] or {}."""
    return value is not None and value != "" and value != [] and value != {}


def from_json(value: Any, key: str) -> Any:
    """A list or an object, which may be given as JSON text; raises `DataError` for other text."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{key!r} is text that is no JSON ({error}); repair or delete it") from None


def plain(value: Any, what: str) -> Any:
    """The value; raises `DataError` for what cannot be written as JSON."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is not plain JSON ({error})") from None
    return value


def refuse_media(value: Record, where: str) -> None:
    """Raises `DataError` for images, videos and sounds beside the text of a record or a turn, which `where` names."""
    for key in _MEDIA:
        given = value.get(key)
        is_file = isinstance(given, str) and given.lower().endswith(_MEDIA_ENDINGS)
        if says_something(given) and (is_file or not isinstance(given, str | int | float)):
            raise DataError(f"{key!r} {where}: only text can be trained on here; delete the record")


def as_text(value: Any) -> str:
    """A value of a tool's result as text: JSON, where it is not text already."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def keys_of(record: Record) -> str:
    """The keys of a record, for a message."""
    return ", ".join(map(str, record)) or "none"


def kind_of(value: Any) -> str:
    """The JSON type of a value, for a message."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
