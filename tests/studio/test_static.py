"""The pages in the package are the build of `web/`, so that what is read and what runs cannot part."""

import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
WEB, STATIC = ROOT / "web", ROOT / "src/gradprism/studio/static"
MOST = 1_500_000  # bytes in the wheel


def test_the_built_pages_are_the_sources():
    files = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts"]
    files += [path.relative_to(WEB).as_posix() for path in (WEB / "src").rglob("*") if path.is_file()]
    lines = "".join(f"{name} {_sha256((WEB / name).read_bytes())}\n" for name in sorted(files))
    built = json.loads((STATIC / "build.json").read_text())
    assert built["sources_sha256"] == _sha256(lines.encode()), "build the pages again: npm ci && npm run build, in web/"


def test_no_built_file_was_edited_and_none_is_beside_them():
    built = json.loads((STATIC / "build.json").read_text())["files"]
    found = {path.name: _sha256(path.read_bytes()) for path in STATIC.iterdir() if path.name != "build.json"}
    assert found == built and set(found) == {"app.css", "app.js", "index.html"}


def test_the_pages_are_small_and_stand_inline():
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < MOST
    for name in ("app.js", "app.css"):
        text = (STATIC / name).read_text().lower()
        assert "</script" not in text and "</style" not in text
    page = (STATIC / "index.html").read_text()
    assert '<script type="module" src="app.js"></script>' in page
    assert '<link rel="stylesheet" href="app.css">' in page
    assert '<meta name="gradprism-source" content="server">' in page


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
