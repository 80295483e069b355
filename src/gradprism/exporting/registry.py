"""Exporters by name, and what is common to all: the folder that is written whole or not at all, and its account of what is in it."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from gradprism import __version__
from gradprism.routing.routes import Routes
from gradprism.routing.split import Routing
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import sha256_file, sha256_folder, write_json
from gradprism.runtime.folders import OnExisting, atomic_folder
from gradprism.runtime.registry import Registry

MARKER = "export.json"


class Exporter(Protocol):
    """Writes the files of a route for another trainer."""

    def __call__(self, routes: Routes, folder: Path, /, **options: object) -> Iterable[str] | None:
        """Writes into `folder`, which is new and empty; returns warnings for the user, if there are any.

        `routes.sft` are trajectories and `routes.rl` tasks; `routes.sets` gives both without holding all in memory. `options` are the
        exporter's own, as keyword arguments.
        """
        ...


EXPORTERS: Registry[Exporter] = Registry(
    "exporter",
    {
        "axolotl": "gradprism.exporting.axolotl:export_axolotl",
        "datasets": "gradprism.exporting.hf_datasets:export_datasets",
        "llamafactory": "gradprism.exporting.llamafactory:export_llamafactory",
        "ms-swift": "gradprism.exporting.ms_swift:export_ms_swift",
        "nemo-rl": "gradprism.exporting.nemo_rl:export_nemo_rl",
        "openrlhf": "gradprism.exporting.openrlhf:export_openrlhf",
        "prime-rl": "gradprism.exporting.prime_rl:export_prime_rl",
        "skyrl": "gradprism.exporting.skyrl:export_skyrl",
        "tinker": "gradprism.exporting.tinker:export_tinker",
        "trl": "gradprism.exporting.trl:export_trl",
        "verl": "gradprism.exporting.verl:export_verl",
    },
)
register_exporter = EXPORTERS.register


class Export(BaseModel):
    """The contents of `export.json`.

    `source`: the route folder, and `source_sha256` of all that is in it; both None for a route in memory. `routing`: how the route was
    made. `files`: SHA-256 of each file by name. `warnings`: facts that the trainer's user must know.
    """

    model_config = ConfigDict(frozen=True)

    format: str
    source: str | None
    source_sha256: str | None
    routing: Routing
    files: Mapping[str, str]
    warnings: tuple[str, ...]
    versions: Mapping[str, str]


def _of_route(routing: Routing, format: str) -> Iterator[str]:
    if routing.weights and routing.n_rl:
        yield f"the weight of RL's rows is a column that {format} hands on and does not draw by: sample the rows by it, or all are alike"
    if routing.order:
        yield f"rows are in the {routing.order} order of their scores, which {format} keeps only where its shuffling is turned off"


def export(
    routes: Routes | Path | str, format: str, out: Path | str, *, on_existing: OnExisting = "fail", **options: object
) -> Export:
    """Writes a route (or route folder) into the folder `out` in another trainer's `format`, whole or not at all.

    `on_existing` is `replace`, which replaces an earlier export in that format alone, or `fail`. Raises `ConfigError` for an unknown
    format or option, `MissingFileError` or `DataError`, naming file and line, for a broken route folder, and `FolderInUseError`.
    """
    write = EXPORTERS[format]
    if not isinstance(routes, Routes):
        routes = Routes.load(routes)
    with atomic_folder(Path(out), on_existing, MARKER, f"{format} export") as folder:
        try:
            warnings = [*(write(routes, folder, **options) or ()), *_of_route(routes.routing, format)]
        except TypeError as error:
            if options and "unexpected keyword argument" in str(error):
                raise ConfigError(f"exporter {format!r}: {error}") from None
            raise
        made = Export(
            format=format,
            source=routes.folder and str(routes.folder),
            source_sha256=routes.folder and sha256_folder(routes.folder),
            routing=routes.routing,
            warnings=tuple(warnings),
            files={str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()},
            versions={"gradprism": __version__, "pyarrow": pa.__version__},
        )
        write_json(folder / MARKER, made.model_dump())
    return made
