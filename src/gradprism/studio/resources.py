"""Resources by their paths: what the server answers and what a bundle holds, byte for byte. `web/src/api.ts` lists them."""

import contextlib
import dataclasses
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from gradprism import __version__
from gradprism.probing.folder import ProbeFolder
from gradprism.routing.routes import Routes
from gradprism.routing.split import ProbeOrigin, Routing
from gradprism.runtime.errors import ConfigError, DataError, GradprismError, MissingFileError
from gradprism.studio.columns import Column, encode, text
from gradprism.studio.corpus import Corpus
from gradprism.studio.folders import RESULTS, Folder, Problem, Tree
from gradprism.studio.meta import audit_view, corpus_meta, load_routes, read_only_because, route_columns, route_meta
from gradprism.studio.results import results_view
from gradprism.studio.runs import Parts, episode_list, episode_view, is_running, log_view, run_view
from gradprism.studio.summaries import summary
from gradprism.studio.trajectory import Tokenisers, tokens_view, trajectory_view

API = 1
JSON, BINARY = "application/json", "application/octet-stream"
_WARM_RESULTS = 4
_CORPORA = 4  # that are held at once: one hundred thousand trajectories of 252 matrices take a quarter of a GiB
T = TypeVar("T")


class ChangedError(DataError):
    """A folder is not the one that a page was made of."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The bytes of a resource and their type; `version` changes with them."""

    content: bytes
    type: str
    version: str


