"""Files that come with the package: tiny base models, a corpus, the quickstart's configuration, and templates to begin with."""

from pathlib import Path

from gradprism.runtime.errors import ConfigError, FolderInUseError
from gradprism.runtime.files import atomic_write

_DATA = Path(__file__).parent / "data"
_PREFIX = "shipped:"
TEMPLATES = {
    "alfworld": ("alfworld.toml",),
    "webshop": ("webshop.toml",),
    "own": ("own.toml", "own_environment.py"),
}
MODELS = ("alfworld-tiny", "dialogue-tiny", "stories-tiny", "webshop-tiny")
EXTRAS = ("alfworld", "webshop")  # templates whose environment needs the extra of the same name


def shipped(name: str) -> Path:
    """Path of a file or folder that comes with the package.

    `alfworld-tiny`, `dialogue-tiny`, `stories-tiny` and `webshop-tiny` are base models (0.75, 0.76, 0.76 and 1.03 million parameters),
    `alfworld-quickstart.jsonl` is a corpus of 564 expert trajectories, and `quickstart.toml` the configuration of `gradprism quickstart`.
    Raises `ConfigError` for any other name.
    """
    names = sorted(path.name for path in _DATA.iterdir() if path.name != "templates")
    if name not in names:
        raise ConfigError(f"{_PREFIX}{name}: does not come with gradprism; choose one of {', '.join(names)}")
    return _DATA / name


def resolve_shipped(name: str) -> str:
    """The path of a name such as `shipped:alfworld-tiny`; any other name as it is. Raises `ConfigError` as `shipped` does."""
    return str(shipped(name.removeprefix(_PREFIX))) if name.startswith(_PREFIX) else name


def shipped_name(path: Path | str) -> str | None:
    """The name, such as `shipped:alfworld-tiny`, of a file or folder that comes with the package; None for any other path."""
    found = Path(path).resolve()
    return _PREFIX + found.name if found.parent == _DATA.resolve() else None


def resolve_shipped_model(name: str) -> str:
    """`resolve_shipped` of a model's name; raises `ConfigError`, which lists the models, for anything else that would be shipped."""
    models = sorted(path.name for path in _DATA.iterdir() if (path / "config.json").is_file())
    if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in models:
        raise ConfigError(f"{name}: is no model that comes with gradprism; choose one of {', '.join(models)}")
    return resolve_shipped(name)


def write_template(template: str, folder: Path) -> list[Path]:
    """Writes a commented configuration to begin with into `folder`, and for `own` a small environment; returns their paths.

    Raises `ConfigError` for an unknown template, and `FolderInUseError` where one of the files exists already.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"template {template!r}: choose one of {', '.join(TEMPLATES)}")
    paths = [folder / name for name in TEMPLATES[template]]
    for path in paths:
        if path.exists():
            raise FolderInUseError(f"{path}: exists already; move it away, or give another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        with atomic_write(path) as file:
            file.write((_DATA / "templates" / path.name).read_text(encoding="utf-8"))
    return paths
