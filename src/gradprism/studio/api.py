"""The studio's doors: `serve_studio` serves folders to a browser, `export_studio` writes the same pages as a bundle."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from gradprism.experiments.results import read_results
from gradprism.runtime.errors import ConfigError, MissingDependencyError
from gradprism.studio.bundle import export_bundle
from gradprism.studio.resources import Resources

REPORT = "report.html"
MOST_TEXTS = 20_000  # of a report, which every run writes
Paths = str | Path | Sequence[str | Path]


def serve_studio(
    paths: Paths, *, port: int | None = None, browser: bool = True, device_tflops: float | None = None, models: Paths = ()
) -> None:
    """Serves probe, route, run and results folders, or trees that hold some, to a browser on this machine, until it is interrupted.

    Prints an address with a token, without which nothing is answered. Files are read again when they change; only overrides of routes
    are written. Needs the extra `studio`.

    Args:
        paths: Folders; nothing outside of them is read, but for `models`.
        port: Default 8126, or a free one where that is taken.
        browser: Whether to open the address.
        device_tflops: Speed of a device, by which hours of training are told in place of a run's ledger.
        models: Folders of models whose tokenizers split texts into tokens.

    Raises:
        MissingFileError: No such folder, or a model without a tokenizer.
        MissingDependencyError: The extra is not installed.
        ConfigError: The port is taken.
    """
    resources = Resources(_names(paths), device_tflops, _names(models))
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(f"the studio needs {package}; pip install 'gradprism[studio]', or export its pages")
    from gradprism.studio.server import serve  # what only this needs, and is an extra

    serve(resources, port, browser)


def export_studio(paths: Paths, out: str | Path, *, device_tflops: float | None = None, models: Paths = ()) -> Path:
    """Writes the studio's pages with all data inside: an HTML file where `out` ends in `.html`, else a folder; returns its path.

    Both open from a disk, without a server or a network. A folder replaces an earlier export alone. The other arguments are those of
    `serve_studio`.

    Raises:
        MissingFileError: No such folder, or a model without a tokenizer.
        FolderInUseError: `out` is a folder that holds something else.
    """
    return export_bundle(Resources(_names(paths), device_tflops, _names(models)), Path(out).expanduser())


def write_report(folder: str | Path, out: str | Path | None = None, *, models: Paths = ()) -> Path:
    """Writes the bundle of one folder of results (default `folder`/report.html), and returns its path.

    Texts of a corpus of more than `MOST_TEXTS` trajectories are left out. Raises what `read_results` does, and `ConfigError` where `out`
    is a folder.
    """
    folder, out = Path(folder), Path(out or Path(folder) / REPORT)
    read_results(folder)
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out}: {'is a folder' if out.is_dir() else 'does not end in .html'}; --out names the HTML file")
    named = [model for model in _names(models) if (Path(model).expanduser() / "tokenizer.json").is_file()]
    return export_bundle(Resources([str(folder)], None, named), out, MOST_TEXTS)


def _names(paths: Paths) -> tuple[str, ...]:
    return (str(paths),) if isinstance(paths, str | Path) else tuple(map(str, paths))