@dataclass
class Resources:
    """The resources of the folders below `roots`; `models` are those whose tokenizers may be opened."""

    roots: Sequence[str]
    device_tflops: float | None = None
    models: Sequence[str] = ()
    tree: Tree = field(init=False)
    tokenisers: Tokenisers = field(init=False)
    _corpora: dict[str, Corpus] = field(default_factory=dict)
    _kept: dict[tuple[str, str], tuple[str, Any]] = field(default_factory=dict)
    _making: dict[tuple[str, str], threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.tree = Tree(self.roots)
        self.tokenisers = Tokenisers(self.models, [Path(root).expanduser().resolve() for root in self.roots])
        _ = self.tokenisers.by_fingerprint  # raises for a model that has none
        self.tree.scan()

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        """The resource at `path`; raises `MissingFileError` where there is none, `ChangedError`, and what its folder's readers raise."""
        for pattern, make in _RESOURCES:
            if found := pattern.fullmatch(path):
                return make(self, query, **found.groupdict())
        raise MissingFileError(f"{path[:200]!r}: no such resource; load the page again")

    def once(self, kind: str, folder: Folder, make: Callable[[], T]) -> T:
        """What `make` gives of a folder, made once for each of its versions; those that ask for it meanwhile wait."""
        version, key = folder.version(), (kind, folder.id)
        with self._lock:
            making = self._making[key]
        with making:
            kept = self._kept.get(key)
            if kept is None or kept[0] != version:
                kept = self._kept[key] = (version, make())
            return kept[1]

    # --- folders

    def corpus(self, id: str, version: str | None = None) -> Corpus:
        """The corpus of a folder as it is now; raises `ChangedError` where that is not the `version` that was asked for."""
        folder = self.tree.folder(id)
        if folder.kind not in ("probe", "route"):
            raise MissingFileError(f"{folder.shown}: is no corpus; choose a probe or a route")
        now = folder.version()
        if version is not None and version != now:
            raise ChangedError(f"{folder.shown}: has changed since it was read; load it again")
        with self._lock:
            found = self._corpora.pop(id, None)
            if found is None or found.version != now:
                found = Corpus.open(folder)
            self._corpora[id] = found  # the one that was asked for last stands last
            for oldest in list(self._corpora)[:-_CORPORA]:
                del self._corpora[oldest]
        return found

    def parts(self, id: str) -> Parts:
        """A run, or a training or evaluation by itself."""
        folder = self.tree.folder(id)
        if folder.kind not in ("run", "training", "evaluation"):
            raise MissingFileError(f"{folder.shown}: is no run; choose one from the list")
        return Parts(folder, [other for other in self.tree.all() if other.parent == folder.id])

    def routing(self, folder: Folder) -> Routing:
        """How a route was made."""
        return self.once("routing", folder, lambda: Routing.read(folder.below("routing.json")))

    def origin(self, folder: Folder) -> ProbeOrigin:
        """By what a probe is known to its routes."""
        return self.once("origin", folder, lambda: ProbeOrigin.of(ProbeFolder(folder.path).manifest))

    def origins(self) -> list[tuple[Folder, ProbeOrigin]]:
        """The probes, and by what each is known."""
        found = []
        for folder in self.tree.all():
            if folder.kind == "probe":
                with contextlib.suppress(GradprismError):  # the index says what is wrong with it
                    found.append((folder, self.origin(folder)))
        return found

    def routes_of(self, corpus: Folder) -> list[Folder]:
        """The routes of a probe; of a route without its probe, that route."""
        if corpus.kind == "route":
            return [corpus]
        origins = self.origins()
        return [folder for folder in self.tree.all() if folder.kind == "route" and self.probe_of(folder, origins) == corpus]

    def probe_of(self, route: Folder, origins: Sequence[tuple[Folder, ProbeOrigin]]) -> Folder | None:
        """The probe that a route was made of: within the same run if it can be, else the first that is the same; None for none."""
        try:
            wanted = self.routing(route).probe
        except GradprismError:
            return None
        found = [folder for folder, origin in origins if origin == wanted]
        return min(found, key=lambda folder: folder.parent != route.parent, default=None)

    def route(self, corpus: Corpus, id: str) -> Folder:
        """A route of a corpus."""
        found = next((folder for folder in self.routes_of(corpus.folder) if folder.id == id), None)
        if found is None:
            raise MissingFileError(f"{corpus.folder.shown}: has no route {id[:40]!r}; load it again")
        return found

    # --- answers

    def index(self) -> dict[str, Any]:
        """`Index` of `web/src/api.ts`."""
        folders = self.tree.scan()
        origins = self.origins()
        return {
            "api": API,
            "version": __version__,
            "roots": list(self.roots),
            "entries": [self._entry(folder, origins) for folder in folders],
            "problems": [dataclasses.asdict(problem) for problem in self.tree.problems],
        }

    def _entry(self, folder: Folder, origins: Sequence[tuple[Folder, ProbeOrigin]]) -> dict[str, Any]:
        about: dict[str, Any] = {"id": folder.id, "kind": folder.kind, "name": folder.name, "path": folder.shown}
        corpus, problem, told, version, modified = None, None, "", "", 0.0
        try:
            version, modified = folder.version(), folder.modified()
            told = self.once("summary", folder, lambda: summary(folder))
            if folder.kind in ("probe", "route"):
                corpus = folder.id
                if folder.kind == "route" and (probe := self.probe_of(folder, origins)) is not None:
                    corpus = probe.id
        except GradprismError as error:
            problem = dataclasses.asdict(Problem.of(error))
        has_results = folder.kind in ("run", "results") and (folder.path / RESULTS).is_file()
        return about | {
            "modified": modified,
            "version": version,
            "running": is_running(folder),
            "summary": told,
            "problem": problem,
            "corpus": corpus,
            "run": (folder.parent or folder.id) if folder.kind in ("run", "training", "evaluation") else None,
            "results": folder.id if has_results else None,
            "parent": folder.parent,
        }

    def warm(self) -> None:
        """Reads the corpus that was written last, and some results, so that pages need not wait; what is wrong they say themselves."""
        folders = self.tree.all()
        with contextlib.suppress(GradprismError):
            if corpora := [folder for folder in folders if folder.kind == "probe"]:
                self.corpus(max(corpora, key=Folder.modified).id).warm()
        for folder in [folder for folder in folders if folder.kind == "results"][:_WARM_RESULTS]:
            with contextlib.suppress(GradprismError):
                self.results(folder)

    def results(self, folder: Folder) -> dict[str, Any]:
        """`ResultsView` of `web/src/api.ts`, whose statistics take seconds."""
        return self.once("results", folder, lambda: results_view(folder))

    def override(self, corpus_id: str, route_id: str, rows: Sequence[int], side: Any, reason: str, version: str) -> dict[str, Any]:
        """Overrides a route and gives its new `RouteMeta`; raises `ConfigError` for what cannot be, and `ChangedError`."""
        corpus = self.corpus(corpus_id)
        folder = self.route(corpus, route_id)
        if (because := read_only_because(corpus, folder)) is not None:
            raise ConfigError(f"{because.message}; {because.hint}")
        if folder.version() != version:
            raise ChangedError(f"{folder.shown}: has changed since it was read; load it again")
        if not rows or not all(0 <= row < len(corpus) for row in rows):
            raise ConfigError(f"override: rows must be 0 to {len(corpus) - 1}, and one at least; choose some in the table")
        ids = corpus.frame["id"].gather(list(rows)).to_list()
        assert corpus.probe is not None  # else it is read-only
        Routes.override_folder(folder.path, ids, side, reason, corpus.probe)
        return route_meta(corpus, folder)


def to_json(value: Any) -> bytes:
    """A value as JSON; numbers that are not finite are null."""
    return msgspec.json.encode(value)


def _json(value: Any, version: str = "") -> Answer:
    return Answer(to_json(value), JSON, version)


def _binary(columns: Sequence[Column], version: str, n: int) -> Answer:
    return Answer(encode(columns, version, n), BINARY, version)


def _index(self: Resources, query: Mapping[str, str]) -> Answer:
    return _json(self.index())


def _meta(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    corpus = self.corpus(id)
    run = self.tree.folder(corpus.folder.parent) if corpus.folder.parent else None
    tokenizer = self.tokenisers.find(corpus)
    routes = [folder for folder in self.routes_of(corpus.folder) if _is_whole(corpus, folder)]
    return _json(corpus_meta(corpus, routes, run, tokenizer, self.device_tflops), corpus.version)


def _is_whole(corpus: Corpus, folder: Folder) -> bool:
    """Whether a route can be read; the index says what is wrong with one that cannot."""
    try:
        load_routes(corpus, folder).audit()
    except GradprismError:
        return corpus.folder == folder
    return True


def _columns(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    return _binary(corpus.columns(), corpus.version, len(corpus))


def _more(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    return _binary(corpus.more(), corpus.version, len(corpus))


def _previews(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    return _binary([text("preview", "beginning", corpus.texts.previews())], corpus.version, len(corpus))


def _profile(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    profiles = corpus.profiles
    return _json({"mean": profiles.mean.tolist(), "std": profiles.std.tolist()}, corpus.version)


def _profiles(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    # Twelve bits of each number are enough for distances, and pack in two thirds of the space.
    z = (corpus.profiles.z.reshape(-1).view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)
    return _binary([Column("profile", "profile", "measure", z)], corpus.version, len(corpus))


def _route(self: Resources, query: Mapping[str, str], id: str, route: str) -> Answer:
    corpus = self.corpus(id)
    folder = self.route(corpus, route)
    return _binary(route_columns(load_routes(corpus, folder)), folder.version(), len(corpus))


def _trajectory(self: Resources, query: Mapping[str, str], id: str, row: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    return _json(trajectory_view(corpus, int(row)), corpus.version)


def _tokens(self: Resources, query: Mapping[str, str], id: str, row: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    return _json(tokens_view(corpus, int(row), self.tokenisers.find(corpus)), corpus.version)


def _distances(self: Resources, query: Mapping[str, str], id: str, row: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    if int(row) >= len(corpus):
        raise MissingFileError(f"{corpus.folder.shown}: has no row {row}; go back to the table")
    found = corpus.profiles.distances(int(row))
    return _binary([Column("distance", "distance", "measure", found)], corpus.version, len(corpus))


def _search(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    wanted = query.get("q", "").strip()
    found = corpus.texts.search(wanted) if wanted else np.arange(len(corpus), dtype=np.uint32)
    return _binary([Column("row", "row", "measure", found)], corpus.version, len(corpus))


def _audit(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    corpus = self.corpus(id, query.get("v"))
    try:
        threshold = float(query["threshold"]) if "threshold" in query else None
    except ValueError:
        raise ConfigError(f"threshold {query['threshold'][:40]!r}: is no number; give one") from None
    column = query.get("column", "")
    audit, cut = corpus.audit(column, threshold)
    return _json(audit_view(audit, column, cut), corpus.version)


def _run(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    parts = self.parts(id)
    corpora = [folder for folder in parts.within if folder.kind == "probe"]
    has_results = parts.run.kind == "run" and (parts.run.path / RESULTS).is_file()
    view = run_view(parts, corpora, has_results, self.once)
    return _json(view, view["version"])


def _log(self: Resources, query: Mapping[str, str], id: str, training: str) -> Answer:
    view = log_view(self.parts(id).one("training", training))
    return _json(view, view["version"])


def _episodes(self: Resources, query: Mapping[str, str], id: str, evaluation: str) -> Answer:
    view = episode_list(self.parts(id).one("evaluation", evaluation))
    return _json(view, view["version"])


def _episode(self: Resources, query: Mapping[str, str], id: str, evaluation: str, n: str) -> Answer:
    folder = self.parts(id).one("evaluation", evaluation)
    return _json(episode_view(folder, int(n)), folder.version())


def _results(self: Resources, query: Mapping[str, str], id: str) -> Answer:
    folder = self.tree.folder(id)
    if not (folder.kind in ("run", "results") and (folder.path / RESULTS).is_file()):
        raise MissingFileError(f"{folder.shown}: holds no {RESULTS}; it is written when something is done")
    view = self.results(folder)
    return _json(view, view["version"])


_ID, _NUMBER = r"[0-9a-f]{12}", r"\d{1,9}"
_RESOURCES: list[tuple[re.Pattern[str], Callable[..., Answer]]] = [
    (re.compile(pattern), make)
    for pattern, make in (
        (r"index\.json", _index),
        (rf"corpus/(?P<id>{_ID})/meta\.json", _meta),
        (rf"corpus/(?P<id>{_ID})/columns\.bin", _columns),
        (rf"corpus/(?P<id>{_ID})/more\.bin", _more),
        (rf"corpus/(?P<id>{_ID})/previews\.bin", _previews),
        (rf"corpus/(?P<id>{_ID})/profile\.json", _profile),
        (rf"corpus/(?P<id>{_ID})/profiles\.bin", _profiles),
        (rf"corpus/(?P<id>{_ID})/routes/(?P<route>{_ID})\.bin", _route),
        (rf"corpus/(?P<id>{_ID})/trajectory/(?P<row>{_NUMBER})\.json", _trajectory),
        (rf"corpus/(?P<id>{_ID})/tokens/(?P<row>{_NUMBER})\.json", _tokens),
        (rf"corpus/(?P<id>{_ID})/distances/(?P<row>{_NUMBER})\.bin", _distances),
        (rf"corpus/(?P<id>{_ID})/search\.bin", _search),
        (rf"corpus/(?P<id>{_ID})/audit\.json", _audit),
        (rf"run/(?P<id>{_ID})\.json", _run),
        (rf"run/(?P<id>{_ID})/log/(?P<training>{_ID})\.json", _log),
        (rf"run/(?P<id>{_ID})/episodes/(?P<evaluation>{_ID})\.json", _episodes),
        (rf"run/(?P<id>{_ID})/episodes/(?P<evaluation>{_ID})/(?P<n>{_NUMBER})\.json", _episode),
        (rf"results/(?P<id>{_ID})\.json", _results),
    )
]
