"""A bundle: the pages with their data inside, as one HTML file or a folder, which open from a disk and ask no network.

Every resource is there under its path (`web/src/api.ts`), gzipped; what the server answers row by row comes in blocks.
"""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradprism.runtime.errors import ConfigError, GradprismError
from gradprism.runtime.files import atomic_write
from gradprism.runtime.folders import atomic_folder
from gradprism.runtime.progress import Progress, say
from gradprism.studio.corpus import Corpus
from gradprism.studio.folders import Folder
from gradprism.studio.meta import audit_view
from gradprism.studio.resources import Resources, to_json
from gradprism.studio.runs import Parts, episode_views
from gradprism.studio.static_files import read_static
from gradprism.studio.trajectory import tokens_problem, tokens_view, trajectory_view

BLOCK = 64
_LARGE = 100 << 20  # bytes of one file that a browser takes long to open
_LINK = '<link rel="stylesheet" href="app.css">'
_SCRIPT = '<script type="module" src="app.js"></script>'
_SERVER = '<meta name="gradprism-source" content="server">'
_DATA = "data.js"
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src data: blob:; connect-src 'none'; base-uri 'none'; "
    "form-action 'none'"
)


def export_bundle(resources: Resources, out: Path, most_texts: int | None = None) -> Path:
    """Writes `out`: a file where its name ends in `.html`, else a folder, which replaces an earlier bundle alone.

    `most_texts`: of corpora with more trajectories the texts are left out. Raises `FolderInUseError` for a folder that holds anything
    else, `WriteError`, and what a folder's readers raise.
    """
    if out.suffix.lower() in (".html", ".htm"):
        if out.is_dir():
            raise ConfigError(f"{out}: is a folder; name an HTML file, or a folder whose name does not end in .html")
        _write_file(resources, out, most_texts)
    else:
        _write_folder(resources, out, most_texts)
    return out


def _write_file(resources: Resources, out: Path, most_texts: int | None) -> None:
    script, style = (read_static(name).decode() for name in ("app.js", "app.css"))
    head = _page("file", _POLICY.format(script=_hash(script), style=_hash(style)))
    head = head.replace(_LINK, f"<style>{style}</style>").replace(_SCRIPT, "")
    before, _, after = head.rpartition("</body>")
    size = 0
    with atomic_write(out, "wb") as file:
        file.write(before.encode())
        for path, content in bundle_files(resources, most_texts):
            encoded = _packed(content)
            size += len(encoded)
            file.write(f'<script type="application/octet-stream" data-path="{path}">'.encode() + encoded + b"</script>\n")
        # Behind the data, so that all of it is there when the script runs.
        file.write(f'<script type="module">{script}</script>\n</body>{after}'.encode())
    if size > _LARGE:
        say(f"{out}: has {size >> 20} MiB, which a browser takes long to open; export into a folder, which is read piece by piece")


def _write_folder(resources: Resources, out: Path, most_texts: int | None) -> None:
    with atomic_folder(out, "replace", _DATA, "exported studio") as folder:
        names: dict[str, str] = {}
        for number, (path, content) in enumerate(bundle_files(resources, most_texts)):
            names[path] = f"data/{number}.js"
            with atomic_write(folder / names[path], "wb") as file:
                file.write(f"gradprismData({json.dumps(path)},".encode() + b'"' + _packed(content) + b'");\n')
        (folder / _DATA).write_text(f"globalThis.gradprismFiles = {json.dumps(names)};\n", encoding="utf-8")
        for name in ("app.js", "app.css"):
            (folder / name).write_bytes(read_static(name))
        # Modules may not be loaded from a disk, and a classic script has the same text.
        page = _page("folder", _POLICY.format(script="'self' file:", style="'self' file:"))
        loaded = f'<script src="{_DATA}"></script>\n<script defer src="app.js"></script>'
        (folder / "index.html").write_text(page.replace(_SCRIPT, loaded), encoding="utf-8")


def _page(source: str, policy: str) -> str:
    page = read_static("index.html").decode()
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return page.replace(_SERVER, f'{meta}\n<meta name="gradprism-source" content="{source}">')


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _packed(content: bytes) -> bytes:
    return base64.b64encode(gzip.compress(content, 6, mtime=0))


