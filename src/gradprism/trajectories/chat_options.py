"""The choices that a person may make about a chat template, and the file that keeps them beside a model that was trained with them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self, get_args

from gradprism.checkpoints import tokenizer_source
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.runtime.files import read_json, write_json

Thoughts = Literal["keep", "drop", "fail"]
Merge = Literal["system", "alternate"]
Calls = Literal["template", "text"]
DATE = "2026-01-01"  # for templates that print today's date, where none is chosen
SAVED = "chat_options.json"  # beside the tokenizer's files
_TEMPLATE = "chat_template.jinja"  # where transformers keeps the template


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Choices of a render. They go with a tokenizer as its chat template does (`load_tokenizer`), and are saved with a trained model.

    `file`: a Jinja file in place of the tokenizer's own template. `thoughts`: what becomes of reasoning that the template's render
    would lose: written into the turn as `<think>…</think>` (keep), left out (drop), or an error (fail). `merge`: `system` puts the system
    prompt at the head of the first user turn, `alternate` joins successive turns of one role. `calls`: tool calls as the template
    writes them, or as text of their turn in Hermes' form, `<tool_call>{…}</tool_call>`, with tools' results as user turns. `date`
    (YYYY-MM-DD) is today for the template; `arguments` are further variables of it. `configured`: they are chosen in a configuration's
    `[model]`, not by options of a command, and messages name them so. Raises `ConfigError` for values that are none of these.
    """

    file: Path | None = None
    thoughts: Thoughts = "fail"
    merge: tuple[Merge, ...] = ()
    calls: Calls = "template"
    date: str = DATE
    arguments: Mapping[str, Any] = field(default_factory=dict)
    configured: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.thoughts not in get_args(Thoughts):
            raise ConfigError(f"thoughts {self.thoughts!r}: choose keep, drop or fail")
        if unknown := [name for name in self.merge if name not in get_args(Merge)]:
            raise ConfigError(f"merge {unknown[0]!r}: choose system, alternate or both, as in system,alternate")
        if self.calls not in get_args(Calls):
            raise ConfigError(f"calls {self.calls!r}: choose template or text")
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise ConfigError(f"template date {self.date!r}: give a day as YYYY-MM-DD") from None
        if taken := {"messages", "tools", "documents", "add_generation_prompt"} & self.arguments.keys():
            raise ConfigError(f"template argument {min(taken)}: is what rendering itself gives the template; name another")

    @classmethod
    def of_model(
        cls,
        model: str,
        *,
        file: Path | None = None,
        thoughts: Thoughts | None = None,
        merge: tuple[Merge, ...] | None = None,
        calls: Calls | None = None,
        date: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        configured: bool = False,
    ) -> Self:
        """What is given, and for all else what the model in the folder `model` was trained with; of any other model the defaults.

        Arguments of the template are joined, name by name.
        """
        saved = saved_options(model) or cls()
        return cls(
            file,
            saved.thoughts if thoughts is None else thoughts,
            saved.merge if merge is None else merge,
            saved.calls if calls is None else calls,
            saved.date if date is None else date,
            {**saved.arguments, **(arguments or {})},
            configured,
        )

    def called(self, option: str, value: str = "") -> str:
        """What a person sets to choose `value`: `--merge system`, or in a configuration `model.merge = ["system"]`."""
        if not self.configured:
            return f"--{option} {value}".rstrip()
        key = f"model.{option.replace('-', '_')}"
        if option == "template-arg":
            return f"{key}s.{value.replace('=', ' = ', 1)}" if value else f"{key}s"
        written = json.dumps(value.split(",") if option == "merge" else value)
        return f"{key} = {written}" if value else key

    @property
    def give_template(self) -> str:
        """What to do about a template that does not fit, as the end of a message."""
        return f"give one that fits, with {{% generation %}} around each assistant turn, by {self.called('chat-template', 'FILE')}"

    def to_json(self) -> dict[str, Any]:
        """All but the file, whose text goes where templates are kept."""
        return {
            "thoughts": self.thoughts,
            "merge": sorted(self.merge),
            "calls": self.calls,
            "date": self.date,
            "arguments": dict(self.arguments),
        }

    def changed(self) -> dict[str, Any]:
        """`to_json` without what is at its default."""
        default = ChatOptions().to_json()
        return {name: value for name, value in self.to_json().items() if value != default[name]}

    def save(self, folder: Path) -> None:
        """Writes them beside a tokenizer, for `saved_options`."""
        write_json(folder / SAVED, self.to_json())


def saved_options(model: str) -> ChatOptions | None:
    """The options with which the model in a folder was trained here; None for any other model. Raises `DataError` for a broken file."""
    path = Path(tokenizer_source(model)) / SAVED
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        return ChatOptions(**{**values, "merge": tuple(values.get("merge", ()))})
    except (AttributeError, TypeError, ConfigError) as error:
        raise DataError(
            f"{path}: no options of a chat template ({error}); delete the file, and give them with the command"
        ) from None


def other_options(model: str, options: ChatOptions) -> str:
    """`name: trained with → given; …` where the model in a folder was trained with other options or another template; else empty."""
    saved = saved_options(model)
    if saved is None:
        return ""
    before, after = saved.to_json(), options.to_json()
    found = [f"{name}: {before[name]} → {after[name]}" for name in before if before[name] != after[name]]
    template = Path(tokenizer_source(model)) / _TEMPLATE
    if options.file and template.is_file() and options.file.is_file() and options.file.read_bytes() != template.read_bytes():
        found.insert(0, f"chat template: the model's own → {options.file}")
    return "; ".join(found)
