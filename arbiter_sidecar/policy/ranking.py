"""Who is next in the waiting line: the more important first, the patient not for ever, a blocked head not overrun.

A request counts as one tier more important for every span it has waited, so that a steady stream of better ones cannot
hold it up without end. A later request may pass a blocked one a bounded number of times, so that small gaps do not lie
idle; then the line is strict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from arbiter_sidecar.types import Priority

#: Seconds of waiting that count as one tier: the shortest default wait, so that only the patient are lifted.
AGING_S = 30.0
#: How often one blocked head may be passed. A few small grants cost it little; without a bound they never end.
BACKFILL = 8
#: Waiting lifts up to here. CRITICAL is given, never earned.
AGED_CEILING = Priority.HIGH


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One request in the line of one device, at its rank.

    Attributes:
        arrival: Running number of its arrival.
        fits: Whether it could be granted now.
        passed: How often it was passed while it was the blocked head.
    """

    arrival: int
    fits: bool
    passed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Who is granted next.

    Attributes:
        arrival: The request.
        passes: The blocked head that it passes, whose count of passes then rises by one; ``None``: it passes nobody.
    """

    arrival: int
    passes: int | None


def effective_tier(priority: Priority, *, since: float, now: float, aging_s: float = AGING_S) -> Priority:
    """The tier a request counts with: its own and one for every whole ``aging_s`` waited, at most HIGH by waiting.

    Args:
        priority: What it came with; CRITICAL and HIGH keep it.
        since: When it arrived, monotonic seconds.
        now: Monotonic seconds.
        aging_s: Seconds for a tier, above 0; infinite: never.
    """
    return _aged(priority, since, now, aging_s)[0]


def rank(priority: Priority, *, since: float, arrival: int, now: float, aging_s: float = AGING_S) -> tuple[int, int]:
    """Sorts a line with the next first: higher effective tier, then earlier arrival, a running number."""
    return -effective_tier(priority, since=since, now=now, aging_s=aging_s), arrival


def next_rise(priority: Priority, *, since: float, now: float, aging_s: float = AGING_S) -> float | None:
    """When waiting next lifts the request, monotonic seconds after ``now``; ``None``: it will not.

    The line is to be looked at again then: who is lifted past a blocked head may fit.
    """
    return _aged(priority, since, now, aging_s)[1]


def _aged(priority: Priority, since: float, now: float, aging_s: float) -> tuple[Priority, float | None]:
    """The tier, and when it rises: from the same sums, so that whatever is rounded, at that moment it has risen."""
    spans = 0
    while priority + spans < AGED_CEILING:
        rise = since + (spans + 1) * aging_s
        if rise > now:
            return Priority(priority + spans), None if math.isinf(rise) else rise
        spans += 1
    return Priority(priority + spans), None


def next_turn(line: Iterable[Place], *, backfill: int = BACKFILL) -> Turn | None:
    """Whom to grant next on one device; ``None``: nobody now. Grant, then ask again with the new facts.

    The first that fits is next, unless it would pass somebody who has been passed ``backfill`` times; 0 makes the line
    strict. Passing is counted for the head alone, the foremost that is blocked. One that was passed to the limit and
    then displaced by a better rank stays as strict as it was.

    Args:
        line: The requests that want the device, by rank. Read no further than needed, so whether a request fits may be
            found out on the way.
        backfill: How often a head may be passed, at least 0.
    """
    head: int | None = None
    for place in line:
        if place.fits:
            return Turn(arrival=place.arrival, passes=head)
        if place.passed >= backfill:
            return None
        if head is None:
            head = place.arrival
    return None
