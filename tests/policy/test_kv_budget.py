"""KV token budgets: the worked numbers, whole blocks, and what they cost."""

from __future__ import annotations

import random
import time

import pytest

from arbiter_sidecar.policy import kv_budget
from arbiter_sidecar.policy.kv_budget import Engine
from arbiter_sidecar.types import LeaseId


def engine(name: int, weight: int = 1, *, floor: int = 0, cap: int | None = None, demand: int | None = None) -> Engine:
    """An active engine."""
    return Engine(lease_id=LeaseId(f"engine-{name:05d}"), weight=weight, floor=floor, cap=cap, demand=demand)


def weights(*values: int) -> list[Engine]:
    """Active engines with these weights."""
    return [engine(name, value) for name, value in enumerate(values)]


def idle(engine: Engine) -> Engine:
    """Without work."""
    engine.active = False
    return engine


def ill(engine: Engine) -> Engine:
    """Not serving."""
    engine.healthy = False
    return engine


@pytest.mark.parametrize(
    ("total", "engines", "permille", "expected"),
    [
        pytest.param(1000, weights(1, 1), 900, [500, 500], id="equal-weights"),
        pytest.param(1000, weights(1, 3), 900, [250, 750], id="one-to-three"),
        pytest.param(1000, weights(1, 1, 1), 900, [334, 333, 333], id="thirds"),
        pytest.param(8192, weights(1, 2), 900, [2731, 5461], id="one-to-two"),
        pytest.param(900, [*weights(1, 1), idle(engine(2))], 900, [450, 450, 0], id="idle-share-goes-to-both"),
        pytest.param(1000, [engine(0), idle(engine(1))], 900, [900, 0], id="idle-share-up-to-the-cap"),
        pytest.param(1000, [engine(0), idle(engine(1))], 1000, [1000, 0], id="idle-share-without-a-cap"),
        pytest.param(1000, weights(99, 1), 900, [900, 100], id="excess-over-the-cap-is-not-lost"),
        pytest.param(10, [engine(0), idle(engine(1, 100))], 900, [9, 0], id="a-heavy-idle-one-starves-nobody"),
        pytest.param(2, weights(1, 1, 1), 900, [1, 1, 0], id="fewer-tokens-than-engines"),
        pytest.param(1000, weights(1, 1, 2), 300, [300, 300, 300], id="all-at-the-cap"),
        pytest.param(1001, [*weights(5, 3), idle(engine(2, 2))], 900, [626, 375, 0], id="largest-remainder"),
        pytest.param(1000, [engine(0, floor=300), engine(1), engine(2, 8)], 900, [300, 78, 622], id="a-floor"),
        pytest.param(1000, [engine(0, demand=100), *weights(1, 1, 1)[1:]], 900, [100, 450, 450], id="little-demand"),
        pytest.param(1000, [engine(0, cap=200), *weights(1, 1, 1)[1:]], 900, [200, 400, 400], id="a-cap-of-its-own"),
        pytest.param(1000, [*weights(1, 1), ill(engine(2, 2))], 900, [500, 500, 0], id="one-is-ill"),
        pytest.param(1000, [idle(each) for each in weights(1, 3)], 900, [250, 750], id="nobody-is-active"),
        pytest.param(
            100,
            [engine(0, floor=80), engine(1, floor=40), engine(2, floor=40)],
            900,
            [50, 25, 25],
            id="floors-too-high",
        ),
        pytest.param(1, weights(1, 1), 900, [1, 0], id="a-single-token"),
        pytest.param(1000, [], 900, [], id="no-engines"),
        pytest.param(0, weights(1, 1), 900, [0, 0], id="no-tokens"),
        pytest.param(1000, [ill(engine(0)), ill(idle(engine(1)))], 900, [0, 0], id="all-ill"),
        pytest.param(1000, [ill(engine(0)), idle(engine(1))], 900, [0, 900], id="the-active-one-is-ill"),
        pytest.param(1000, [engine(0)], 500, [500], id="alone-under-a-strict-cap"),
        pytest.param(1000, [engine(0, demand=0), engine(1)], 1000, [0, 1000], id="no-demand"),
        pytest.param(1000, [engine(0, cap=0, floor=5), engine(1)], 1000, [0, 1000], id="a-cap-below-the-floor"),
        pytest.param(1000, [engine(0, floor=600), engine(1, floor=400)], 1000, [600, 400], id="floors-fit-exactly"),
        pytest.param(1000, [engine(0, floor=2000), engine(1)], 900, [900, 100], id="a-floor-above-the-cap"),
        pytest.param(5, [engine(0, floor=3), engine(1, 2, floor=3)], 1000, [2, 3], id="cut-floors-and-an-odd-token"),
        pytest.param(1738, weights(1, 3), 1000, [435, 1303], id="equal-fractions-go-to-the-lower-id"),
        pytest.param(7, [engine(0, floor=3), engine(1, floor=3), engine(2)], 1000, [3, 3, 1], id="floors-and-a-rest"),
    ],
)
def test_budgets_match_the_worked_numbers_when_allocated(
    total: int, engines: list[Engine], permille: int, expected: list[int]
) -> None:
    assert kv_budget.allocate(engines, total, engine_cap_permille=permille) == expected
    assert kv_budget.allocate(engines[::-1], total, engine_cap_permille=permille) == expected[::-1]


