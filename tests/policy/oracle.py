"""What the quality solver must answer, computed exactly with rational numbers.

Written from the definition alone. A lease of ``full`` bytes at quality 1 and ``floor`` bytes at its minimum frees bytes
in proportion to the quality it gives up. When everybody at the maximum would pass the target, each lease loses
``min(range, level / weight)`` with the one level that frees what is missing; the level is found by walking the
breakpoints at which leases reach their minimum. Slow and simple on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One lease as the oracle sees it; bytes are integers, qualities and weight are exact."""

    full: int
    floor: int
    minimum: Fraction
    maximum: Fraction
    weight: Fraction

    @property
    def slope(self) -> Fraction:
        """Bytes freed per unit of quality; nothing where the minimum leaves no room."""
        if self.minimum == 1:
            return Fraction(0)
        return (self.full - self.floor) / (1 - self.minimum)

    @property
    def room(self) -> Fraction:
        """Quality that can be taken away."""
        return self.maximum - self.minimum

    def bytes_at(self, quality: Fraction) -> Fraction:
        """Exact bytes held at ``quality``."""
        return self.full - self.slope * (1 - quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The exact solution; ``level`` is None when every lease is at its minimum."""

    qualities: tuple[Fraction, ...]
    reduction: Fraction
    elastic: Fraction
    soft_deficit: Fraction
    hard_deficit: Fraction
    level: Fraction | None


def _level(claims: Sequence[Claim], reduction: Fraction) -> Fraction:
    """The level that frees exactly ``reduction``, which must be positive and less than everything that can be freed."""
    moving = sorted((claim for claim in claims if claim.slope > 0), key=lambda claim: claim.room * claim.weight)
    freed_by_stopped = Fraction(0)
    rate = sum((claim.slope / claim.weight for claim in moving), Fraction(0))
    for claim in moving:
        breakpoint_level = claim.room * claim.weight
        if freed_by_stopped + rate * breakpoint_level >= reduction:
            break
        freed_by_stopped += claim.slope * claim.room
        rate -= claim.slope / claim.weight
    return (reduction - freed_by_stopped) / rate


def solve(
    claims: Sequence[Claim], *, capacity: int, target: int, foreign: int, extra: Fraction = Fraction(0)
) -> Answer:
    """Solves exactly.

    Args:
        claims: The leases.
        capacity: Bytes that may never be passed.
        target: Bytes to stay under while quality can pay for it.
        foreign: Bytes used by strangers.
        extra: Added to the demand; tests bracket answers with it where the bytes at a maximum are rounded.
    """
    demand = foreign + sum((claim.bytes_at(claim.maximum) for claim in claims), extra)
    reduction = max(Fraction(0), demand - target)
    elastic = sum((claim.slope * claim.room for claim in claims), Fraction(0))
    least = foreign + sum((claim.bytes_at(claim.minimum) for claim in claims), Fraction(0))
    level: Fraction | None
    if reduction == 0:
        level = Fraction(0)
    elif reduction >= elastic:
        level = None
    else:
        level = _level(claims, reduction)
    if level is None:
        qualities = tuple(claim.minimum for claim in claims)
    else:
        qualities = tuple(claim.maximum - min(claim.room, level / claim.weight) for claim in claims)
    return Answer(
        qualities=qualities,
        reduction=reduction,
        elastic=elastic,
        soft_deficit=max(Fraction(0), reduction - elastic),
        hard_deficit=max(Fraction(0), least - capacity),
        level=level,
    )


def pressure_level(previous: int | None, thousandths: int) -> int:
    """Level 0 to 3 of a pressure in thousandths: boundaries at 500, 750 and 900, held 30 longer on the way down."""
    level = 0
    for index, boundary in enumerate((500, 750, 900), start=1):
        held = previous is not None and previous >= index
        if thousandths >= boundary - (30 if held else 0):
            level = index
    return level
