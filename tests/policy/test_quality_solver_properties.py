"""The quality solver against the exact oracle, and what must hold whatever the leases are."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.thorough import examples

from .scenarios import RELATIVE, Lease, Scenario, close, random_device, random_lease, scenarios, within

FEW = examples(50)
MANY = examples(120)


def rises(before: tuple[float, ...], after: tuple[float, ...]) -> list[int]:
    """Places whose quality went up by more than float noise."""
    return [place for place, (old, new) in enumerate(zip(before, after, strict=True)) if new > old + RELATIVE]


@MANY
@given(scenarios())
def test_targets_equal_the_exact_solution_when_everybody_may_reach_full_quality(scenario: Scenario) -> None:
    solution, answer = scenario.solve(), scenario.exact()
    assert len(solution.targets) == len(answer.qualities)
    wrong = [pair for pair in zip(solution.targets, answer.qualities, strict=True) if not close(*pair)]
    assert not wrong
    assert math.isinf(solution.water_level) if answer.level is None else close(solution.water_level, answer.level)
    assert solution.reduction_bytes == answer.reduction
    assert solution.elastic_bytes == answer.elastic
    assert solution.soft_deficit_bytes == answer.soft_deficit
    assert solution.hard_deficit_bytes == answer.hard_deficit


@FEW
@given(scenarios(capped=True))
def test_targets_equal_the_exact_solution_when_some_maxima_are_lower(scenario: Scenario) -> None:
    """The bytes at such a maximum are no whole number; a byte more or less for each lease is nobody's fault."""
    solution, rounding = scenario.solve(), len(scenario.leases)
    least, most = scenario.exact(rounding), scenario.exact(-rounding)
    answer = scenario.exact()
    bounds = zip(solution.targets, least.qualities, most.qualities, strict=True)
    assert all(within(target, low, high) for target, low, high in bounds)
    assert abs(solution.reduction_bytes - answer.reduction) <= rounding
    assert abs(solution.elastic_bytes - answer.elastic) <= rounding
    assert abs(solution.soft_deficit_bytes - answer.soft_deficit) <= 2 * rounding
    assert solution.hard_deficit_bytes == answer.hard_deficit


@MANY
@given(scenarios(spread=50))
def test_one_level_explains_every_target_when_sizes_are_wildly_mixed(scenario: Scenario) -> None:
    """A byte beside a pebibyte: the level may be off by what a float of the total cannot show, the rule may not."""
    solution = scenario.solve()
    for lease, target in zip(scenario.leases, solution.targets, strict=True):
        room = lease.maximum - lease.minimum
        expected = lease.maximum - min(room, solution.water_level / lease.weight)
        assert math.isclose(target, expected, rel_tol=RELATIVE, abs_tol=RELATIVE)
    if math.isinf(solution.water_level):
        assert solution.reduction_bytes >= solution.elastic_bytes
    else:
        slopes = [lease.claim().slope for lease in scenario.leases]
        lost = [1 - Fraction(target) for target in solution.targets]
        freed = sum((slope * loss for slope, loss in zip(slopes, lost, strict=True)), Fraction(0))
        assert abs(freed - solution.reduction_bytes) <= sum(slopes, Fraction(1)) / 2**46


@FEW
@given(scenarios(capped=True))
def test_targets_stay_within_their_bounds_always(scenario: Scenario) -> None:
    targets = scenario.solve().targets
    assert all(lease.minimum <= target <= lease.maximum for lease, target in zip(scenario.leases, targets, strict=True))


@FEW
@given(scenarios(capped=True))
def test_everybody_is_at_maximum_exactly_when_nothing_is_missing(scenario: Scenario) -> None:
    roomy = replace(scenario, target=10**18, capacity=10**18)
    solution = roomy.solve()
    assert solution.targets == tuple(lease.maximum for lease in scenario.leases)
    assert (solution.reduction_bytes, solution.soft_deficit_bytes, solution.hard_deficit_bytes) == (0, 0, 0)


