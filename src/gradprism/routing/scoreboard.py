"""The comparison of all scores of a probe: its values, and the page on which a person reads them."""

from collections.abc import Iterator, Mapping

from gradprism.routing.agreement import Agreement
from gradprism.routing.split import Value
from gradprism.routing.text import number, table

# What partial correlations hold fixed.
GIVEN = ("n_response_tokens", "loss")
# |ρ| from which on two scores are said to rank alike, and the trajectories below which that may well be by chance.
ALIKE, FEWEST = 0.98, 30
# Share of its own below which a score is said to follow length and loss, and ρ with another probe's below which it is said to change.
OWN, STABLE = 0.5, 0.9
_WIDEST = 12  # scores in the matrix of correlations


class Common(Value):
    """Share of its RL half that a score has in common with another's, and a 95 % interval."""

    share: float
    low: float
    high: float


class ScorePair(Value):
    """Two scores over the `n` trajectories that have both: rank correlations (Kendall's is τ-b), Spearman's given length and loss, and the
    share of the RL half in common, each cut at its median and equals at it drawn by chance. None where a figure is not defined."""

    n: int
    spearman: float | None
    kendall: float | None
    partial: float | None
    common: Common | None


class ScoreFacts(Value):
    """One score over the `n` trajectories that have it: `own`, the share of its ranks' variance that a regression on the ranks of length
    and loss leaves; η² of the tasks' types and sources; and its agreement with itself in the other probes."""

    n: int
    n_distinct: int
    own: float | None
    eta_squared: Mapping[str, float | None]
    stability: Mapping[str, Agreement] = {}


class ScoreComparison(Value):
    """Every score of a probe by its name, most of its own first, and every pair, `a – b`.

    `by_chance` is what halves drawn at random have in common, with the exact range of 95 % of such draws, and `eta_by_chance` the η² that
    groupings that do not matter are expected to have. `groups` have the scores that rank alike, or are each other's reverse; None for too
    few trajectories to say.
    """

    n: int
    given: tuple[str, ...]
    by_chance: Common | None
    eta_by_chance: Mapping[str, float]
    scores: Mapping[str, ScoreFacts]
    pairs: Mapping[str, ScorePair]
    groups: tuple[tuple[str, ...], ...] | None

    def pair(self, a: str, b: str) -> ScorePair | None:
        """The pair of two scores, in whichever order; None where there is none."""
        return self.pairs.get(f"{a} – {b}") or self.pairs.get(f"{b} – {a}")

    def lines(self, chosen: str) -> Iterator[str]:
        """The page: a row per score, of those that rank alike the first alone; their correlations; and what the figures say.

        `chosen` is the score that others are set against.
        """
        alike = {group[0]: group[1:] for group in self.groups or ()}
        hidden = {name for names in alike.values() for name in names}
        shown = [name for name in self.scores if name not in hidden]
        plain = [name for name in ("loss", "n_response_tokens", "l2", "pass_rate") if name in self.scores]
        eta = {by: f"η² {by}" for by in self.eta_by_chance}
        probes = list(dict.fromkeys(label for facts in self.scores.values() for label in facts.stability))
        headings = (
            "score",
            "own",
            *plain,
            f"{chosen}",
            "| given",
            "RL half shared",
            *eta.values(),
            *(["least stable"] if probes else []),
        )
        rows = []
        for name in shown:
            facts, pair = self.scores[name], self.pair(name, chosen)
            by = [self._rho(name, other) for other in plain]
            to = [number(pair and pair.spearman), number(pair and pair.partial), _share(pair and pair.common)]
            stable = [s.spearman for s in facts.stability.values() if s.spearman is not None]
            row = [name, number(facts.own), *by, *to, *(number(facts.eta_squared[key]) for key in eta)]
            rows.append([*row, *([number(min(stable, default=None))] if probes else [])])
        yield from table(headings, rows)
        yield (
            f"own: share of the ranks' variance that {' and '.join(self.given) or 'nothing'} leave; columns: Spearman's ρ; "
            f"| given: that with {chosen}, given these; RL half shared with {chosen}, cut at the medians"
        )
        if self.by_chance:
            of_eta = "".join(f"; {eta[by]} is {expected:.3f}" for by, expected in self.eta_by_chance.items())
            yield f"by chance halves share {_share(self.by_chance)}{of_eta}"
        if len(shown) > 2:
            few = shown[:_WIDEST]
            rows = [[f"{i} {a}", *(self._rho(a, b) for b in few[: i - 1])] for i, a in enumerate(few, 1)]
            yield from table(("Spearman", *map(str, range(1, len(few)))), [[*row, *[""] * (len(few) - len(row))] for row in rows])
        yield from self._says(chosen, alike)

    def _rho(self, a: str, b: str) -> str:
        pair = self.pair(a, b)
        return "" if a == b else number(pair and pair.spearman)

    def _says(self, chosen: str, alike: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
        """What the figures bear out, in sentences; next to nothing of few trajectories."""
        if constant := [name for name, facts in self.scores.items() if facts.n_distinct == 1]:
            yield f"the same for all trajectories: {', '.join(constant)}"
        if part := [f"{name} ({facts.n} of {self.n})" for name, facts in self.scores.items() if facts.n < self.n]:
            yield f"not defined for all trajectories: {', '.join(part)}"
        if self.groups is None:
            yield f"of {self.n} trajectories, fewer than {FEWEST}, no scores are said to rank alike or to follow others"
            return
        for first, others in alike.items():
            names = (first, *others)
            least = min(
                abs(p.spearman) for i, a in enumerate(names) for b in names[i + 1 :] if (p := self.pair(a, b)) and p.spearman
            )
            yield f"{', '.join(names)} rank alike (|ρ| ≥ {least:.3f}, any two of them): one of them will do"
        follow = [
            (name, 1 - f.own) for name, f in self.scores.items() if f.own is not None and f.own < OWN and name not in self.given
        ]
        if follow:
            told = ", ".join(f"{name} ({share:.0%})" for name, share in follow)
            yield f"mostly {' and '.join(self.given)} (share of the ranks' variance): {told}"
        chance = self.by_chance.share if self.by_chance else 0.0
        shares = [(name, p.common) for name in self.scores if (p := self.pair(name, chosen)) and p.common]
        if told := [name for name, common in shares if common.low <= chance <= common.high]:
            yield f"their RL half shares no more with {chosen}'s than chance explains: {', '.join(told)}"
        for label in dict.fromkeys(label for facts in self.scores.values() for label in facts.stability):
            moved = [
                (name, s.spearman) for name, f in self.scores.items() if (s := f.stability.get(label)) and s.spearman is not None
            ]
            if told := ", ".join(f"{name} (ρ {rho:.2f})" for name, rho in moved if rho < STABLE):
                yield f"other in {label}: {told}"


def _share(common: Common | None) -> str:
    return "–" if common is None else f"{common.share:.0%} [{100 * common.low:.0f}, {100 * common.high:.0f}]"
