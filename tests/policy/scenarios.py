"""Scenarios for the quality solver and the comparison of its answer with the oracle's."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from fractions import Fraction

from hypothesis import strategies as st

from arbiter_sidecar.policy import quality
from arbiter_sidecar.types import GIB

from . import oracle

RELATIVE = 1e-9
"""Largest relative error of a target quality; a published step is ten million times larger."""

ABSOLUTE = 1e-12
"""Takes over where an expected quality is zero."""

WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Five priorities, the upper three also with a favouring policy's factor of four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One lease in plain numbers; both the solver's and the oracle's argument are made from it."""

    full: int
    floor: int
    minimum: float
    maximum: float = 1.0
    weight: float = 4.0

    def elastic(self) -> quality.Elastic:
        """As the solver takes it."""
        return quality.Elastic(
            full_bytes=self.full,
            floor_bytes=self.floor,
            min_quality=self.minimum,
            max_quality=self.maximum,
            weight=self.weight,
        )

    def claim(self) -> oracle.Claim:
        """As the oracle takes it, every float at its exact value."""
        return oracle.Claim(
            full=self.full,
            floor=self.floor,
            minimum=Fraction(self.minimum),
            maximum=Fraction(self.maximum),
            weight=Fraction(self.weight),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole question to the solver."""

    leases: tuple[Lease, ...]
    capacity: int
    target: int
    foreign: int = 0

    def solve(self) -> quality.Solution:
        """The solver's answer."""
        return quality.solve(
            [lease.elastic() for lease in self.leases],
            capacity_bytes=self.capacity,
            target_bytes=self.target,
            foreign_bytes=self.foreign,
        )

    def exact(self, extra: int = 0) -> oracle.Answer:
        """The oracle's answer, with ``extra`` bytes of demand."""
        return oracle.solve(
            [lease.claim() for lease in self.leases],
            capacity=self.capacity,
            target=self.target,
            foreign=self.foreign,
            extra=Fraction(extra),
        )

    def with_leases(self, *leases: Lease) -> Scenario:
        """The same device with other leases."""
        return replace(self, leases=leases)


def gib(amount: float) -> int:
    """Whole bytes nearest to ``amount`` GiB."""
    return round(amount * GIB)


def close(actual: float, expected: float | Fraction) -> bool:
    """Whether two qualities or levels agree as far as anybody could need."""
    return math.isclose(actual, float(expected), rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def within(actual: float, low: float | Fraction, high: float | Fraction) -> bool:
    """Whether ``actual`` lies between the bounds, or agrees with one of them."""
    return float(low) <= actual <= float(high) or close(actual, low) or close(actual, high)


def random_lease(source: random.Random, low: int, high: int, *, capped: bool) -> Lease:
    """A lease of ``low`` to ``high`` bytes; one in six cannot shrink, one in twelve may not lose quality."""
    full = source.randint(low, high)
    minimum = 1.0 if source.random() < 1 / 12 else source.choice((0.0, 0.25, 0.3, 0.4, source.random()))
    floor = full if minimum == 1.0 or source.random() < 1 / 6 else source.randint(0, full)
    maximum = minimum + (1 - minimum) * source.random() if capped and source.random() < 0.5 else 1.0
    return Lease(full=full, floor=floor, minimum=minimum, maximum=min(1.0, maximum), weight=source.choice(WEIGHTS))


def random_device(source: random.Random, leases: tuple[Lease, ...]) -> Scenario:
    """A device on which ``leases`` are anything from comfortable to hopeless, mostly somewhere between."""
    total = sum(lease.full for lease in leases)
    least = sum(lease.floor for lease in leases)
    foreign = 0 if source.random() < 0.5 else int(total * source.uniform(0.0, 0.6))
    target = max(0, foreign + least + int((total - least) * source.uniform(-0.4, 1.15)))
    capacity = target + (0 if source.random() < 0.3 else int(total * source.uniform(0.0, 0.3)))
    return Scenario(leases=leases, capacity=capacity, target=target, foreign=foreign)


@st.composite
def scenarios(draw: st.DrawFn, *, most: int = 60, capped: bool = False, spread: int = 10) -> Scenario:
    """Devices with one to ``most`` leases whose sizes lie within a factor of 2**spread, up to 2**50 bytes."""
    exponent = draw(st.integers(min_value=0, max_value=50), label="exponent")
    count = draw(st.integers(min_value=1, max_value=most), label="count")
    source = random.Random(draw(st.integers(min_value=0, max_value=2**32), label="seed"))
    low, high = 2 ** max(0, exponent - spread), 2**exponent
    return random_device(source, tuple(random_lease(source, low, high, capped=capped) for _ in range(count)))
