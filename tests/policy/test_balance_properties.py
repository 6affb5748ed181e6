"""The balancer against trying everything, and what must hold whatever the shards are."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import (
    Balanced,
    Cause,
    Infeasible,
    Objective,
    Rebalance,
    Settings,
    Shard,
    ShardState,
)
from tests.thorough import examples

from . import balance_oracle as oracle

SEEDS = st.integers(min_value=0, max_value=2**32)
MANY = examples(150)
EAGER = Settings(imbalance_threshold=1.0, min_speedup=1.0)
"""Suggests whatever is not worse, so that every optimum is seen."""


def group(source: random.Random, *, most: int = 4, layers: int = 12, alive: bool = False) -> list[Shard]:
    """A few shards; costs are few, so that equals are common, and some are no short fractions."""
    count = source.randint(1, most)
    states = [ShardState.LIVE] if alive else [ShardState.LIVE] * 6 + [ShardState.DEGRADED, ShardState.FAILED]
    held = [0] * count
    for _ in range(source.randint(1, layers)):
        held[source.randrange(count)] += 1
    return [
        Shard(
            name=f"shard-{source.randint(0, 9)}-{place}",
            position=source.choice((place, place, 0)),
            layers=held[place],
            cost_us=source.choice((0.1, 0.3, 10.0, 10.0, 20.0, source.uniform(0.01, 100.0))),
            max_layers=source.choice((None, None, source.randint(0, layers))),
            state=source.choice(states),
        )
        for place in range(count)
    ]


def in_order(shards: list[Shard]) -> list[Shard]:
    """In pipeline order."""
    return sorted(shards, key=lambda shard: (shard.position, shard.name))


@MANY
@given(SEEDS, st.sampled_from(Objective))
def test_suggestion_is_as_good_as_any_when_everything_is_tried(seed: int, objective: Objective) -> None:
    shards = in_order(group(random.Random(seed)))
    total = sum(shard.layers for shard in shards)
    costs = [Fraction(shard.cost_us or 0) for shard in shards]
    best = oracle.best(shards, costs, total, objective)
    decision = balance.evaluate(shards, now=0.0, settings=replace(EAGER, objective=objective))
    if best is None:
        assert isinstance(decision, Infeasible)
        return
    current = tuple(shard.layers for shard in shards)
    if isinstance(decision, Balanced):
        now = oracle.objective_of(current, costs, objective)
        assert now <= best[0] or decision.imbalance <= 1.0 + 1e-12
        return
    assert isinstance(decision, Rebalance)
    division = tuple(span.layers for span in decision.assignment)
    assert division in set(oracle.divisions([oracle.limits(shard, total) for shard in shards], total))
    assert (oracle.objective_of(division, costs, objective), oracle.moved(current, division)) == best
    assert decision.moved == best[1]


@MANY
@given(SEEDS, st.sampled_from(Objective))
def test_suggestion_is_valid_when_shards_are_many(seed: int, objective: Objective) -> None:
    """All layers once, in pipeline order; within limits; never worse; nothing more to suggest once it is applied."""
    source = random.Random(seed)
    shards = group(source, most=30, layers=400, alive=source.random() < 0.5)
    chosen = Settings(objective=objective)
    decision = balance.evaluate(shards, now=0.0, settings=chosen)
    if not isinstance(decision, Rebalance):
        return
    total = sum(shard.layers for shard in shards)
    assert [span.name for span in decision.assignment] == [shard.name for shard in in_order(shards)]
    assert decision.assignment[0].begin == 0
    assert decision.assignment[-1].end == total
    assert all(one.end == other.begin for one, other in pairwise(decision.assignment))
    counts = {span.name: span.layers for span in decision.assignment}
    for shard in shards:
        least, most = oracle.limits(shard, total)
        assert least <= counts[shard.name] <= most
    gain = decision.throughput_gain if objective is Objective.THROUGHPUT else decision.latency_gain
    if decision.cause is Cause.IMBALANCE:
        assert gain is not None
        assert gain >= chosen.min_speedup
        assert decision.imbalance is not None
        assert decision.imbalance > chosen.imbalance_threshold
    applied = [replace(shard, layers=counts[shard.name]) for shard in shards]
    assert isinstance(balance.evaluate(applied, now=0.0, settings=chosen), Balanced)


@MANY
@given(SEEDS, st.sampled_from(Objective))
def test_suggestion_is_the_same_when_shards_come_in_ten_other_orders(seed: int, objective: Objective) -> None:
    source = random.Random(seed)
    shards = group(source, most=8, layers=60)
    chosen = Settings(objective=objective)
    first = balance.evaluate(shards, now=0.0, settings=chosen)
    for _ in range(10):
        source.shuffle(shards)
        assert balance.evaluate(shards, now=0.0, settings=chosen) == first


@MANY
@given(SEEDS)
def test_first_placement_is_as_good_as_any_when_everything_is_tried(seed: int) -> None:
    source = random.Random(seed)
    shards = in_order([replace(shard, layers=0) for shard in group(source)])
    total = source.randint(1, 12)
    costs = [Fraction(shard.cost_us or 0) for shard in shards]
    best = oracle.best(shards, costs, total, Objective.THROUGHPUT)
    spans = balance.place(shards, total)
    if isinstance(spans, Infeasible):
        assert best is None
        return
    assert best is not None
    assert oracle.objective_of(tuple(span.layers for span in spans), costs, Objective.THROUGHPUT) == best[0]
