"""From a quality target to a worker's own settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from arbiter_client.directive import Directive

Settings = TypeVar("Settings")

#: Targets are sums and products of fractions: one that is meant to be 0.6 may arrive as 0.5999999999.
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Rung(Generic[Settings]):
    """One way for a worker to run.

    Attributes:
        min_quality: The lowest target at which it is taken, in [0, 1].
        name: For people.
        settings: Whatever the worker needs to run this way.
        memory_bytes: Device bytes it needs; ``None`` when that is not known.
    """

    min_quality: float
    name: str
    settings: Settings
    memory_bytes: int | None = None


class NoRungFits(ValueError):
    """Even the lowest rung needs more than the memory limit; answer the directive with ``lease.refused``.

    Attributes:
        lowest_quality: The ``min_quality`` of the lowest rung, the nearest quality that can be reached.
    """

    def __init__(self, lowest_quality: float, needed_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"the lowest rung needs {needed_bytes} bytes, the limit is {limit_bytes}")
        self.lowest_quality = lowest_quality


class Ladder(Generic[Settings]):
    """The ways a worker can run, best first. Every target in [floor, 1] selects exactly one.

    The arbiter applies hysteresis before it publishes, so a ladder needs none.
    """

    __slots__ = ("_rungs",)

    def __init__(self, rungs: Iterable[Rung[Settings]], *, floor: float = 0.0) -> None:
        """Checks that the rungs leave no gap.

        Args:
            rungs: From the best to the smallest.
            floor: The lowest target that can come: the ``min_quality`` of the lease, in [0, 1].

        Raises:
            ValueError: No rungs; a ``min_quality`` outside [0, 1], not strictly descending, or above ``floor`` on the
                last rung; a ``memory_bytes`` that is negative or grows downwards.
        """
        self._rungs = tuple(rungs)
        if not 0.0 <= floor <= 1.0:
            raise ValueError(f"floor {floor} is not in [0, 1]")
        if not self._rungs:
            raise ValueError("a ladder needs at least one rung")
        self._check_quality(floor)
        self._check_memory()

    def _check_quality(self, floor: float) -> None:
        above = math.inf
        for rung in self._rungs:
            if not 0.0 <= rung.min_quality <= 1.0:
                raise ValueError(f"rung {rung.name!r}: min_quality {rung.min_quality} is not in [0, 1]")
            if rung.min_quality >= above:
                raise ValueError(f"rung {rung.name!r}: min_quality {rung.min_quality} is not below the rung above")
            above = rung.min_quality
        if above > floor + TOLERANCE:
            raise ValueError(f"the last rung begins at {above}, which leaves targets down to {floor} without one")

    def _check_memory(self) -> None:
        above = math.inf
        for rung in self._rungs:
            if rung.memory_bytes is None:
                continue
            if not 0 <= rung.memory_bytes <= above:
                raise ValueError(f"rung {rung.name!r}: memory_bytes {rung.memory_bytes} is negative or grows downwards")
            above = rung.memory_bytes

    def __iter__(self) -> Iterator[Rung[Settings]]:
        return iter(self._rungs)

    def __len__(self) -> int:
        return len(self._rungs)

    def rung(self, quality: float) -> Rung[Settings]:
        """The best rung for a target in [0, 1]; the lowest one for targets below the floor.

        Raises:
            ValueError: The target is not in [0, 1].
        """
        if not 0.0 <= quality <= 1.0:
            raise ValueError(f"quality {quality} is not in [0, 1]")
        for rung in self._rungs:
            if quality >= rung.min_quality - TOLERANCE:
                return rung
        return self._rungs[-1]

    def for_directive(self, directive: Directive) -> Rung[Settings]:
        """The best rung that fits both the quality and the memory limit of ``directive``.

        A rung whose memory is not known is taken to fit.

        Raises:
            NoRungFits: The lowest rung needs more than the limit.
        """
        start = self._rungs.index(self.rung(directive.quality))
        needed = 0
        for rung in self._rungs[start:]:
            needed = rung.memory_bytes or 0
            if needed <= directive.memory_limit_bytes:
                return rung
        raise NoRungFits(self._rungs[-1].min_quality, needed, directive.memory_limit_bytes)


@dataclass(frozen=True, slots=True)
class QualityLevel:
    """One of three levels that suit most workers.

    Attributes:
        context_scale: Factor on context length, resolution or batch; in (0, 1].
    """

    context_scale: float


#: From 0.9 everything, from 0.6 half, below a quarter of the context.
QUALITY_LEVELS: Ladder[QualityLevel] = Ladder(
    [
        Rung(0.9, "full", QualityLevel(context_scale=1.0)),
        Rung(0.6, "reduced", QualityLevel(context_scale=0.5)),
        Rung(0.0, "minimal", QualityLevel(context_scale=0.25)),
    ]
)


@dataclass(frozen=True, slots=True)
class Curve:
    """How good a model is when only k of its N fragments are present.

    The quality is c0 + c1·x + c2·x² + c3·x³ with x = k/N, clamped to [0, 1]; 0 below ``min_fragments`` and 1 with all.

    Attributes:
        coefficients: c0 to c3.
        min_fragments: Fewer are of no use; at least 1.

    Raises:
        ValueError: The polynomial falls somewhere in [0, 1], is not finite, or ``min_fragments`` is below 1.
    """

    coefficients: tuple[float, float, float, float]
    min_fragments: int = 1

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.coefficients)):
            raise ValueError(f"coefficients {self.coefficients} are not finite")
        if self.min_fragments < 1:
            raise ValueError(f"min_fragments {self.min_fragments} is below 1")
        # The slope is a parabola: on [0, 1] it is smallest at an end or at its vertex.
        _, c1, c2, c3 = self.coefficients
        candidates = [0.0, 1.0]
        if c3 > 0 and 0.0 < -c2 / (3 * c3) < 1.0:
            candidates.append(-c2 / (3 * c3))
        if any(c1 + 2 * c2 * x + 3 * c3 * x * x < -TOLERANCE for x in candidates):
            raise ValueError(f"coefficients {self.coefficients}: more fragments would make it worse")

    def quality(self, fragments: int, total: int) -> float:
        """Quality in [0, 1] with ``fragments`` of ``total``, which is at least 1."""
        if fragments < self.min_fragments:
            return 0.0
        if fragments >= total:
            return 1.0
        x = fragments / total
        c0, c1, c2, c3 = self.coefficients
        return min(1.0, max(0.0, c0 + x * (c1 + x * (c2 + x * c3))))


LINEAR = Curve((0.0, 1.0, 0.0, 0.0), 1)
SPECTRAL = Curve((0.6, 0.3, 0.08, 0.02), 1)
RANDOM_PROJECTION = Curve((0.1, 0.8, 0.08, 0.02), 2)
LOW_RANK = Curve((0.3, 0.5, 0.15, 0.05), 1)

#: The curves by the names that configurations use.
CURVES: Mapping[str, Curve] = {
    "linear": LINEAR,
    "spectral": SPECTRAL,
    "random_projection": RANDOM_PROJECTION,
    "low_rank": LOW_RANK,
}


def fragments_for_quality(quality: float, total: int, curve: Curve = LINEAR) -> int:
    """The fewest of ``total`` fragments that reach ``quality``; ``total`` when nothing less does.

    Args:
        quality: Target in [0, 1].
        total: Fragments of the model; at least 1.
        curve: How quality grows with fragments.

    Raises:
        ValueError: The target is not in [0, 1] or ``total`` is below 1.
    """
    if not 0.0 <= quality <= 1.0:
        raise ValueError(f"quality {quality} is not in [0, 1]")
    if total < 1:
        raise ValueError(f"total {total} is below 1")
    for fragments in range(curve.min_fragments, total):
        if curve.quality(fragments, total) >= quality - TOLERANCE:
            return fragments
    return total
