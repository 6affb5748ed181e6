"""How many KV tokens each engine of a device may hold: weighted max-min shares with floors, caps and demand.

Everybody's share rises in proportion to weight, from the floor, until it meets the engine's bound; what one cannot use
the others get. Budgets are whole units, exact to the last: largest remainders decide, then the lowest id, never the
order in which engines came. A budget bounds what is resident, not what is processed in a round.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from operator import neg, truediv

from arbiter_sidecar.types import LeaseId

#: Largest share of one engine in thousandths: all of it, so that a lone engine may use the card. A lower value is kept
#: strictly, even when nobody else is there: what it keeps back is for whoever wakes.
ENGINE_CAP_PERMILLE = 1000
#: A change of demand by more than one part in this many is worth new budgets; less is noise of a running queue.
DEMAND_STEP_DIVISOR = 20


@dataclass(slots=True, kw_only=True)
class Engine:
    """One KV engine. Amounts are tokens, at least 0.

    Attributes:
        lease_id: Its lease; decides ties.
        weight: Its part relative to the others', at least 1.
        floor: What it gets at least while it is active, as far as its bounds and the device allow.
        cap: What it may get at most; ``None``: no bound of its own.
        demand: What it could use, resident and backlog; ``None``: unknown, so it is taken to want everything.
        active: Whether it has work.
        healthy: Whether it serves; others get nothing.
    """

    lease_id: LeaseId
    weight: int = 1
    floor: int = 0
    cap: int | None = None
    demand: int | None = None
    active: bool = True
    healthy: bool = True


def allocate(
    engines: Sequence[Engine],
    total_tokens: int,
    *,
    engine_cap_permille: int = ENGINE_CAP_PERMILLE,
    block_tokens: int = 1,
) -> list[int]:
    """The budget of each engine in tokens, in the order given. Exact; O(n log n).

    Active healthy engines share; when none is active, all healthy ones do, so that the first request meets a budget.
    The others get 0. Where the floors alone are more than there is, it is split in proportion to them.

    Args:
        engines: The engines of one device.
        total_tokens: What there is, at least 0.
        engine_cap_permille: Largest share of one engine in thousandths of the total, but never less than one unit.
        block_tokens: The unit. Budgets are multiples of it; floors and demand count up to whole blocks, the total and
            caps down.
    """
    total = total_tokens // block_tokens
    budgets = [0] * len(engines)
    sharing = [index for index, engine in enumerate(engines) if engine.healthy and engine.active]
    if not sharing:
        sharing = [index for index, engine in enumerate(engines) if engine.healthy]
    if total <= 0 or not sharing:
        return budgets
    members = [engines[index] for index in sharing]
    floors, bounds = _limits(members, min(total, max(1, total * engine_cap_permille // 1000)), block_tokens)
    for index, units in zip(sharing, _units(members, floors, bounds, total), strict=True):
        budgets[index] = units * block_tokens
    return budgets


def demand_moved(previous: int | None, current: int | None) -> bool:
    """Whether a demand has changed so much that budgets are worth computing anew; to and from unknown it has."""
    if previous is None or current is None:
        return previous is not current
    return abs(current - previous) * DEMAND_STEP_DIVISOR > previous


def _limits(engines: Sequence[Engine], engine_cap: int, block: int) -> tuple[list[int], list[int]]:
    """The least and the most each engine is to get, in units."""
    floors, bounds = [], []
    for engine in engines:
        bound, cap, demand = engine_cap, engine.cap, engine.demand
        # Plain comparisons: this runs for every engine at every change, and min() costs more than all of them.
        if cap is not None and cap // block < bound:
            bound = cap // block
        if demand is not None and -(-demand // block) < bound:
            bound = -(-demand // block)
        floor = -(-engine.floor // block)
        bounds.append(bound)
        floors.append(floor if floor < bound else bound)
    return floors, bounds


def _units(engines: Sequence[Engine], floors: list[int], bounds: list[int], total: int) -> list[int]:
    """The budget of each engine in units."""
    if sum(bounds) <= total:
        return bounds
    weights = [engine.weight for engine in engines]
    promised = sum(floors)
    if promised > total:
        # Between two alike with an odd unit: the heavier gets it.
        ties = [(-engine.weight, engine.lease_id) for engine in engines]
        return _rounded([0] * len(engines), range(len(engines)), floors, total, promised, ties.__getitem__)
    settled, rising, rest, weight = _level(weights, floors, bounds, total)
    return _rounded(settled, rising, weights, rest, weight, lambda index: engines[index].lease_id)


def _rounded(
    units: list[int],
    sharing: Sequence[int],
    shares: list[int],
    rest: int,
    whole: int,
    tie: Callable[[int], str | tuple[int, str]],
) -> list[int]:
    """Splits ``rest`` over ``sharing`` in proportion to ``shares``, which sum up to ``whole``, into ``units``."""
    remainders = []
    for index in sharing:
        units[index], remainder = divmod(rest * shares[index], whole)
        remainders.append(remainder)
    left = sum(remainders) // whole if remainders else 0
    if left:
        limit = sorted(remainders)[-left]
        above = [index for index, remainder in zip(sharing, remainders, strict=True) if remainder > limit]
        equal = [index for index, remainder in zip(sharing, remainders, strict=True) if remainder == limit]
        for index in above + sorted(equal, key=tie)[: left - len(above)]:
            units[index] += 1
    return units


def _level(
    weights: list[int], floors: list[int], bounds: list[int], total: int
) -> tuple[list[int], list[int], int, int]:
    """Finds the level at which Σ clamp(level · weight, floor, bound) is ``total``, which lies between the extremes.

    Returns what everybody gets who stands at a limit, who stands between the limits, what is left for those together,
    and their weight together: the level is the quotient of the last two.
    """
    # The share of an engine starts to rise when the level passes floor / weight and stops at bound / weight. Steps are
    # numbered, starts before stops so that no share stops before it starts; maps keep loops out of the interpreter.
    starts = [index for index, floor in enumerate(floors) if floor > 0]
    first_stop = len(starts)
    limits = [floors[index] for index in starts] + bounds
    pairs = [weights[index] for index in starts] + weights
    order = sorted(range(len(limits)), key=_levels(limits, pairs).__getitem__)
    fixed_by = [-floors[index] for index in starts] + bounds
    weight_by = [*pairs[:first_stop], *map(neg, weights)]
    fixed = list(accumulate(map(fixed_by.__getitem__, order), initial=sum(floors)))
    weight = list(accumulate(map(weight_by.__getitem__, order), initial=sum(weights) - sum(pairs[:first_stop])))

    def reached(place: int) -> bool:
        """Whether all shares come to the total at this step; whole numbers, so nothing is rounded."""
        step = order[place]
        return fixed[place] * pairs[step] + weight[place] * limits[step] >= total * pairs[step]

    place = bisect_left(range(len(order)), True, key=reached)
    settled, rising = floors[:], [floor <= 0 for floor in floors]
    for step in order[:place]:
        if step < first_stop:
            rising[starts[step]] = True
        else:
            settled[step - first_stop], rising[step - first_stop] = bounds[step - first_stop], False
    return settled, list(compress(range(len(weights)), rising)), total - fixed[place], weight[place]


def _levels(limits: list[int], weights: list[int]) -> list[float] | list[int]:
    """Numbers in the order of limit / weight, different where the quotients are.

    Different quotients differ by one part in the product of largest limit and largest weight or more. Where a float can
    show that, floats are sorted, which is fastest; else integers with enough bits after the point.
    """
    largest = max(weights)
    if max(limits) * largest < 2**52:
        return list(map(truediv, limits, weights))
    shift = 2 * largest.bit_length()
    return [(limit << shift) // weight for limit, weight in zip(limits, weights, strict=True)]