@FEW
@given(scenarios(capped=True))
def test_everybody_is_at_minimum_exactly_when_too_much_is_missing(scenario: Scenario) -> None:
    hopeless = replace(scenario, foreign=scenario.capacity + 1)
    assert hopeless.solve().targets == tuple(lease.minimum for lease in scenario.leases)


def exact_use(scenario: Scenario, targets: tuple[float, ...]) -> Fraction:
    """Exact bytes used on the device with every lease at its target."""
    pairs = zip(scenario.leases, targets, strict=True)
    return scenario.foreign + sum((lease.claim().bytes_at(Fraction(target)) for lease, target in pairs), Fraction(0))


@MANY
@given(scenarios(capped=True))
def test_limits_are_met_without_waste_when_deficits_allow(scenario: Scenario) -> None:
    solution = scenario.solve()
    used = exact_use(scenario, solution.targets)
    slack = len(scenario.leases) + RELATIVE * used
    if solution.soft_deficit_bytes == 0:
        assert used <= scenario.target + slack
    if solution.hard_deficit_bytes == 0:
        assert used <= scenario.capacity + slack
    if solution.soft_deficit_bytes == 0 and solution.reduction_bytes > 0:
        assert used >= scenario.target - slack


@FEW
@given(scenarios(capped=True), st.floats(min_value=0.0, max_value=1.0))
def test_nobody_rises_when_strangers_take_more(scenario: Scenario, share: float) -> None:
    taken = 1 + int(share * sum(lease.full for lease in scenario.leases))
    squeezed = replace(scenario, foreign=scenario.foreign + taken)
    assert not rises(scenario.solve().targets, squeezed.solve().targets)


@FEW
@given(scenarios(capped=True), st.floats(min_value=0.0, max_value=1.0))
def test_nobody_rises_when_capacity_shrinks(scenario: Scenario, share: float) -> None:
    smaller = replace(scenario, target=int(scenario.target * share), capacity=int(scenario.capacity * share))
    assert not rises(scenario.solve().targets, smaller.solve().targets)


@MANY
@given(scenarios(most=12, capped=True))
def test_nobody_rises_when_a_lease_arrives_nor_falls_when_it_goes(scenario: Scenario) -> None:
    """Read forwards it is an arrival, read backwards a release."""
    *present, newcomer = scenario.leases
    alone = scenario.with_leases(*present)
    together = scenario.with_leases(*present, newcomer)
    assert not rises(alone.solve().targets, together.solve().targets[:-1])


@FEW
@given(scenarios(capped=True))
def test_heavier_is_not_lower_when_bounds_are_the_same(scenario: Scenario) -> None:
    leases = tuple(replace(lease, minimum=0.4, maximum=0.9) for lease in scenario.leases)
    targets = scenario.with_leases(*leases).solve().targets
    ranked = sorted(zip(leases, targets, strict=True), key=lambda pair: pair[0].weight)
    assert all(
        light_target <= heavy_target + RELATIVE
        for (light, light_target), (heavy, heavy_target) in pairwise(ranked)
        if light.weight < heavy.weight
    )


@FEW
@given(scenarios(capped=True), st.integers(min_value=0, max_value=2**32))
def test_arrival_order_does_not_matter_when_the_leases_are_the_same(scenario: Scenario, seed: int) -> None:
    places = list(range(len(scenario.leases)))
    random.Random(seed).shuffle(places)
    before = scenario.solve()
    after = scenario.with_leases(*(scenario.leases[place] for place in places)).solve()
    assert all(close(after.targets[new], before.targets[old]) for new, old in enumerate(places))
    assert before.reduction_bytes == after.reduction_bytes
    assert before.soft_deficit_bytes == after.soft_deficit_bytes
    assert before.hard_deficit_bytes == after.hard_deficit_bytes


