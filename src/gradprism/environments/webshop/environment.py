"""WebShop as an `Environment`: a catalogue of the official files or a generated one, goals, sessions, an expert."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gradprism.environments.protocol import Environment, Info, Step, Task
from gradprism.environments.webshop.catalogue import GENERATED, make_catalogue, read_catalogue
from gradprism.environments.webshop.generated import generate_catalogue
from gradprism.environments.webshop.goals import Goal, make_goals, split_ranges
from gradprism.runtime.errors import ConfigError, MissingDependencyError

try:
    from gradprism.environments.webshop.expert import WebshopExpert
    from gradprism.environments.webshop.reward import score_purchase
    from gradprism.environments.webshop.shop import Shop, Visit, act, clickables, page, text
except ModuleNotFoundError as error:
    raise MissingDependencyError(f"environment 'webshop': {error}; pip install 'gradprism[webshop]'") from None

MAX_ACTION_CHARACTERS = 2000


@dataclass(frozen=True)
class WebshopEnvironment(Environment):
    """The catalogue in `data_dir`, or a generated one of `products` products and `seed`.

    `goals` is synthetic, human, or auto (human where the folder has people's instructions). `observation` is text or text_rich;
    `attributes` shows a product's attributes on a page of their own.
    """

    data_dir: str = ""
    products: int = 1000
    seed: int = 0
    goals: str = "auto"
    observation: str = "text"
    attributes: bool = False
    name = "webshop"
    splits = ("train", "eval", "test")  # the original's
    evaluation_splits = ("test",)  # the one that papers report
    dev_split = "eval"

    def __post_init__(self) -> None:
        if self.goals not in ("auto", "synthetic", "human"):
            raise ConfigError(f"goals {self.goals!r}: choose auto, synthetic or human")
        if self.observation not in ("text", "text_rich"):
            raise ConfigError(f"observation {self.observation!r}: choose text or text_rich")
        if not 1 <= self.products <= 10_000_000:
            raise ConfigError(f"products {self.products}: choose from 1 to 10,000,000")

    @property
    def store(self) -> "Store":
        """Products, index and goals; made once per process."""
        return _open_store(self.data_dir, self.products, self.seed, self.goals)

    def ids(self, split: str, task_type: str | None = None) -> Sequence[str]:
        """Ids of a split's goals in the shuffled order; the type of a task is its product's category."""
        store = self.store
        if task_type is not None and task_type not in (types := {goal.product.category for goal in store.goals}):
            raise ConfigError(f"task type {task_type!r}: choose one of {sorted(types)}")
        numbers = split_ranges(len(store.goals))[split]
        return [f"{store.id}/{n}" for n in numbers if task_type in (None, store.goals[n].product.category)]

    def find(self, task_id: str) -> Task:
        """The goal of an id such as `official-1000-1a2b3c4d5e6f/synthetic/17`."""
        number = self.store.number(task_id)
        split = next(split for split, numbers in split_ranges(len(self.store.goals)).items() if number in numbers)
        return Task(self.name, task_id, self.store.goals[number].product.category, split)

    def contents(self, tasks: Sequence[Task] | None = None) -> dict[str, str]:
        """The catalogue and its goals by the hash of all that is in them and of how a purchase is scored, and the tagger by its name."""
        return {"catalogue": self.store.id, "tagger": self.store.tagger}

    def remarks(self, tasks: Sequence[Task]) -> list[str]:
        """How many goals their own product does not fulfil: the original's rule for options does not know all of them again."""
        store = self.store
        goals = [store.goals[store.number(task.id)] for task in tasks]
        missed = sum(score_purchase(g, g.product, g.wanted_options, store.shop.nouns).reward < 1 for g in goals)
        if not missed:
            return []
        return [f"{missed} of {len(goals)} goals cannot be won with the product that they were made from, as in the original"]

    def session(self) -> "WebshopSession":
        """A session; all of a process share one store."""
        return WebshopSession(self.store, self.observation == "text_rich", self.attributes)

    def expert(self) -> WebshopExpert:
        """A fresh expert for one episode."""
        return WebshopExpert()


@dataclass(frozen=True, slots=True)
class Store:
    """A shop and its goals; `id` names the catalogue and the kind of goals, `tagger` what found the nouns of titles."""

    id: str
    tagger: str
    shop: Shop
    goals: list[Goal]

    def number(self, task_id: str) -> int:
        """The goal that a task's id names; raises `ConfigError` for an id of another catalogue."""
        prefix, _, number = task_id.rpartition("/")
        if prefix != self.id or not number.isdecimal() or len(number) > 9 or int(number) >= len(self.goals):
            raise ConfigError(
                f"goal {task_id!r}: this catalogue's goals are {self.id}/0 to {len(self.goals) - 1}; give the same data"
            )
        return int(number)


@functools.lru_cache(maxsize=4)
def _open_store(data_dir: str, products: int, seed: int, kind: str) -> Store:
    if data_dir:
        catalogue = read_catalogue(Path(data_dir).expanduser())
    else:
        catalogue = make_catalogue(GENERATED, *generate_catalogue(products, seed), {})
    human = kind == "human" or (kind == "auto" and bool(catalogue.human))
    goals = make_goals(catalogue, human)
    if not goals:
        raise ConfigError(
            f"{data_dir or 'the generated catalogue'}: has no {'human' if human else 'synthetic'} goals; choose the other"
        )
    name = f"{catalogue.id}/{'human' if human else 'synthetic'}"
    return Store(name, catalogue.tagger.name, Shop(catalogue.products, catalogue.tagger.nouns), goals)


class WebshopSession:
    """One visitor; see `Session`."""

    def __init__(self, store: Store, rich: bool, attributes: bool) -> None:
        self._store, self._rich, self._attributes = store, rich, attributes
        self.goal, self.visit = store.goals[0], Visit()

    def reset(self, task_id: str) -> Step:
        """Opens the start page of a goal."""
        self.goal, self.visit = self._store.goals[self._store.number(task_id)], Visit()
        return self._step(True)

    def step(self, action: str) -> Step:
        """Searches or clicks; the reward comes with the purchase, which ends the episode."""
        visit = None
        if len(action) <= MAX_ACTION_CHARACTERS:
            visit = act(self._store.shop, self.goal, self.visit, action, self._attributes)
        if visit is not None:
            self.visit = visit
        return self._step(visit is not None)

    def _step(self, valid: bool) -> Step:
        visit, goal = self.visit, self.goal
        observation = text(page(goal, visit, self._attributes), self._rich)
        if visit.terms is not None and visit.product is not None:
            reward, asin = visit.terms.reward, visit.product.asin
            details = {**asdict(visit.terms), "asin": asin, "chosen": visit.options, "goal_asin": goal.asin, "goal": goal.text}
            # Played on after its end, an episode earns nothing more.
            info = Info(valid, (), reward == 1.0, reward, details=details)
            return Step(observation, reward if valid else 0.0, True, info)
        clicks = [f"click[{name}]" for name in clickables(goal, visit, self._attributes)]
        return Step(observation, info=Info(valid, ["search[<words>]", *clicks]))