def bundle_files(resources: Resources, most_texts: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Every resource of the folders by its path; of a folder that cannot be read the index says why."""
    index = resources.index()
    problems, folders = index["problems"], resources.tree.all()
    made: list[tuple[str, bytes]] = []
    shown = {entry["corpus"] for entry in index["entries"]} - {None}
    by_id = {folder.id: folder for folder in folders}
    with Progress("exporting", len(folders)) as progress:
        for folder in folders:
            progress.advance()
            try:
                if folder.id in shown:
                    yield from _corpus_files(resources, folder, most_texts)
                if folder.kind in ("run", "training", "evaluation") and folder.parent not in by_id:
                    made = list(_run_files(resources, folder))
                    yield from made
                if folder.kind in ("run", "results") and (folder.path / "results.json").is_file():
                    path = f"results/{folder.id}.json"
                    yield path, resources.get(path, {}).content
            except GradprismError as error:
                message, _, hint = str(error).rpartition("; ")
                problems.append({"message": message or hint, "hint": hint if message else ""})
                say(f"left out: {error}")
    yield "index.json", to_json(index)


def _corpus_files(resources: Resources, folder: Folder, most_texts: int | None) -> Iterator[tuple[str, bytes]]:
    corpus = resources.corpus(folder.id)
    at = f"corpus/{folder.id}"
    names = ["meta.json", "columns.bin", "more.bin", "previews.bin"]
    names += ["profile.json", "profiles.bin"] if corpus.probe is not None else []
    first = [(f"{at}/{name}", resources.get(f"{at}/{name}", {}).content) for name in names]  # before anything is written
    yield from first
    for route in resources.routes_of(folder):
        try:
            yield f"{at}/routes/{route.id}.bin", resources.get(f"{at}/routes/{route.id}.bin", {}).content
        except GradprismError:  # one that `meta.json` leaves out as well
            continue
    yield f"{at}/audit.json", to_json(_audits(corpus))
    if most_texts is not None and len(corpus) > most_texts:
        say(f"{folder.shown}: the texts of its {len(corpus)} trajectories are left out; `gradprism studio` shows them")
        return
    blocks = range(math.ceil(len(corpus) / BLOCK))
    tokenizer = resources.tokenisers.find(corpus)
    has_tokens = not tokens_problem(corpus, tokenizer)
    for block in blocks:
        rows = range(block * BLOCK, min(len(corpus), (block + 1) * BLOCK))
        yield f"{at}/trajectories/{block}.json", to_json([trajectory_view(corpus, row) for row in rows])
        if has_tokens:
            yield f"{at}/tokens/{block}.json", to_json([tokens_view(corpus, row, tokenizer) for row in rows])


def _audits(corpus: Corpus) -> dict[str, object]:
    """The audit of each metric's median cut."""
    found = {}
    for column in (*corpus.columns(), *corpus.more()):
        if column.kind == "metric":
            try:
                audit, cut = corpus.audit(column.name)
            except GradprismError:  # undefined for some
                continue
            found[column.name] = audit_view(audit, column.name, cut)
    return found


def _run_files(resources: Resources, folder: Folder) -> Iterator[tuple[str, bytes]]:
    at = f"run/{folder.id}"
    yield f"{at}.json", resources.get(f"{at}.json", {}).content
    parts: Parts = resources.parts(folder.id)
    for training in parts.of("training"):
        yield f"{at}/log/{training.id}.json", resources.get(f"{at}/log/{training.id}.json", {}).content
    for evaluation in parts.of("evaluation"):
        yield f"{at}/episodes/{evaluation.id}.json", resources.get(f"{at}/episodes/{evaluation.id}.json", {}).content
        episodes: Sequence[object] = episode_views(evaluation)
        for block in range(math.ceil(len(episodes) / BLOCK)):
            these = episodes[block * BLOCK : (block + 1) * BLOCK]
            yield f"{at}/episodes/{evaluation.id}/blocks/{block}.json", to_json(these)
