"""Budgets against the exact oracle, and what must hold whoever the engines are."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy import kv_budget
from arbiter_sidecar.policy.kv_budget import Engine
from arbiter_sidecar.types import LeaseId
from tests.thorough import examples

from . import kv_budget_oracle as oracle

SEEDS = st.integers(min_value=0, max_value=2**32)
MANY = examples(150)
FEW = examples(80)


def crowd(source: random.Random, *, most: int = 12) -> tuple[list[Engine], int, int]:
    """Some engines, a total, a cap in thousandths; numbers anything from crumbs to a large card."""
    scale = source.choice((3, 30, 1000, 10**6, 2**40, 2**55))
    heaviest = source.choice((1, 3, 100, 10**6))
    engines = [
        Engine(
            lease_id=LeaseId(f"engine-{name}"),
            weight=source.randint(1, heaviest),
            floor=source.choice((0, 0, source.randint(0, scale))),
            cap=source.choice((None, None, source.randint(0, 2 * scale))),
            demand=source.choice((None, None, source.randint(0, 2 * scale))),
            active=source.random() < 0.8,
            healthy=source.random() < 0.9,
        )
        for name in range(source.randint(1, most))
    ]
    source.shuffle(engines)
    total = source.choice((0, 1, source.randint(0, scale), source.randint(0, scale * len(engines))))
    return engines, total, source.choice((100, 300, 900, 1000))


@MANY
@given(SEEDS)
def test_budgets_equal_the_exact_shares_when_anybody_asks(seed: int) -> None:
    engines, total, permille = crowd(random.Random(seed))
    found = kv_budget.allocate(engines, total, engine_cap_permille=permille)
    assert found == oracle.allocate(engines, total, permille)


@FEW
@given(SEEDS)
def test_budgets_equal_the_exact_shares_when_limits_are_large_and_close(seed: int) -> None:
    """More than a float can tell apart: a million of weight, and all start and stop to rise within one token of it."""
    source = random.Random(seed)
    engines = []
    for name in range(6):
        weight = source.randint(999_990, 1_000_000)
        floor, cap = sorted(round(weight * source.uniform(100_000.0, 100_001.0)) for _ in range(2))
        engines.append(Engine(lease_id=LeaseId(f"engine-{name}"), weight=weight, floor=floor, cap=cap))
    total = source.randint(sum(each.floor for each in engines), sum(each.cap or 0 for each in engines))
    assert kv_budget.allocate(engines, total) == oracle.allocate(engines, total, 1000)


@MANY
@given(SEEDS)
def test_budgets_respect_every_bound_when_anybody_asks(seed: int) -> None:
    """No token lost or invented; within bounds; nothing for who does not share; nobody could fairly have more."""
    engines, total, permille = crowd(random.Random(seed))
    budgets = kv_budget.allocate(engines, total, engine_cap_permille=permille)
    sharing = oracle.shares(engines)
    assert all(budget == 0 for budget, share in zip(budgets, sharing, strict=True) if not share)
    taking = [
        (engine, budget, *oracle.bounds_of(engine, total, permille))
        for engine, budget, share in zip(engines, budgets, sharing, strict=True)
        if share
    ]
    assert sum(budgets) == min(total, sum(upper for _, _, _, upper in taking))
    floors_fit = sum(lower for _, _, lower, _ in taking) <= total
    assert all(0 <= budget <= upper for _, budget, _, upper in taking)
    if not floors_fit:
        return
    assert all(budget >= lower for _, budget, lower, _ in taking)
    for one, mine, _, upper in taking:
        for other, theirs, lower, _ in taking:
            if mine < upper and theirs > lower:
                assert (mine + 1) * other.weight >= (theirs - 1) * one.weight


@FEW
@given(SEEDS)
def test_heavier_engines_get_no_less_when_bounds_are_equal(seed: int) -> None:
    source = random.Random(seed)
    engines, total, permille = crowd(source)
    floor, cap = source.randint(0, 5), source.choice((None, source.randint(0, total + 1)))
    engines = [replace(each, floor=floor, cap=cap, demand=None, active=True, healthy=True) for each in engines]
    budgets = kv_budget.allocate(engines, total, engine_cap_permille=permille)
    pairs = sorted(zip((each.weight for each in engines), budgets, strict=True))
    for (light, less), (heavy, more) in pairwise(pairs):
        assert less <= more or (light == heavy and less == more + 1)
        if light == heavy:
            assert more - less <= 1


@FEW
@given(SEEDS)
def test_budgets_are_the_same_when_engines_come_in_another_order(seed: int) -> None:
    source = random.Random(seed)
    engines, total, permille = crowd(source)
    budgets = {
        engine.lease_id: budget
        for engine, budget in zip(
            engines, kv_budget.allocate(engines, total, engine_cap_permille=permille), strict=True
        )
    }
    source.shuffle(engines)
    again = kv_budget.allocate(engines, total, engine_cap_permille=permille)
    assert [budgets[engine.lease_id] for engine in engines] == again


@FEW
@given(st.integers(min_value=1, max_value=60), st.integers(min_value=1, max_value=1000))
def test_everybody_gets_something_when_there_is_one_for_each(count: int, extra: int) -> None:
    engines = [Engine(lease_id=LeaseId(f"engine-{name}"), weight=7) for name in range(count)]
    assert min(kv_budget.allocate(engines, count + extra - 1, engine_cap_permille=1000)) >= 1


@FEW
@given(SEEDS, st.sampled_from([2, 16, 100]))
def test_blocks_are_shared_like_tokens_when_all_numbers_are_whole_blocks(seed: int, block: int) -> None:
    engines, total, permille = crowd(random.Random(seed))
    budgets = kv_budget.allocate(engines, total, engine_cap_permille=permille)
    scaled = [
        replace(
            each,
            floor=each.floor * block,
            cap=None if each.cap is None else each.cap * block,
            demand=None if each.demand is None else each.demand * block,
        )
        for each in engines
    ]
    found = kv_budget.allocate(scaled, total * block, engine_cap_permille=permille, block_tokens=block)
    assert found == [budget * block for budget in budgets]
