"""The best division of layers by trying every one, with exact fractions; for a few shards and layers only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from arbiter_sidecar.policy.balance import Objective, Shard, ShardState

Division = tuple[int, ...]


def limits(shard: Shard, total: int) -> tuple[int, int]:
    """The least and the most layers a shard may get."""
    if shard.state is ShardState.FAILED:
        return 0, 0
    if shard.state is ShardState.DEGRADED:
        return shard.layers, shard.layers
    most = total if shard.max_layers is None else shard.max_layers
    return min(1, most), most


def divisions(bounds: Sequence[tuple[int, int]], total: int) -> Iterator[Division]:
    """Every way to divide ``total`` within the bounds."""
    if not bounds:
        if total == 0:
            yield ()
        return
    least, most = bounds[0]
    for count in range(least, min(most, total) + 1):
        for rest in divisions(bounds[1:], total - count):
            yield (count, *rest)


def objective_of(division: Division, costs: Sequence[Fraction], objective: Objective) -> Fraction:
    """What is to be small."""
    lengths = [count * cost for count, cost in zip(division, costs, strict=True)]
    return max(lengths) if objective is Objective.THROUGHPUT else sum(lengths, Fraction(0))


def moved(before: Sequence[int], after: Sequence[int]) -> int:
    """Layers that leave their shard."""
    return sum(abs(old - new) for old, new in zip(before, after, strict=True)) // 2


def best(
    shards: Sequence[Shard], costs: Sequence[Fraction], total: int, objective: Objective
) -> tuple[Fraction, int] | None:
    """Smallest objective, and fewest moves among all that reach it; ``None``: there is no division."""
    found = [
        (objective_of(division, costs, objective), moved([shard.layers for shard in shards], division))
        for division in divisions([limits(shard, total) for shard in shards], total)
    ]
    return min(found, default=None)
