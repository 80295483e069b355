"""Things that users add by name: metrics, policies, corpus formats, environments and exporters.

A registry is filled by its decorator, and by the entry points of installed packages. An entry point is loaded when its name is asked
for, so that what is installed and not used costs nothing. `package.module:attribute` names a thing that nobody has registered.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from gradprism.runtime.errors import ConfigError, GradprismError, one_line
from gradprism.runtime.progress import say

T = TypeVar("T")
Added = TypeVar("Added")


def as_names(given: str | Iterable[str]) -> tuple[str, ...]:
    """The names given; a bare string is one of them, not its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


class Registry(Mapping[str, T], Generic[T]):
    """The known things of one kind: a read-only mapping from names, those of this package first.

    `kind` names one of them in messages ("metric"). Entry points are those of the group `gradprism.<kind>s`, `policies` for a policy:

        [project.entry-points."gradprism.metrics"]
        peak = "my_package.metrics:peak"

    `builtin` maps names of this package's own things to where they are (`module:attribute`), for those that are expensive to import.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.group = f"gradprism.{kind[:-1]}ies" if kind.endswith("y") else f"gradprism.{kind}s"
        self._known: dict[str, T] = {}
        self._asked: set[str] = set()
        self._builtin = [EntryPoint(name, value, self.group) for name, value in (builtin or {}).items()]

    def register(self, name: str) -> Callable[[Added], Added]:
        """A decorator that adds what it decorates under `name`; raises `ConfigError` where the name is taken by something else.

        The same definition may come again, as when a notebook's cell is run twice.
        """
        if not isinstance(name, str):  # a decorator without its parentheses
            raise ConfigError(f'register_{self.kind}: give a name, as in @register_{self.kind}("mine")')

        def add(thing: Added) -> Added:
            taken = next((point.value for point in self._builtin if point.name == name), None) or _origin(self._known.get(name))
            if taken not in (None, _origin(thing)):
                raise ConfigError(f"{self.kind} {name!r}: is registered already, by {taken}; choose another name")
            self._known[name] = thing  # pyright: ignore[reportArgumentType] # T is what the registry's readers expect
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        """The thing of that name; raises `ConfigError`, which lists the names, where there is none."""
        if name in self._known:
            self._say_hidden(name)
            return self._known[name]
        point = EntryPoint(name, name, self.group) if ":" in name else self._points().get(name)
        if point is None:
            raise ConfigError(f"{self.kind} {name!r}: choose one of {', '.join(self)}, or name one as package.module:attribute")
        try:
            return self._known.setdefault(name, point.load())
        except GradprismError:  # such as a package that is not installed
            raise
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self.kind} {name!r}: {point.value} cannot be loaded ({error})") from None

    def call(self, name: str, *arguments: Any) -> Any:
        """What the thing of that name returns; whatever it raises that is none of ours is one `ConfigError`, which names it."""
        thing: Any = self[name]
        try:
            return thing(*arguments)
        except GradprismError:
            raise
        except Exception as error:
            raise ConfigError(f"{self.kind} {name!r}: raised {type(error).__name__}: {one_line(error)}") from error

    def checked(self, name: str) -> str:
        """The name itself, for a configuration's validator; raises `ConfigError` where there is no such thing."""
        _ = self[name]
        return name

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self._points()

    def __iter__(self) -> Iterator[str]:
        names = [point.name for point in self._builtin]
        yield from names
        yield from (name for name in self._known if name not in names and ":" not in name)
        yield from sorted(self._points().keys() - self._known.keys() - set(names))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _say_hidden(self, name: str) -> None:
        """Says once where an installed package has a thing of the name that this package's own takes."""
        if name in self._asked or not (_origin(self._known[name]) or "").startswith("gradprism."):
            return
        self._asked.add(name)
        for point in entry_points(group=self.group, name=name):
            if not point.value.startswith("gradprism."):
                say(f"warning: {self.kind} {name!r} is gradprism's own; {point.value} has the same name and is not used, rename it")

    def _points(self) -> dict[str, EntryPoint]:
        """Things that are loaded when they are asked for; the package's own stand before those of others."""
        return {point.name: point for point in (*entry_points(group=self.group), *self._builtin)}


def _origin(thing: object) -> str | None:
    return None if thing is None else f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', repr(thing))}"
