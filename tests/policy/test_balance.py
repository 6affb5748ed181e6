"""Dividing the layers of a model: the worked numbers, one by one."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace

import pytest

from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import (
    Balanced,
    Cause,
    Decision,
    Infeasible,
    Objective,
    Rebalance,
    Settings,
    Shard,
    ShardState,
    Shortage,
    Span,
    TooFewSamples,
    TooSoon,
)

LATENCY = Settings(objective=Objective.LATENCY)


def shards(*facts: tuple[int, float | None], caps: tuple[int | None, ...] = ()) -> list[Shard]:
    """Live shards with these layers and costs, in pipeline order."""
    return [
        Shard(
            name=f"shard-{place}",
            position=place,
            layers=layers,
            cost_us=cost,
            max_layers=caps[place] if place < len(caps) else None,
        )
        for place, (layers, cost) in enumerate(facts)
    ]


def with_state(group: list[Shard], place: int, state: ShardState) -> list[Shard]:
    """The group with one of its shards in another state."""
    return [replace(shard, state=state) if index == place else shard for index, shard in enumerate(group)]


def ask(group: list[Shard], settings: Settings = balance.DEFAULTS) -> Decision:
    """A first evaluation."""
    return balance.evaluate(group, now=0.0, settings=settings)


def advice(group: list[Shard], settings: Settings = balance.DEFAULTS) -> Rebalance:
    """A first evaluation that must suggest something."""
    decision = ask(group, settings)
    assert isinstance(decision, Rebalance)
    return decision


def layers(rebalance: Rebalance) -> list[int]:
    """Layers of each shard in pipeline order."""
    return [span.layers for span in rebalance.assignment]


def applied(group: list[Shard], rebalance: Rebalance) -> list[Shard]:
    """The group after the suggestion was followed."""
    by_name = {span.name: span.layers for span in rebalance.assignment}
    return [replace(shard, layers=by_name[shard.name]) for shard in group]


@pytest.mark.parametrize(
    ("group", "expected", "moved", "bottleneck", "gain", "latency_gain"),
    [
        pytest.param(shards((8, 10), (8, 100)), [15, 1], 7, 150, 800 / 150, 3.52, id="one-is-ten-times-slower"),
        pytest.param(shards((8, 10), (8, 1000)), [15, 1], 7, 1000, 8.0, 8080 / 1150, id="never-to-nothing"),
        pytest.param(
            shards((8, 10), (8, 20), (8, 30), (8, 50)), [16, 8, 5, 3], 8, 160, 2.5, 880 / 620, id="four-speeds"
        ),
        pytest.param(
            shards((80, 0.875), (8, 10), (8, 100)), [87, 8, 1], 7, 100, 8.0, 950 / 256.125, id="under-a-microsecond"
        ),
        pytest.param(
            shards((8, 10), (8, 100), caps=(10,)), [10, 6], 2, 600, 800 / 600, 880 / 700, id="the-fast-one-is-full"
        ),
        pytest.param(shards((16, 10), (16, 10), (0, 10)), [11, 11, 10], 10, 110, 160 / 110, 1.0, id="one-is-empty"),
        pytest.param(shards((3, 30), (11, 10), (12, 5)), [2, 8, 16], 4, 80, 110 / 80, 260 / 220, id="three-speeds"),
    ],
)
def test_advice_matches_the_worked_numbers_when_stages_are_uneven(
    group: list[Shard], expected: list[int], moved: int, bottleneck: float, gain: float, latency_gain: float
) -> None:
    rebalance = advice(group)
    assert (layers(rebalance), rebalance.moved, rebalance.cause) == (expected, moved, Cause.IMBALANCE)
    assert rebalance.bottleneck_us == pytest.approx(bottleneck)
    assert rebalance.throughput_gain == pytest.approx(gain)
    assert rebalance.latency_gain == pytest.approx(latency_gain)
    assert rebalance.estimated == ()


def test_advice_names_ranges_in_pipeline_order_when_given() -> None:
    rebalance = advice(shards((8, 10), (8, 100)))
    assert rebalance.assignment == (Span("shard-0", 0, 15), Span("shard-1", 15, 16))


@pytest.mark.parametrize(
    ("group", "imbalance"),
    [
        pytest.param(shards((15, 10), (1, 100)), 150 / (16 / 0.11), id="what-was-advised"),
        pytest.param(shards((8, 100), (8, 112.5)), 1.0625, id="almost-alike"),
        pytest.param(shards((10, 10), (10, 12)), 1.1, id="the-best-gains-too-little"),
        pytest.param(shards((5, 10)), 1.0, id="alone"),
    ],
)
def test_nothing_is_advised_when_it_would_not_pay(group: list[Shard], imbalance: float) -> None:
    decision = ask(group)
    assert isinstance(decision, Balanced)
    assert decision.imbalance == pytest.approx(imbalance)


def test_nothing_is_advised_when_the_gain_is_too_small_for_a_large_imbalance() -> None:
    """One layer each: nothing can be better, however uneven."""
    decision = ask(shards((1, 10), (1, 100)))
    assert isinstance(decision, Balanced)
    assert decision.imbalance == pytest.approx(5.5)


def test_thresholds_are_exact_when_they_are_just_met() -> None:
    """An imbalance of the threshold is tolerated; a gain of the minimum is worth it."""
    assert ask(shards((16, 10), (16, 10), (0, 20))) == Balanced(1.25)
    assert advice(shards((11, 10), (9, 10)), Settings(imbalance_threshold=1.05)).throughput_gain == 1.10


def test_advice_depends_on_the_settings_when_thresholds_are_near() -> None:
    group = shards((10, 10), (10, 12))
    assert layers(advice(group, Settings(imbalance_threshold=1.05, min_speedup=1.09))) == [11, 9]
    assert isinstance(ask(group, Settings(imbalance_threshold=1.05, min_speedup=1.10)), Balanced)
    assert isinstance(ask(group, Settings(imbalance_threshold=1.15, min_speedup=1.00)), Balanced)
    best = shards((11, 10), (9, 12))
    assert isinstance(ask(best, Settings(imbalance_threshold=1.00, min_speedup=1.00)), Balanced)


def test_layers_of_a_failed_shard_move_when_others_can_hold_them() -> None:
    rebalance = advice(with_state(shards((8, 10), (8, 15), (8, 20)), 1, ShardState.FAILED))
    assert layers(rebalance) == [16, 0, 8]
    assert rebalance.assignment[1] == Span("shard-1", 16, 16)
    assert (rebalance.cause, rebalance.moved) == (Cause.FAILURE, 8)
    assert (rebalance.imbalance, rebalance.throughput_gain, rebalance.latency_gain) == (None, None, None)


def test_failure_is_answered_with_estimates_when_samples_are_few() -> None:
    """No new samples come while the pipeline stands still."""
    group = [replace(shard, fresh_samples=3) for shard in shards((8, 10), (8, 15), (8, None))]
    rebalance = advice(with_state(group, 1, ShardState.FAILED))
    assert rebalance.estimated == ("shard-0", "shard-2")
    assert sum(layers(rebalance)) == 24


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        pytest.param(shards((8, 10), (8, 100), caps=(5, 5)), Infeasible(16, 10), id="memory"),
        pytest.param(
            with_state(shards((8, 10), (8, 15), (8, 20), caps=(12, 9, 6)), 1, ShardState.FAILED),
            Infeasible(24, 18),
            id="memory-after-a-failure",
        ),
        pytest.param(with_state(shards((8, 10)), 0, ShardState.FAILED), Infeasible(8, 0), id="all-failed"),
        pytest.param(shards((2, 10), (0, 10), (0, 10)), Infeasible(3, 2, Shortage.LAYERS), id="too-few-layers"),
        pytest.param(
            with_state(shards((0, 10)), 0, ShardState.DEGRADED),
            Infeasible(1, 0, Shortage.LAYERS),
            id="no-layers-at-all",
        ),
    ],
)
def test_no_assignment_is_invented_when_none_is_valid(group: list[Shard], expected: Infeasible) -> None:
    assert ask(group) == expected


def test_shard_without_room_gets_nothing_when_others_have_room() -> None:
    assert layers(advice(shards((8, 10), (8, 100), (0, 1), caps=(None, None, 0)))) == [15, 1, 0]


def test_degraded_shard_keeps_its_layers_when_the_others_share_anew() -> None:
    group = shards((20, 10), (2, 10), (2, 10))
    assert layers(advice(group)) == [8, 8, 8]
    assert layers(advice(with_state(group, 1, ShardState.DEGRADED))) == [11, 2, 11]


def test_failed_shard_is_not_missed_when_it_holds_no_layers() -> None:
    group = [*shards((8, 10), (8, 100)), Shard(name="gone", position=9, layers=0, cost_us=1.0)]
    rebalance = advice(with_state(group, 2, ShardState.FAILED))
    assert (layers(rebalance), rebalance.cause) == ([15, 1, 0], Cause.IMBALANCE)


def test_latency_is_least_when_the_cheapest_are_filled_first() -> None:
    rebalance = advice(shards((8, 10), (8, 100), caps=(12,)), LATENCY)
    assert layers(rebalance) == [12, 4]
    assert (rebalance.latency_us, rebalance.bottleneck_us) == (520, 400)
    assert rebalance.latency_gain == pytest.approx(880 / 520)


def test_fewest_layers_move_when_costs_are_equal_and_latency_counts() -> None:
    rebalance = advice(shards((2, 10), (6, 10), (12, 30)), LATENCY)
    assert (sum(layers(rebalance)[:2]), layers(rebalance)[2], rebalance.moved) == (19, 1, 11)
    assert layers(rebalance)[1] >= 6


def test_empty_shard_is_used_and_named_when_it_was_never_measured() -> None:
    group = [*shards((16, 10), (16, 10)), Shard(name="new", position=9, layers=0, cost_us=None, fresh_samples=0)]
    rebalance = advice(group)
    assert (layers(rebalance), rebalance.estimated) == ([11, 11, 10], ("new",))


def test_last_known_cost_is_used_and_named_when_a_shard_is_empty() -> None:
    group = [*shards((16, 10), (16, 10)), Shard(name="back", position=9, layers=0, cost_us=15.0, fresh_samples=0)]
    rebalance = advice(group)
    assert (layers(rebalance), rebalance.estimated) == ([12, 12, 8], ("back",))


def test_more_samples_are_awaited_when_a_shard_with_layers_has_too_few() -> None:
    group = shards((8, 10), (8, 100), (8, None))
    group[0] = replace(group[0], fresh_samples=99)
    assert ask(group) == TooFewSamples(("shard-0", "shard-2"))
    assert ask([]) == TooFewSamples(())
    assert layers(advice(group[:2], Settings(min_samples=99))) == [15, 1]


def test_evaluation_waits_for_the_interval_unless_a_state_changed() -> None:
    group = shards((8, 10), (8, 100))
    assert balance.evaluate(group, now=59.0, evaluated_at=0.0) == TooSoon(1.0)
    assert isinstance(balance.evaluate(group, now=60.0, evaluated_at=0.0), Rebalance)
    assert isinstance(balance.evaluate(group, now=1.0, evaluated_at=0.0, state_changed=True), Rebalance)


@pytest.mark.parametrize(
    ("facts", "layers", "expected"),
    [
        pytest.param([(32, None), (16, None)], 30, [15, 15], id="by-memory-alone"),
        pytest.param([(32, 1.0), (16, 2.0)], 30, [20, 10], id="by-benchmark"),
        pytest.param([(32, 1.0), (16, 2.0), (16, None)], 30, [14, 7, 9], id="one-was-not-measured"),
        pytest.param([(20, None), (4, None)], 24, [20, 4], id="all-full"),
        pytest.param([(None, None), (None, None), (None, None)], 10, [4, 3, 3], id="memory-unknown"),
    ],
)
def test_first_placement_is_the_same_optimum_when_nothing_is_loaded(
    facts: list[tuple[int | None, float | None]], layers: int, expected: list[int]
) -> None:
    group = shards(*((5, cost) for _, cost in facts), caps=tuple(cap for cap, _ in facts))
    spans = balance.place(group, layers)
    assert not isinstance(spans, Infeasible)
    assert [span.layers for span in spans] == expected


def test_first_placement_fills_the_cheapest_when_latency_counts() -> None:
    spans = balance.place(shards((0, 1.0), (0, 2.0), caps=(16,)), 20, objective=Objective.LATENCY)
    assert spans == (Span("shard-0", 0, 16), Span("shard-1", 16, 20))


def test_first_placement_is_refused_when_memory_is_short() -> None:
    assert balance.place(shards((0, None), (0, None), caps=(8, 8)), 30) == Infeasible(30, 16)
    assert balance.place([], 30) == Infeasible(30, 0)
    assert balance.place([], 0) == Infeasible(1, 0, Shortage.LAYERS)


def test_first_placement_leaves_out_who_cannot_be_relied_on() -> None:
    group = with_state(shards((9, 1.0), (9, 1.0)), 0, ShardState.DEGRADED)
    spans = balance.place(group, 6)
    assert spans == (Span("shard-0", 0, 0), Span("shard-1", 0, 6))


def test_room_is_what_fits_when_sizes_are_known() -> None:
    gib = 2**30
    assert [balance.layer_room(free * gib, gib // 2) for free in (16, 8)] == [32, 16]
    assert balance.layer_room(gib - 1, gib) == 0
    assert balance.layer_room(-5, gib) == 0
    assert balance.layer_room(gib, 0) is None


@pytest.mark.parametrize("latency", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_sample_is_refused_when_it_is_no_latency(latency: float) -> None:
    with pytest.raises(ValueError, match="send microseconds above 0"):
        balance.sample_cost(latency, 8)


def test_sample_is_a_float_when_it_is_less_than_a_microsecond_a_layer() -> None:
    assert balance.sample_cost(15, 8) == 1.875


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param([], None, id="none"),
        pytest.param([7.0], 7.0, id="one"),
        pytest.param([100.0, 200.0, 150.0], 150.0, id="too-few-to-drop-any"),
        pytest.param([1e9, *[10.0] * 18, 0.001], 10.0, id="one-in-twenty-at-each-end"),
        pytest.param([float(value) for value in range(256)], 127.5, id="a-full-window"),
        pytest.param([1e9, *[10.0] * 19], 10.0, id="an-outlier"),
    ],
)
def test_mean_ignores_outliers_when_there_are_enough_samples(samples: list[float], expected: float | None) -> None:
    assert balance.trimmed_mean(samples) == expected


def test_a_thousand_shards_are_quick_when_there_are_ten_thousand_layers() -> None:
    """Fifty milliseconds are expected; ten times that guards against another kind of growth."""
    source = random.Random(1)
    group = shards(*((10, source.uniform(5.0, 500.0)) for _ in range(1000)))
    start = time.perf_counter()
    rebalance = advice(group)
    assert time.perf_counter() - start < 0.5
    assert sum(layers(rebalance)) == 10_000
