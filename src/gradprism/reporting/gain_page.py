"""The page of measured gains: which score predicts what SFT or RL gains on its groups."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from gradprism.experiments.comparison import corrected
from gradprism.experiments.gain import OUTCOMES, Gain, read_gain
from gradprism.experiments.gain_statistics import LEAST_RELIABILITY, Prediction, detectable, predict, reliability
from gradprism.reporting.blocks import fill
from gradprism.reporting.document import Block, Heading, Table, markdown
from gradprism.reporting.numbers import duration, fixed, optional, p_value
from gradprism.routing.scoreboard import GIVEN
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import atomic_write
from gradprism.runtime.progress import printable

PAGE = "README.md"
TITLES = {"sft": "SFT", "rl": "RL", "difference": "RL less SFT"}
# The outcome by which each is judged, named before any was measured: what it trains for, measured with the least noise.
MAIN = {"sft": "loss", "rl": "success", "difference": "success"}
_NAMES = {"loss": "expert loss (nats)", "success": "success (points)", "score": "score (points)"}


def write_gain_page(folder: Path) -> Path:
    """Writes the page of `folder`/gain.json beside it; raises `MissingFileError` or `DataError`."""
    text = gain_page(read_gain(folder))
    with atomic_write(folder / PAGE) as file:
        file.write(text)
    return folder / PAGE


def gain_page(gain: Gain) -> str:
    """The page as Markdown."""
    return markdown(list(_blocks(gain)))


def _blocks(gain: Gain) -> Iterator[Block]:
    G, S = len(gain.sizes), len(gain.seeds)
    predictions = {(method, outcome): _predictions(gain, method, outcome) for method in TITLES for outcome in OUTCOMES}
    tested = sum(one.p is not None for one in predictions["sft", MAIN["sft"]].values())
    yield Heading(f"{gain.name}: does a cheap score predict gain?", 1)
    sizes = f"{min(gain.sizes)}–{max(gain.sizes)}" if min(gain.sizes) < max(gain.sizes) else str(gain.sizes[0])
    yield (
        f"Environment {gain.environment}; model {gain.model} ({gain.parameters / 1e6:.2f}M parameters); {gain.trajectories} trajectories "
        f"in {gain.planned_groups} groups of similar scores, {G} of them measured, {sizes} trajectories each. From the base, SFT on each "
        f"group alone and RL on its tasks alone, with {S} training seeds. Gain is the change from the base: of the loss on the expert's "
        f"trajectories of {gain.demonstrations} held-out tasks, and of success and score on {gain.tasks_per_seed} held-out episodes per "
        f"seed, other tasks for each seed and the same for all models. Written by `gradprism experiment gain-page`; the design is in "
        "docs/gain.md."
    )
    if gain.planned_groups > G:
        yield f"**Unfinished**: {G} of {gain.planned_groups} groups are measured."
    yield Heading("What can be seen")
    yield "\n".join(_power(G, tested))
    yield _outcomes(gain)
    yield (
        f"Reliability is the share of the variance between groups' mean gains that is the groups' own (Cronbach's α over seeds, which have "
        "trainings, played tasks and draws of their own). No score can correlate with gain beyond its root on average; below "
        f"{LEAST_RELIABILITY} nothing is corrected for it."
    )
    yield Heading("What predicts gain")
    yield (
        "Spearman's ρ of groups' mean scores with their mean gains, with 95 % intervals by the bootstrap over groups; p by itself and by "
        "Holm over all scores of the table; ρ/√reliability; and ρ given response length and loss. Strongest first. Between groups (η²): "
        "the share of the score's variance that lies between the groups; what lies within them is not tested."
    )
    for method, title in TITLES.items():
        outcome = MAIN[method]
        yield Heading(f"{title}: {_NAMES[outcome]}", 3)
        found = predictions[method, outcome]
        yield _verdict(title, outcome, found, G)
        yield _table(gain, found)
    yield Heading("Other outcomes")
    yield "ρ with its interval; in strong type where Holm's p over the scores of that column is below 0.05."
    yield _others(gain, predictions)
    yield Heading("What it took")
    rows = [
        [
            kind,
            str(price.stages),
            duration(price.wall_seconds),
            duration(price.cpu_seconds),
            fixed(price.cpu_seconds / price.stages),
        ]
        for kind, price in gain.prices.items()
    ]
    yield Table(["stage", "number", "wall", "CPU", "CPU seconds each"], rows)


def fill_gain_blocks(text: str, gain: Gain, source: str, prefix: str) -> str:
    """`text` with the numbers of blocks "PREFIX rho METHOD OUTCOME SCORE" (ρ with its interval) and "PREFIX reliability METHOD OUTCOME".

    METHOD is `sft`, `rl` or `difference`. Raises `DataError` with the file `source` for a block that is neither, or unknown names.
    """

    def told(name: str) -> str:
        match name.split():
            case ["reliability", method, outcome] if method in TITLES and outcome in OUTCOMES:
                return optional(reliability(gain.of(method, outcome)), 2)
            case ["rho", method, outcome, score] if method in TITLES and outcome in OUTCOMES and score in gain.scores:
                return _interval(_predictions(gain, method, outcome, [score])[score])
        raise DataError(f"{source}: no block is called {printable(name)!r}; see docs/gain.md for those that are")

    return fill(text, told, source, prefix)


def _power(groups: int, scores: int) -> Iterator[str]:
    alone, found, corrected = (
        optional(detectable(groups, level, power), 2) for level, power in ((0.05, 0.5), (0.05, 0.8), (0.05 / max(1, scores), 0.8))
    )
    yield f"- One score tested by itself is significant from |ρ| = {alone}; {found} is found in 80 % of experiments."
    yield f"- As the best of {scores} scores, corrected (Holm), {corrected} is found in 80 % of experiments."
    yield "- These are correlations with gain as it was measured: noise of the trainings makes true ones smaller."


def _outcomes(gain: Gain) -> Table:
    rows = []
    for method, title in TITLES.items():
        for outcome in OUTCOMES:
            gains, digits, scale = gain.of(method, outcome), 3 if outcome == "loss" else 1, 1 if outcome == "loss" else 100
            means = gains.mean(0) * scale
            base = "–" if method == "difference" else fixed(float(np.mean(gain.base[outcome])) * scale, digits)
            spread = fixed(float(means.std(ddof=1)), digits)
            shown = [f"{title}: {_NAMES[outcome]}", base, fixed(float(means.mean()), digits), spread]
            rows.append([*shown, fixed(means.min(), digits), fixed(means.max(), digits), optional(reliability(gains), 2)])
    return Table(["gain", "base", "mean gain", "std over groups", "least", "most", "reliability"], rows)


def _predictions(gain: Gain, method: str, outcome: str, names: Iterable[str] | None = None) -> dict[str, Prediction]:
    """What each score, or each of `names`, predicts of a gain."""
    gains = gain.of(method, outcome)
    values = {name: np.array([np.nan if v is None else v for v in column]) for name, column in gain.scores.items()}
    controls = {name: values[name] for name in GIVEN if name in values}
    return {name: predict(values[name], gains, () if name in controls else list(controls.values())) for name in names or values}


def _corrected(found: dict[str, Prediction]) -> dict[str, float]:
    return corrected({name: one.p for name, one in found.items() if one.p is not None})  # a constant score is no test


def _ranked(found: dict[str, Prediction]) -> list[str]:
    return sorted(found, key=lambda name: -abs(found[name].rho or 0.0))


def _verdict(title: str, outcome: str, found: dict[str, Prediction], groups: int) -> str:
    holms = _corrected(found)
    sure = [f"{name} ({fixed(found[name].rho or 0.0, 2)})" for name in _ranked(found) if holms.get(name, 1.0) < 0.05]
    what = f"gain of {title} in {outcome}" if title != TITLES["difference"] else f"the difference of the gains in {outcome}"
    if not sure:
        return f"No score predicts {what} over {groups} groups, corrected for the number of scores."
    return f"Corrected for the number of scores, {what} over {groups} groups is predicted by {', '.join(sure)}."


def _table(gain: Gain, found: dict[str, Prediction]) -> Table:
    holms = _corrected(found)
    headings = ["score", "ρ", "p", "p, Holm", "ρ corrected for noise", "ρ given length and loss", "p", "between groups (η²)"]
    rows = []
    for name in _ranked(found):
        one = found[name]
        shown = [name, _interval(one), p_value(one.p), p_value(holms.get(name)), _interval(one, "corrected")]
        rows.append([*shown, optional(one.partial, 2), p_value(one.partial_p), optional(gain.spread.get(name), 2)])
    return Table(headings, rows)


def _interval(one: Prediction, kind: str = "") -> str:
    values = asdict(one)
    mean, low, high = (values[f"{kind}_{end}".strip("_") or "rho"] for end in ("", "low", "high"))
    return "–" if mean is None else f"{fixed(mean, 2)} [{fixed(low, 2)}, {fixed(high, 2)}]"


def _others(gain: Gain, predictions: dict[tuple[str, str], dict[str, Prediction]]) -> Table:
    columns = [(method, outcome) for method in TITLES for outcome in OUTCOMES if outcome != MAIN[method]]
    holms = {key: _corrected(predictions[key]) for key in columns}
    rows = []
    for name in gain.scores:
        cells = [(_interval(predictions[key][name]), holms[key].get(name, 1.0) < 0.05) for key in columns]
        rows.append([name, *(f"**{text}**" if sure else text for text, sure in cells)])
    return Table(["score", *(f"{TITLES[method]}: {outcome}" for method, outcome in columns)], rows)
