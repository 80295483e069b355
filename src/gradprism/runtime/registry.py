"""Things that users add by name: metrics, policies, corpus formats, environments and exporters.

A registry is filled by its decorator, and by the entry points of installed packages. An entry point is loaded when its name is asked
for, so that what is installed and not used costs nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from gradprism.runtime.errors import ConfigError

T = TypeVar("T")
Added = TypeVar("Added")


class Registry(Mapping[str, T], Generic[T]):
    """The known things of one kind: a read-only mapping from names, those of this package first.

    `kind` names one of them in messages ("metric"). Entry points are those of the group `gradprism.<kind>s`, `policies` for a policy:

        [project.entry-points."gradprism.metrics"]
        hoyer = "my_package.metrics:hoyer"
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.group = f"gradprism.{kind[:-1]}ies" if kind.endswith("y") else f"gradprism.{kind}s"
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Added], Added]:
        """A decorator that adds what it decorates under `name`; raises `ConfigError` where the name is taken by something else.

        The same definition may come again, as when a notebook's cell is run twice.
        """

        def add(thing: Added) -> Added:
            taken = self._known.get(name)
            if taken is not None and _origin(taken) != _origin(thing):
                raise ConfigError(f"{self.kind} {name!r}: is registered already, by {_origin(taken)}; choose another name")
            self._known[name] = thing  # pyright: ignore[reportArgumentType] # T is what the registry's readers expect
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        """The thing of that name; raises `ConfigError`, which lists the names, where there is none."""
        if name not in self._known:
            points = [point for point in entry_points(group=self.group) if point.name == name]
            if not points:
                raise ConfigError(f"{self.kind} {name!r}: choose one of {', '.join(self)}")
            try:
                self._known[name] = points[0].load()
            except (ImportError, AttributeError) as error:
                raise ConfigError(f"{self.kind} {name!r}: {points[0].value} cannot be loaded ({error})") from None
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known or any(point.name == name for point in entry_points(group=self.group))

    def __iter__(self) -> Iterator[str]:
        yield from self._known
        yield from sorted({point.name for point in entry_points(group=self.group)} - self._known.keys())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _origin(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(thing))}"
