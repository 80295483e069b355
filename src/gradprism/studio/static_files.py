"""The built pages that come with the package: `web/`'s build, which a test compares with its sources."""

from functools import cache
from pathlib import Path

from gradprism.runtime.errors import MissingFileError

STATIC = ("index.html", "app.js", "app.css")
_FOLDER = Path(__file__).parent / "static"


@cache
def read_static(name: str) -> bytes:
    """One of `STATIC`; raises `MissingFileError` in a source tree whose pages have not been built."""
    try:
        return (_FOLDER / name).read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{_FOLDER / name}: no such file; build the pages by `npm ci && npm run build` in web/") from None
