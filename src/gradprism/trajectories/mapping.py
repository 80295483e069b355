"""A user's own names of fields and roles, as the formats of this package know them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradprism.runtime.errors import ConfigError, DataError, MissingFileError, one_line
from gradprism.runtime.files import parse_toml
from gradprism.trajectories.reading import Record, from_json, keys_of

# What a name of `--map` stands for, beside the key under which formats look for it.
OF_RECORD = {
    "turns": "messages",
    "prompt": "prompt",
    "completion": "completion",
    "system": "system",
    "tools": "tools",
    "id": "id",
    "task": "task",
}
OF_TURN = {
    "speaker": "role",
    "text": "content",
    "reasoning": "reasoning_content",
    "calls": "tool_calls",
    "weight": "weight",
    "masked": "masked",
    "name": "name",
    "call_id": "tool_call_id",
}
Names = Mapping[str, str | Mapping[str, str]]  # own names; `role.NAME` may also stand in a table `role`
_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool", "call": "function_call"}
_LISTS = (
    *("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "trajectory", "traj", "history"),
    *("prompt", "completion"),
)


@dataclass(frozen=True, slots=True)
class FieldMap:
    """Own names: of a record's and of a turn's fields, (name, own key) each, and of roles, (own name, role).

    An own key of a record may be a path into objects, its steps joined by dots.
    """

    record: tuple[tuple[str, str], ...] = ()
    turn: tuple[tuple[str, str], ...] = ()
    roles: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, names: Names) -> "FieldMap":
        """From `{"turns": "dialog", "speaker": "who", "role.agent": "assistant", …}`; raises `ConfigError` for an unknown name."""
        record, turn, roles = [], [], []
        for name, own in _flat(names):
            kind, _, role = name.partition(".")
            if not isinstance(own, str) or not own:
                raise ConfigError(f"map {name}: {own!r} is no name; give text, as in turns=dialog")
            if kind in ("role", "roles") and role:
                if own not in _ROLES:
                    raise ConfigError(f"map {name}: {own!r} is no role; choose one of {', '.join(_ROLES)}")
                roles.append((role, own))
            elif name in OF_RECORD:
                record.append((name, own))
            elif name in OF_TURN:
                turn.append((name, own))
            else:
                raise ConfigError(f"map {name}: unknown; choose one of {', '.join((*OF_RECORD, *OF_TURN))}, or role.NAME")
        return cls(tuple(record), tuple(turn), tuple(roles))

    def to_json(self) -> dict[str, str]:
        """As `of` takes it."""
        return {**dict(self.record), **dict(self.turn), **{f"role.{own}": role for own, role in self.roles}}

    def apply(self, record: Record) -> Record:
        """The record under the formats' names; raises `DataError` where it has no such turns."""
        made = dict(record)
        for name, own in self.record:
            found = value_at(record, own)
            if found is None and name == "turns":
                raise DataError(f"no {own!r}, which the map names as the turns; keys seen: {keys_of(record)}")
            if found is not None:
                _rename(made, own, OF_RECORD[name], found)
        for key in _LISTS if self.turn or self.roles else ():
            turns = made.get(key)
            if isinstance(turns, str) and turns.lstrip().startswith("["):
                turns = from_json(turns, key)
            if isinstance(turns, Sequence) and not isinstance(turns, str):
                made[key] = [self._turn(turn) if isinstance(turn, Mapping) else turn for turn in turns]
        return made

    def _turn(self, turn: Record) -> Record:
        made = dict(turn)
        for name, own in self.turn:
            if made.get(own) is not None:
                _rename(made, own, OF_TURN[name], made[own])
        roles = dict(self.roles)
        for key in ("role", "from", "speaker"):
            if isinstance(made.get(key), str) and made[key] in roles:
                made[key] = _ROLES[roles[made[key]]]
        return made


def value_at(record: Record, path: str) -> Any:
    if path in record:
        return record[path]
    value: Any = record
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _rename(made: dict[str, Any], own: str, key: str, value: Any) -> None:
    """Puts a value under `key`; what stood there is kept under a name that nothing uses, so that it is reported."""
    made.pop(own, None)
    if key != own and made.get(key) is not None:
        made[f"{key} (beside {own})"] = made[key]
    made[key] = value


def read_settings(settings: Sequence[str] | None) -> Names | None:
    """The names of `--map`: each `name=own`, or a TOML file with a table of them. Raises `ConfigError` and `MissingFileError`."""
    names: dict[str, str] = {}
    for setting in settings or ():
        name, equals, own = setting.partition("=")
        if equals:
            names[name.strip()] = own.strip()
        else:
            names |= dict(_flat(_toml(Path(setting))))
    return names or None


def _toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"--map {path}: no such file; give name=own, or a TOML file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--map {path}: not a readable TOML file ({one_line(error)})") from None


def _flat(table: Names, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
