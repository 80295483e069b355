"""Exporters by name, and what is common to all: the folder that is written whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gradprism.runtime.folders import OnExisting
from gradprism.runtime.registry import Registry


class Exporter(Protocol):
    """Writes a route folder in the form of another trainer."""

    def __call__(self, route: Path, out: Path, *, on_existing: OnExisting, **options: object) -> dict[str, object]: ...


EXPORTERS: Registry[Exporter] = Registry("exporter", {"verl": "gradprism.exporting.verl:export_verl"})
register_exporter: Callable = EXPORTERS.register


def export(
    route: Path | str, name: str, out: Path | str, *, on_existing: OnExisting = "fail", **options: object
) -> dict[str, object]:
    """Writes a route folder into `out` as the exporter `name` does, and returns what it says of it."""
    return EXPORTERS[name](Path(route), Path(out), on_existing=on_existing, **options)
