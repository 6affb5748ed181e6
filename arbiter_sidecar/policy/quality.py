"""Quality as a solved allocation: one target for every lease of a device, found together.

Each lease has bytes that fall linearly from its full size at quality 1 to its floor at its minimum. When the sum at
everybody's maximum is over the target, quality is taken away in inverse proportion to weight (water-filling) until the
target is met or everybody stands at the minimum. docs/definitions.md has the derivation and the worked numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from arbiter_sidecar.types import Priority, WorkloadType

#: Share of the capacity that the solver aims to stay under; the rest absorbs what nobody promised.
SOFT_TARGET = 0.85
#: Share of its memory that a lease is taken to shed between quality 1 and 0 when it declares no minimum size.
DEFAULT_ELASTICITY = 0.5
#: Lowest useful quality where the worker names none. OTHER is taken like a language model: the most cautious of them.
DEFAULT_MIN_QUALITY = {
    WorkloadType.LLM_INFERENCE: 0.4,
    WorkloadType.IMAGE_GENERATION: 0.3,
    WorkloadType.VIDEO_GENERATION: 0.25,
    WorkloadType.OTHER: 0.4,
}
#: How much dearer a step of quality is than at BACKGROUND.
PRIORITY_WEIGHT = {
    Priority.BACKGROUND: 1.0,
    Priority.LOW: 2.0,
    Priority.NORMAL: 4.0,
    Priority.HIGH: 8.0,
    Priority.CRITICAL: 16.0,
}
#: What `llm_first` and `diffusion_first` multiply the favoured weights by: two priorities.
FAVOUR = 4.0
_DIFFUSION = (WorkloadType.IMAGE_GENERATION, WorkloadType.VIDEO_GENERATION)


class QualityPolicy(StrEnum):
    """Whose quality is taken first."""

    ADAPTIVE = "adaptive"
    LLM_FIRST = "llm_first"
    DIFFUSION_FIRST = "diffusion_first"
    BALANCED = "balanced"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elastic:
    """One lease as the solver sees it.

    Attributes:
        full_bytes: Bytes at quality 1.
        floor_bytes: Bytes at ``min_quality``.
        min_quality: Lowest quality, in [0,1].
        max_quality: Highest quality, in [min_quality,1].
        weight: Cost of a step of quality, above 0.
    """

    full_bytes: int
    floor_bytes: int
    min_quality: float
    max_quality: float
    weight: float

    @property
    def slope(self) -> float:
        """Bytes that one whole unit of quality is worth; 0 for a lease that cannot shrink."""
        if self.min_quality >= 1.0:
            return 0.0
        return (self.full_bytes - self.floor_bytes) / (1.0 - self.min_quality)

    def bytes_at(self, quality: float) -> int:
        """Bytes at a quality in [min_quality,1], rounded up so that a promise is never short."""
        if quality >= 1.0:
            return self.full_bytes
        if quality <= self.min_quality:
            return self.floor_bytes
        shed = math.floor((self.full_bytes - self.floor_bytes) * (1.0 - quality) / (1.0 - self.min_quality))
        return max(self.floor_bytes, self.full_bytes - shed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The targets and the numbers that led to them.

    Attributes:
        targets: Exact quality of each lease, in the order given.
        reduction_bytes: What had to be taken away from everybody's maximum.
        elastic_bytes: What can be taken away at most.
        soft_deficit_bytes: By how much the minimum of all is over the target; 0 when the target is met.
        hard_deficit_bytes: By how much the minimum of all is over the capacity; 0 when it fits.
        water_level: Quality lost times weight, common to all that stand between their bounds; infinite when all stand
            at their minimum.
    """

    targets: tuple[float, ...]
    reduction_bytes: int
    elastic_bytes: int
    soft_deficit_bytes: int
    hard_deficit_bytes: int
    water_level: float


def target_bytes(capacity_bytes: int, soft_target: float = SOFT_TARGET) -> int:
    """The bytes the solver aims to stay under."""
    return math.floor(capacity_bytes * soft_target)


def floor_bytes(
    full_bytes: int, min_quality: float, min_memory_bytes: int | None, elasticity: float = DEFAULT_ELASTICITY
) -> int:
    """Bytes at the minimum quality: what was declared, else what the default elasticity gives.

    A minimum quality of 1 leaves nothing to shed, whatever minimum size was declared.
    """
    if min_quality >= 1.0:
        return full_bytes
    if min_memory_bytes is not None:
        return min_memory_bytes
    return full_bytes - math.floor(elasticity * full_bytes * (1.0 - min_quality))


def weight(policy: QualityPolicy, workload: WorkloadType, priority: Priority) -> float:
    """The cost of a step of quality under a policy."""
    if policy is QualityPolicy.BALANCED:
        return 1.0
    favoured = (policy is QualityPolicy.LLM_FIRST and workload is WorkloadType.LLM_INFERENCE) or (
        policy is QualityPolicy.DIFFUSION_FIRST and workload in _DIFFUSION
    )
    return PRIORITY_WEIGHT[priority] * (FAVOUR if favoured else 1.0)


def effective_min(policy: QualityPolicy, min_quality: float, max_quality: float) -> float:
    """The minimum that the policy respects: under `fixed` nobody is lowered."""
    return max_quality if policy is QualityPolicy.FIXED else min_quality


def solve(leases: Sequence[Elastic], *, capacity_bytes: int, target_bytes: int, foreign_bytes: int) -> Solution:
    """Finds everybody's target. Pure; independent of the order of ``leases``; O(n log n).

    Args:
        leases: The leases of one device, and a newcomer if there is one.
        capacity_bytes: What may never be passed.
        target_bytes: What to stay under.
        foreign_bytes: Use that no lease accounts for.
    """
    at_max = sum(lease.bytes_at(lease.max_quality) for lease in leases)
    at_min = sum(lease.bytes_at(lease.min_quality) for lease in leases)
    reduction = max(0, foreign_bytes + at_max - target_bytes)
    elastic = at_max - at_min
    hard_deficit = max(0, foreign_bytes + at_min - capacity_bytes)
    if reduction == 0:
        level, targets = 0.0, tuple(lease.max_quality for lease in leases)
    elif reduction >= elastic:
        level, targets = math.inf, tuple(lease.min_quality for lease in leases)
    else:
        level = _water_level(leases, reduction)
        targets = tuple(max(lease.min_quality, lease.max_quality - level / lease.weight) for lease in leases)
    return Solution(
        targets=targets,
        reduction_bytes=reduction,
        elastic_bytes=elastic,
        soft_deficit_bytes=max(0, reduction - elastic),
        hard_deficit_bytes=hard_deficit,
        water_level=level,
    )


def _water_level(leases: Sequence[Elastic], reduction: int) -> float:
    """The level at which Σ slope · min(room, level / weight) equals ``reduction``, found by its breakpoints."""
    bounds = sorted(
        ((lease.max_quality - lease.min_quality) * lease.weight, lease.slope / lease.weight)
        for lease in leases
        if lease.slope > 0.0
    )
    rate = math.fsum(per_level for _, per_level in bounds)
    level, freed = 0.0, 0.0
    for bound, per_level in bounds:
        step = rate * (bound - level)
        if freed + step >= reduction:
            return level + (reduction - freed) / rate
        level, freed, rate = bound, freed + step, rate - per_level
    # Whole bytes round up, so the last fraction of a byte can lie beyond the last breakpoint.
    return level
