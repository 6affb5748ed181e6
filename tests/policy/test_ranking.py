"""The order of the waiting line and who is next in it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy import ranking
from arbiter_sidecar.policy.ranking import Place, Turn
from arbiter_sidecar.types import Priority
from tests.thorough import examples

BACKGROUND, LOW, NORMAL, HIGH, CRITICAL = Priority


@pytest.mark.parametrize(
    ("priority", "waited", "expected"),
    [
        pytest.param(BACKGROUND, 0.0, BACKGROUND, id="new"),
        pytest.param(BACKGROUND, 29.999, BACKGROUND, id="just-before-a-tier"),
        pytest.param(BACKGROUND, 30.0, LOW, id="one-tier"),
        pytest.param(BACKGROUND, 60.0, NORMAL, id="two-tiers"),
        pytest.param(BACKGROUND, 90.0, HIGH, id="three-tiers"),
        pytest.param(BACKGROUND, 1e9, HIGH, id="never-above-high"),
        pytest.param(NORMAL, 29.0, NORMAL, id="normal-new"),
        pytest.param(NORMAL, 31.0, HIGH, id="normal-aged"),
        pytest.param(HIGH, 1e9, HIGH, id="high-stays"),
        pytest.param(CRITICAL, 0.0, CRITICAL, id="critical"),
        pytest.param(CRITICAL, 1e9, CRITICAL, id="critical-stays"),
        pytest.param(LOW, -5.0, LOW, id="clock-stepped-back"),
    ],
)
def test_tier_rises_with_waiting_when_below_high(priority: Priority, waited: float, expected: Priority) -> None:
    assert ranking.effective_tier(priority, since=100.0, now=100.0 + waited) is expected


def test_tier_never_rises_when_aging_is_off() -> None:
    assert ranking.effective_tier(BACKGROUND, since=0.0, now=1e9, aging_s=math.inf) is BACKGROUND
    assert ranking.next_rise(BACKGROUND, since=0.0, now=5.0, aging_s=math.inf) is None


def test_tier_rises_sooner_when_the_span_is_shorter() -> None:
    assert ranking.effective_tier(BACKGROUND, since=0.0, now=10.0, aging_s=5.0) is NORMAL


@pytest.mark.parametrize(
    ("priority", "now", "expected"),
    [
        pytest.param(BACKGROUND, 100.0, 130.0, id="at-arrival"),
        pytest.param(BACKGROUND, 129.0, 130.0, id="before-the-first"),
        pytest.param(BACKGROUND, 130.0, 160.0, id="at-the-first"),
        pytest.param(BACKGROUND, 160.0, 190.0, id="at-the-second"),
        pytest.param(BACKGROUND, 190.0, None, id="at-the-last"),
        pytest.param(BACKGROUND, 90.0, 130.0, id="clock-stepped-back"),
        pytest.param(HIGH, 100.0, None, id="high"),
        pytest.param(CRITICAL, 100.0, None, id="critical"),
    ],
)
def test_next_rise_is_when_the_tier_changes_when_it_does(
    priority: Priority, now: float, expected: float | None
) -> None:
    assert ranking.next_rise(priority, since=100.0, now=now) == expected


@examples(100)
@given(
    st.sampled_from(list(Priority)),
    st.floats(min_value=0.0, max_value=1e9),
    st.floats(min_value=0.0, max_value=200.0),
    st.floats(min_value=1e-3, max_value=100.0),
)
def test_tier_has_risen_when_the_announced_moment_comes(
    priority: Priority, since: float, waited: float, span: float
) -> None:
    """Rounded sums of seconds must not announce the same moment again and again."""
    now = since + waited
    before = ranking.effective_tier(priority, since=since, now=now, aging_s=span)
    rise = ranking.next_rise(priority, since=since, now=now, aging_s=span)
    if rise is not None:
        assert rise > now
        assert ranking.effective_tier(priority, since=since, now=rise, aging_s=span) > before


def order(now: float, *requests: tuple[str, Priority, float]) -> list[str]:
    """Names by rank; arrivals are numbered in the order given."""
    arrived = list(enumerate(requests))
    arrived.sort(key=lambda each: ranking.rank(each[1][1], since=each[1][2], arrival=each[0], now=now))
    return [request[0] for _, request in arrived]


def test_line_is_by_priority_when_all_are_new() -> None:
    line = [(priority.name, priority, 0.0) for priority in Priority]
    assert order(1.0, *line) == ["CRITICAL", "HIGH", "NORMAL", "LOW", "BACKGROUND"]


def test_line_is_by_arrival_when_tiers_are_equal() -> None:
    assert order(9.0, ("first", NORMAL, 3.0), ("second", NORMAL, 3.0), ("third", NORMAL, 2.0)) == [
        "first",
        "second",
        "third",
    ]


def test_high_goes_first_when_a_normal_waits_already() -> None:
    assert order(1.0, ("X", NORMAL, 0.0), ("H", HIGH, 1.0)) == ["H", "X"]


def test_background_counts_as_normal_when_it_has_waited_a_minute() -> None:
    line = (("patient", BACKGROUND, 0.0), ("newcomer", NORMAL, 61.0))
    assert order(61.0, *line) == ["patient", "newcomer"]


def test_aged_background_is_behind_an_earlier_normal_when_both_count_the_same() -> None:
    assert order(60.0, ("normal", NORMAL, 59.0), ("background", BACKGROUND, 0.0)) == ["normal", "background"]


def test_aged_request_is_ahead_of_later_high_ones_when_it_counts_as_high() -> None:
    line = (("patient", BACKGROUND, 0.0), ("high", HIGH, 90.0), ("critical", CRITICAL, 90.0))
    assert order(90.0, *line) == ["critical", "patient", "high"]


def turn(*line: Place, backfill: int = ranking.BACKFILL) -> Turn | None:
    """Who is next."""
    return ranking.next_turn(line, backfill=backfill)


def blocked(arrival: int, passed: int = 0) -> Place:
    """A request that does not fit."""
    return Place(arrival=arrival, fits=False, passed=passed)


def fitting(arrival: int, passed: int = 0) -> Place:
    """A request that fits."""
    return Place(arrival=arrival, fits=True, passed=passed)


@pytest.mark.parametrize(
    ("line", "backfill", "expected"),
    [
        pytest.param([], 8, None, id="empty"),
        pytest.param([fitting(1), fitting(2)], 8, Turn(arrival=1, passes=None), id="head-fits"),
        pytest.param([fitting(1, 8)], 8, Turn(arrival=1, passes=None), id="strict-head-fits"),
        pytest.param([blocked(1), blocked(2)], 8, None, id="nobody-fits"),
        pytest.param([blocked(1), fitting(2)], 0, None, id="strict-line"),
        pytest.param([blocked(1), fitting(2)], 1, Turn(arrival=2, passes=1), id="one-pass-allowed"),
        pytest.param([blocked(1, 1), fitting(2)], 1, None, id="one-pass-used"),
        pytest.param([blocked(1, 7), fitting(2)], 8, Turn(arrival=2, passes=1), id="the-eighth-pass"),
        pytest.param([blocked(1, 8), fitting(2)], 8, None, id="no-ninth-pass"),
        pytest.param([blocked(1), blocked(2), fitting(3)], 8, Turn(arrival=3, passes=1), id="only-the-head-is-charged"),
        pytest.param([blocked(4), blocked(2, 8), fitting(3)], 8, None, id="a-displaced-strict-head-stays-strict"),
        pytest.param([blocked(4), fitting(2, 8), fitting(3)], 8, Turn(arrival=2, passes=4), id="unless-it-fits"),
    ],
)
def test_turn_is_the_first_that_may_pass_when_the_head_is_blocked(
    line: list[Place], backfill: int, expected: Turn | None
) -> None:
    assert turn(*line, backfill=backfill) == expected


def test_line_is_read_no_further_than_needed_when_somebody_is_next() -> None:
    asked: list[int] = []

    def line() -> Iterator[Place]:
        for place in (blocked(1), fitting(2), fitting(3)):
            asked.append(place.arrival)
            yield place

    assert ranking.next_turn(line()) == Turn(arrival=2, passes=1)
    assert asked == [1, 2]


def test_line_is_read_no_further_than_a_strict_head_when_it_is_blocked() -> None:
    line = iter([blocked(1, 8), fitting(2)])
    assert ranking.next_turn(line) is None
    assert next(line) == fitting(2)
