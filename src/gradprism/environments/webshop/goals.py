"""Goals, each a product that an agent is asked to buy: from instructions, in the original's order and wording."""

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass

from gradprism.environments.webshop.catalogue import Catalogue, Instruction, Product

PRICE_STEPS = [10.0 * i for i in range(1, 100)]
NO_LIMIT = 1_000_000.0
SHUFFLE_SEED = 233
TEST, EVAL = 500, 1500  # where the original's splits end, in the shuffled order


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal; its product is one that fulfils it."""

    asin: str
    text: str
    attributes: tuple[str, ...]
    options: Mapping[str, str] | tuple[str, ...]
    price_upper: float
    product: Product

    @property
    def wanted_options(self) -> tuple[str, ...]:
        """The values that are wanted."""
        return tuple(self.options.values()) if isinstance(self.options, Mapping) else self.options


def make_goals(catalogue: Catalogue, human: bool) -> list[Goal]:
    """All goals, shuffled as the original shuffles them: people's, or one for each combination of an instruction's product's options."""
    products = {product.asin: product for product in catalogue.products}
    goals: list[Goal] = []
    for number, instruction in enumerate(catalogue.human if human else catalogue.instructions):
        if instruction.attributes:
            goals += _goals(instruction, products[instruction.asin], f"goal {instruction.asin} {number if human else 0}")
    random.Random(SHUFFLE_SEED).shuffle(goals)
    return goals


def split_ranges(n: int) -> dict[str, range]:
    """The splits of `n` goals: 0–499 test, 500–1499 eval, the rest train; a quarter and a quarter where there are under 2,000."""
    test, evaluation = (TEST, EVAL) if n >= 2000 else (n // 4, n // 2)
    return {"train": range(evaluation, n), "eval": range(test, evaluation), "test": range(test)}


def _goals(instruction: Instruction, product: Product, seed: str) -> list[Goal]:
    steps = [step for step in PRICE_STEPS if step > product.price][:4]
    upper = max(random.Random(seed).sample(steps, 2)) if len(steps) >= 2 else NO_LIMIT
    price_text = f", and price lower than {upper:.2f} dollars" if upper < NO_LIMIT else ""
    if instruction.options is not None:
        return [Goal(product.asin, instruction.text + price_text, instruction.attributes, instruction.options, upper, product)]
    names, goals = sorted(product.options), []
    for values in itertools.product(*(product.options[name] for name in names)):
        options = dict(zip(names, values, strict=True))
        told = ", and ".join(f"{name}: {value}" for name, value in options.items())
        text = instruction.text + (f" with {told}" if told else "") + price_text
        goals.append(Goal(product.asin, text, instruction.attributes, options, upper, product))
    return goals
