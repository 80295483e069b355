"""How a conversation is scored, from the bookings at its end, what the user wanted, and the agent's manners.

score = 0.2 constraints + 0.15 manners + 0.25 goal + success (0.25 + 0.15 turns), with all parts in [0, 1].
Success is a goal that is reached with no rule broken that counts.
"""

from collections.abc import Mapping

from gradprism.environments.dialogue.scenarios import Scenario
from gradprism.environments.dialogue.user import User
from gradprism.environments.dialogue.world import Booking, Database

MAX_TURNS = 12


def parts(scenario: Scenario, database: Database, user: User, turns: int) -> dict[str, float]:
    """The parts of the score as things stand after `turns` turns.

    `goal`: 1 where the bookings are exactly those wanted and the user's matter is settled. `constraints`: the share of the wanted values
    that the booking has; where nothing is to be booked 1 if no booking was touched and the matter is settled. `turns`: 1 up to the task's
    `par`, falling to 0 at the most turns there are. `manners`: the mean of `greeted` (before anything else was said), `confirmed` (no
    booking, change or cancellation without the user's yes), `listened` (nothing was asked that had been told) and `polite` (no rude words).
    """
    conduct = user.conduct
    rules = {
        "greeted": float(conduct.greeted),
        "confirmed": float(not conduct.unconfirmed),
        "listened": float(not conduct.repeats),
        "polite": float(not conduct.rude),
    }
    late = (turns - scenario.par) / (MAX_TURNS - scenario.par) if scenario.par < MAX_TURNS else 0.0
    return {
        "goal": float(reached(scenario, database.bookings, database, user.settled)),
        "constraints": _constraints(scenario, database, user.settled),
        "turns": min(1.0, max(0.0, 1.0 - late)),
        "manners": sum(rules.values()) / len(rules),
        **rules,
    }


def score(of: Mapping[str, float]) -> float:
    """The score that the parts give, in [0, 1]."""
    return min(1.0, 0.2 * of["constraints"] + 0.15 * of["manners"] + 0.25 * of["goal"] + success(of) * (0.25 + 0.15 * of["turns"]))


def success(of: Mapping[str, float]) -> bool:
    """Whether the goal is reached with no rule broken that counts: nothing written without a yes, no rude words."""
    return of["goal"] == of["confirmed"] == of["polite"] == 1.0


def reached(scenario: Scenario, bookings: Mapping[str, Booking], database: Database, settled: bool) -> bool:
    """Whether bookings are exactly as wanted: those of others untouched, and the user's own made, changed, cancelled or kept."""
    goal, own = scenario.goal, scenario.reference
    others = {ref: booking for ref, booking in scenario.bookings.items() if ref != own}
    kept = all(bookings.get(ref) == booking for ref, booking in others.items())
    mine = {ref: booking for ref, booking in bookings.items() if ref not in others}
    if not kept:
        return False
    if goal == "cancel":
        return not mine
    if goal == "keep":
        return settled and mine == ({own: scenario.bookings[own]} if own else {})
    return len(mine) == 1 and _share(scenario, next(iter(mine.values())), database) == 1.0 and (not own or own in mine)


def _share(scenario: Scenario, booking: Booking, database: Database) -> float:
    """Share of the wanted values that a booking has."""
    item = next(item for item in database.items if item.id == booking.item)
    has = {**item.values, **booking.details}
    wanted = scenario.final_wants
    return sum(has.get(name) == value for name, value in wanted.items()) / len(wanted)


def _constraints(scenario: Scenario, database: Database, settled: bool) -> float:
    bookings, own = database.bookings, scenario.reference
    if scenario.goal == "cancel":
        return float(own not in bookings)
    if scenario.goal == "keep":
        return float(settled and bookings == scenario.bookings)
    if scenario.goal == "change":
        slot, value = scenario.revision or ("", "")
        return float(own in bookings and bookings[own].details.get(slot) == value)
    mine = [booking for ref, booking in bookings.items() if ref not in scenario.bookings]
    return max((_share(scenario, booking, database) for booking in mine), default=0.0)
