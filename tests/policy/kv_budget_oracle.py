"""What the budgets must be, with exact fractions and no cleverness; written from the definition alone."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from arbiter_sidecar.policy.kv_budget import Engine


def bounds_of(engine: Engine, total: int, permille: int) -> tuple[int, int]:
    """Lower and upper bound of an engine that shares, in units."""
    upper = max(1, total * permille // 1000)
    for limit in (engine.cap, engine.demand):
        if limit is not None:
            upper = min(upper, limit)
    return min(engine.floor, upper), upper


def shares(engines: Sequence[Engine]) -> list[bool]:
    """Who shares."""
    healthy = [engine.healthy for engine in engines]
    working = [engine.healthy and engine.active for engine in engines]
    return working if any(working) else healthy


def _clamped(level: Fraction, weights: Sequence[int], bounds: Sequence[tuple[int, int]]) -> list[Fraction]:
    return [
        min(Fraction(upper), max(Fraction(lower), level * weight))
        for weight, (lower, upper) in zip(weights, bounds, strict=True)
    ]


def _rounded(exact: Sequence[Fraction], ties: Sequence[tuple[int, str]], total: int) -> list[int]:
    """Whole units of exact shares that add up to ``total``: the largest fractions are rounded up."""
    units = [share.numerator // share.denominator for share in exact]
    order = sorted(range(len(exact)), key=lambda index: (units[index] - exact[index], ties[index]))
    for index in order[: total - sum(units)]:
        units[index] += 1
    return units


def exact_shares(weights: Sequence[int], bounds: Sequence[tuple[int, int]], total: int) -> list[Fraction]:
    """Exact shares of those who share: by trying every level at which one of them starts or stops to rise."""
    lows, highs = sum(low for low, _ in bounds), sum(high for _, high in bounds)
    if lows > total:
        return [Fraction(low * total, lows) for low, _ in bounds]
    if highs <= total:
        return [Fraction(high) for _, high in bounds]
    turns = sorted({Fraction(end, weight) for weight, pair in zip(weights, bounds, strict=True) for end in pair})
    below = max((turn for turn in turns if sum(_clamped(turn, weights, bounds)) <= total), default=Fraction(0))
    rising = [weight for weight, (low, high) in zip(weights, bounds, strict=True) if low <= below * weight < high]
    missing = total - sum(_clamped(below, weights, bounds), Fraction(0))
    return _clamped(below + missing / sum(rising) if missing else below, weights, bounds)


def allocate(engines: Sequence[Engine], total: int, permille: int) -> list[int]:
    """The budgets."""
    budgets = [0] * len(engines)
    sharing = [index for index, share in enumerate(shares(engines)) if share]
    bounds = [bounds_of(engines[index], total, permille) for index in sharing]
    exact = exact_shares([engines[index].weight for index in sharing], bounds, total)
    cut = sum(low for low, _ in bounds) > total
    # Where even the floors are cut the heavier of two alike gets the odd unit; otherwise the lower id.
    ties = [(-engines[index].weight if cut else 0, str(engines[index].lease_id)) for index in sharing]
    units = _rounded(exact, ties, min(total, sum(high for _, high in bounds)))
    for index, amount in zip(sharing, units, strict=True):
        budgets[index] = amount
    return budgets