def test_cap_is_off_when_none_is_configured() -> None:
    assert kv_budget.allocate([engine(0)], 1000) == [1000]


def test_lowest_id_gets_the_odd_token_when_engines_come_in_any_order() -> None:
    assert kv_budget.allocate([engine(2), engine(0), engine(1)], 1000) == [333, 334, 333]


@pytest.mark.parametrize(
    ("engines", "total", "expected"),
    [
        pytest.param(weights(1, 1, 1), 62 * 16, [21 * 16, 21 * 16, 20 * 16], id="no-block-is-wasted"),
        pytest.param(weights(1, 1, 1), 62 * 16 + 15, [21 * 16, 21 * 16, 20 * 16], id="part-of-a-block-is-no-block"),
        pytest.param([engine(0, demand=17), engine(1)], 1600, [32, 1568], id="demand-counts-up"),
        pytest.param([engine(0, cap=31), engine(1)], 1600, [16, 1584], id="a-cap-counts-down"),
        pytest.param([engine(0, floor=17), engine(1, 1000)], 1600, [32, 1568], id="a-floor-counts-up"),
        pytest.param([engine(0)], 15, [0], id="less-than-a-block"),
    ],
)
def test_budgets_are_whole_blocks_when_the_resource_is(engines: list[Engine], total: int, expected: list[int]) -> None:
    assert kv_budget.allocate(engines, total, block_tokens=16) == expected


@pytest.mark.parametrize(
    ("previous", "current", "expected"),
    [
        pytest.param(100, 105, False, id="by-a-twentieth"),
        pytest.param(100, 106, True, id="by-more"),
        pytest.param(100, 94, True, id="down-by-more"),
        pytest.param(0, 1, True, id="from-nothing"),
        pytest.param(0, 0, False, id="still-nothing"),
        pytest.param(None, None, False, id="still-unknown"),
        pytest.param(None, 5, True, id="now-known"),
        pytest.param(5, None, True, id="no-longer-known"),
    ],
)
def test_demand_is_worth_new_budgets_when_it_moved(previous: int | None, current: int | None, expected: bool) -> None:
    assert kv_budget.demand_moved(previous, current) is expected


def crowd(count: int) -> list[Engine]:
    """Engines of every kind."""
    source = random.Random(count)
    return [
        Engine(
            lease_id=LeaseId(f"engine-{name:05d}"),
            weight=source.randint(1, 1000),
            floor=source.choice((0, source.randint(0, 2000))),
            cap=source.choice((None, source.randint(2000, 9000))),
            demand=source.choice((None, source.randint(0, 9000))),
            active=source.random() < 0.9,
        )
        for name in range(count)
    ]


def test_ten_thousand_budgets_are_quick_when_every_engine_is_different() -> None:
    """Twenty milliseconds are expected; ten times that guards against another kind of growth."""
    engines = crowd(10_000)
    start = time.perf_counter()
    budgets = kv_budget.allocate(engines, 2_000 * 10_000)
    assert time.perf_counter() - start < 0.2
    assert sum(budgets) == 2_000 * 10_000
