"""Help pages without boxes: every option's name and text in full, at any width of the terminal."""

import shutil
from collections.abc import Sequence

import typer
from typer.core import TyperCommand, TyperGroup

_NARROW = 76


class _Formatter(typer.Context.formatter_class):
    def __init__(self) -> None:
        super().__init__(width=max(38, min(shutil.get_terminal_size().columns, 102) - 2))

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Two columns, or, where these would be too narrow to read, each text below its name."""
        super().write_dl(rows, 2 if self.width < _NARROW else col_max, col_spacing)


class _Context(typer.Context):
    def make_formatter(self) -> _Formatter:
        return _Formatter()


class Command(TyperCommand):
    """A command with such a help page."""

    context_class = _Context


class Group(TyperGroup):
    """A group of commands with such a help page, where each command's line is whole."""

    context_class = _Context

    def format_commands(self, ctx: typer.Context, formatter: _Formatter) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Names and first sentences of the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()])


def new_app(group: type[TyperGroup] = Group, help: str | None = None) -> typer.Typer:
    """A Typer app whose commands are to be added with `cls=Command`."""
    return typer.Typer(
        name="gradprism",
        cls=group,
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
