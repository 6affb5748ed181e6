"""From a target to a worker's own settings."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter_client import ladder
from arbiter_client.directive import Directive
from arbiter_client.ladder import Curve, Ladder, NoRungFits, Rung

LADDER = Ladder([Rung(0.9, "full", 8192, 800), Rung(0.6, "reduced", 4096, 400), Rung(0.0, "minimal", 1024, 100)])


def directive(quality: float, limit: int) -> Directive:
    return Directive(lease_id="l", revision=1, quality=quality, memory_limit_bytes=limit)


@pytest.mark.parametrize(
    ("quality", "name"),
    [
        (1.0, "full"),
        (0.9, "full"),
        (0.1 * 9, "full"),
        (0.89, "reduced"),
        (0.6, "reduced"),
        (0.59, "minimal"),
        (0.0, "minimal"),
    ],
)
def test_rung_is_the_best_one_that_the_target_reaches(quality: float, name: str) -> None:
    assert LADDER.rung(quality).name == name


def test_rung_reaches_a_target_that_lost_its_last_digit() -> None:
    assert LADDER.rung(0.9 - 1e-12).name == "full"


@pytest.mark.parametrize("quality", [-0.1, 1.1, math.nan])
def test_rung_refuses_what_is_no_quality(quality: float) -> None:
    with pytest.raises(ValueError, match="not in"):
        LADDER.rung(quality)


def test_rung_is_the_lowest_when_the_target_is_below_the_floor() -> None:
    assert Ladder([Rung(0.5, "only", None)], floor=0.5).rung(0.2).name == "only"


@pytest.mark.parametrize(
    ("quality", "limit", "name"),
    [
        (1.0, 800, "full"),
        (1.0, 799, "reduced"),
        (1.0, 100, "minimal"),
        (0.7, 10_000, "reduced"),
        (0.1, 10_000, "minimal"),
    ],
)
def test_for_directive_fits_quality_and_memory(quality: float, limit: int, name: str) -> None:
    assert LADDER.for_directive(directive(quality, limit)).name == name


def test_for_directive_says_what_can_be_reached_when_nothing_fits() -> None:
    with pytest.raises(NoRungFits, match="needs 100 bytes, the limit is 99") as raised:
        LADDER.for_directive(directive(1.0, 99))
    assert raised.value.lowest_quality == 0.0


def test_for_directive_takes_unknown_memory_to_fit() -> None:
    assert Ladder([Rung(0.0, "only", None)]).for_directive(directive(1.0, 0)).name == "only"


@pytest.mark.parametrize(
    ("rungs", "floor"),
    [
        ([], 0.0),
        ([Rung(0.5, "a", 0)], 0.0),
        ([Rung(0.5, "a", 0), Rung(0.5, "b", 0)], 0.5),
        ([Rung(0.2, "a", 0), Rung(0.5, "b", 0)], 0.5),
        ([Rung(1.1, "a", 0), Rung(0.0, "b", 0)], 0.0),
        ([Rung(math.nan, "a", 0)], 0.0),
        ([Rung(0.0, "a", 0, -1)], 0.0),
        ([Rung(0.5, "a", 0, 10), Rung(0.0, "b", 0, 11)], 0.0),
        ([Rung(0.0, "a", 0)], 1.5),
    ],
)
def test_ladder_refuses_rungs_that_leave_gaps(rungs: list[Rung[int]], floor: float) -> None:
    with pytest.raises(ValueError, match=r"rung|floor"):
        Ladder(rungs, floor=floor)


def test_ladder_lists_its_rungs_from_the_best() -> None:
    assert [rung.name for rung in LADDER] == ["full", "reduced", "minimal"]
    assert len(LADDER) == 3


@pytest.mark.parametrize(
    ("quality", "scale"), [(1.0, 1.0), (0.9, 1.0), (0.7, 0.5), (0.6, 0.5), (0.5, 0.25), (0.0, 0.25)]
)
def test_quality_levels_scale_the_context(quality: float, scale: float) -> None:
    assert ladder.QUALITY_LEVELS.rung(quality).settings.context_scale == scale


@pytest.mark.parametrize(
    ("curve", "at_seven_tenths"),
    [(ladder.LINEAR, 6), (ladder.SPECTRAL, 3), (ladder.RANDOM_PROJECTION, 6), (ladder.LOW_RANK, 6)],
)
def test_fragments_for_quality_of_eight_fragments(curve: Curve, at_seven_tenths: int) -> None:
    assert ladder.fragments_for_quality(0.7, 8, curve) == at_seven_tenths


def test_fragments_for_quality_at_a_low_target() -> None:
    assert ladder.fragments_for_quality(0.4, 8, ladder.LINEAR) == 4
    assert ladder.fragments_for_quality(0.4, 8, ladder.SPECTRAL) == 1


def test_fragments_for_quality_needs_all_when_nothing_less_reaches_the_target() -> None:
    assert ladder.fragments_for_quality(1.0, 8, Curve((0.0, 0.1, 0.0, 0.0))) == 8
    assert ladder.fragments_for_quality(0.0, 1, ladder.RANDOM_PROJECTION) == 1


@pytest.mark.parametrize(("quality", "total"), [(-0.1, 8), (1.1, 8), (math.nan, 8), (0.5, 0)])
def test_fragments_for_quality_refuses_what_makes_no_sense(quality: float, total: int) -> None:
    with pytest.raises(ValueError, match=r"quality|total"):
        ladder.fragments_for_quality(quality, total)


def test_curve_quality_of_the_worked_example() -> None:
    assert ladder.SPECTRAL.quality(3, 8) == pytest.approx(0.7248, abs=5e-5)
    assert ladder.RANDOM_PROJECTION.quality(1, 8) == 0.0
    assert ladder.LOW_RANK.quality(8, 8) == 1.0


@pytest.mark.parametrize(
    ("coefficients", "least"),
    [
        ((1.0, -0.5, 0.0, 0.0), 1),
        ((0.0, 0.1, -0.5, 0.0), 1),
        ((0.0, 0.5, -2.0, 1.6), 1),
        ((0.0, math.nan, 0.0, 0.0), 1),
        ((0.0, 1.0, 0.0, 0.0), 0),
    ],
)
def test_curve_refuses_to_fall(coefficients: tuple[float, float, float, float], least: int) -> None:
    with pytest.raises(ValueError, match=r"coefficients|min_fragments"):
        Curve(coefficients, least)


@given(st.sampled_from(sorted(ladder.CURVES)), st.integers(1, 64), st.floats(0, 1))
def test_fragments_for_quality_is_the_fewest_that_reach_it(name: str, total: int, quality: float) -> None:
    curve = ladder.CURVES[name]
    fragments = ladder.fragments_for_quality(quality, total, curve)
    assert 1 <= fragments <= total
    assert fragments == total or curve.quality(fragments, total) >= quality - ladder.TOLERANCE
    if fragments > curve.min_fragments:
        assert curve.quality(fragments - 1, total) < quality