@FEW
@given(scenarios(most=12))
def test_inelastic_lease_follows_the_level_when_others_pay(scenario: Scenario) -> None:
    """It frees nothing but sees the pressure: with the weight and bounds of an elastic lease it has its quality."""
    elastic = Lease(full=2 * scenario.leases[0].full, floor=scenario.leases[0].full, minimum=0.2)
    rigid = Lease(full=elastic.full, floor=elastic.full, minimum=0.2)
    targets = scenario.with_leases(*scenario.leases, elastic, rigid).solve().targets
    assert targets[-1] == pytest.approx(targets[-2], rel=RELATIVE, abs=RELATIVE)


@FEW
@given(st.integers(min_value=1, max_value=40))
def test_equal_sizes_move_together_when_every_byte_counts(gone: int) -> None:
    """Four leases of ten bytes each: the smallest devices obey the same rule."""
    leases = (Lease(full=10, floor=0, minimum=0.0),) * 4
    solution = Scenario(leases=leases, capacity=40, target=40 - gone).solve()
    assert solution.targets == pytest.approx((1 - gone / 40,) * 4, rel=RELATIVE, abs=1e-12)


def test_nobody_is_lowered_when_nothing_is_missing_and_nothing_can_shrink() -> None:
    """Nothing missing wins over nothing left to free."""
    leases = (Lease(full=8, floor=8, minimum=0.4), Lease(full=2, floor=2, minimum=0.3))
    solution = Scenario(leases=leases, capacity=12, target=10).solve()
    assert solution.targets == (1.0, 1.0)
    assert solution.soft_deficit_bytes == 0


def test_all_fall_to_minimum_when_something_is_missing_and_nothing_can_shrink() -> None:
    leases = (Lease(full=8, floor=8, minimum=0.4), Lease(full=2, floor=2, minimum=0.3))
    solution = Scenario(leases=leases, capacity=12, target=9).solve()
    assert solution.targets == (0.4, 0.3)
    assert (solution.soft_deficit_bytes, solution.hard_deficit_bytes) == (1, 0)


def test_all_fall_to_minimum_when_exactly_everything_must_be_freed() -> None:
    """At the edge the inelastic lease falls to its minimum too, although its weight would hold it higher."""
    leases = (Lease(full=10, floor=4, minimum=0.4, weight=1.0), Lease(full=5, floor=5, minimum=0.3, weight=16.0))
    solution = Scenario(leases=leases, capacity=15, target=9).solve()
    assert solution.targets == (0.4, 0.3)
    assert math.isinf(solution.water_level)
    assert (solution.soft_deficit_bytes, solution.hard_deficit_bytes) == (0, 0)


@pytest.mark.parametrize(("foreign", "soft", "hard"), [(0, 0, 0), (9, 1, 0), (15, 7, 3)])
def test_strangers_alone_make_the_deficit_when_there_is_no_lease(foreign: int, soft: int, hard: int) -> None:
    solution = Scenario(leases=(), capacity=12, target=8, foreign=foreign).solve()
    assert solution.targets == ()
    assert (solution.soft_deficit_bytes, solution.hard_deficit_bytes) == (soft, hard)


def test_device_without_capacity_holds_everybody_at_minimum_when_asked() -> None:
    solution = Scenario(leases=(Lease(full=10, floor=4, minimum=0.4),), capacity=0, target=0).solve()
    assert solution.targets == (0.4,)
    assert (solution.soft_deficit_bytes, solution.hard_deficit_bytes) == (4, 4)


@pytest.mark.parametrize("seed", range(4))
def test_targets_equal_the_exact_solution_when_sixty_large_leases_share(seed: int) -> None:
    source = random.Random(seed)
    leases = tuple(random_lease(source, 2**40, 2**50, capped=False) for _ in range(60))
    scenario = random_device(source, leases)
    assert all(close(*pair) for pair in zip(scenario.solve().targets, scenario.exact().qualities, strict=True))
