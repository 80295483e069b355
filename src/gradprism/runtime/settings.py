"""Settings that say in one line what is wrong with them, and which name was probably meant."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from gradprism.runtime.errors import ConfigError
from gradprism.runtime.progress import printable


class _InOneLine(type(BaseModel)):
    """Makes a wrong setting that code gives by name a `ConfigError`; what is validated as part of something else is for that to say."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise ConfigError(f"{cls.__name__}: {wrong_setting(error, cls)}") from None


class Settings(BaseModel, metaclass=_InOneLine):
    """Frozen values of known names; called with anything else it raises `ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def wrong_setting(error: ValidationError, model: Any) -> str:
    """The first thing that is wrong, as `section.key: why; got value`; for an unknown key the one that was probably meant."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    where, message = f"{key}: " if key else "", first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{where}no such setting{_meant(first['loc'], model)}"
    got = "" if isinstance(first["input"], dict) else f"; got {first['input']!r}"  # a whole section says nothing
    return f"{where}{message}{got}"


def wrong_value(error: ValidationError) -> str:
    """The first thing that is wrong with a file's content, as `key.key: why`, of what a terminal can show."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or "the whole file"
    return f"{printable(key)}: {printable(first['msg'].removeprefix('Value error, '))}"


def _meant(place: tuple[int | str, ...], model: Any) -> str:
    """A known setting that is spelt nearly like the last word of `place`, as a question; else all that are known there."""
    for word in place[:-1]:
        if isinstance(word, str) and word in getattr(model, "model_fields", {}):
            kind: Any = model.model_fields[word].annotation
            kinds = [kind, *get_args(kind)]
            model = next((one for one in kinds if hasattr(one, "model_fields")), None)
    known = sorted(getattr(model, "model_fields", {}))
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
