"""When to beat, when to try again, and when a lease is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter_client import keepalive

UNIT = st.floats(0.0, 1.0, exclude_max=True)
INTERVAL = st.floats(0.05, 100.0)


@pytest.mark.parametrize(
    ("asked", "ttl", "expected"),
    [(5.0, 15.0, 5.0), (0.0, 15.0, 5.0), (-1.0, 15.0, 5.0), (20.0, 15.0, 7.5), (1.0, 300.0, 1.0)],
)
def test_beat_interval_follows_the_arbiter_within_half_the_time_to_live(
    asked: float, ttl: float, expected: float
) -> None:
    assert keepalive.beat_interval(asked, ttl) == expected


@given(INTERVAL, UNIT)
def test_next_beat_comes_within_the_last_fifth_of_the_interval(interval: float, u: float) -> None:
    assert 100 + 0.8 * interval <= keepalive.next_beat(100.0, interval, u) <= 100 + interval + 1e-9


@given(INTERVAL, UNIT)
def test_first_beat_comes_anywhere_within_the_interval(interval: float, u: float) -> None:
    assert 100.0 <= keepalive.first_beat(100.0, interval, u) <= 100 + interval


def test_retry_delay_doubles_up_to_half_the_interval_when_failures_go_on() -> None:
    latest = [keepalive.retry_delay(failures, 5.0, 1.0) for failures in range(1, 9)]
    assert latest == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5, 2.5])


@given(st.integers(1, 10**6), INTERVAL, UNIT)
def test_retry_delay_is_never_below_its_floor(failures: int, interval: float, u: float) -> None:
    assert keepalive.RETRY_FLOOR_S <= keepalive.retry_delay(failures, interval, u) <= max(0.1, interval / 2)


def test_local_deadline_counts_from_the_sending() -> None:
    assert keepalive.local_deadline(10.0, 15.0) == 25.0


def test_local_deadline_is_later_when_silence_was_declared() -> None:
    assert keepalive.local_deadline(10.0, 15.0, 60.0) == 70.0
    assert keepalive.local_deadline(10.0, 15.0, 1.0) == 25.0
    assert keepalive.local_deadline(10.0, 15.0, 1e9) == 910.0


@pytest.mark.parametrize(("ttl", "margin"), [(15.0, 0.5), (3.0, 0.15), (300.0, 0.5)])
def test_lost_at_leaves_a_moment_before_the_deadline(ttl: float, margin: float) -> None:
    assert keepalive.lost_at(100.0, ttl) == pytest.approx(100.0 - margin)


def test_a_lease_of_15_s_survives_9_s_of_deafness_after_any_beat() -> None:
    # The last answered beat, the latest possible next one falls into the deafness, and beats come again after it.
    latest_next = keepalive.next_beat(0.0, 5.0, 1.0)
    assert latest_next + 9.0 < keepalive.lost_at(keepalive.local_deadline(0.0, 15.0), 15.0)


def test_is_silent_only_while_a_beat_is_unanswered() -> None:
    assert not keepalive.is_silent(1000.0, None, 0.0, 5.0)


def test_is_silent_when_nothing_came_for_an_interval() -> None:
    assert not keepalive.is_silent(14.9, 10.0, 3.0, 5.0)
    assert keepalive.is_silent(15.0, 10.0, 3.0, 5.0)


def test_is_silent_after_two_intervals_when_everything_came_but_the_answer() -> None:
    assert not keepalive.is_silent(19.9, 10.0, 19.0, 5.0)
    assert keepalive.is_silent(20.0, 10.0, 19.9, 5.0)


def test_quality_in_force_falls_to_the_safe_one_after_the_silence() -> None:
    assert keepalive.quality_in_force(9.9, 0.0, 0.8, 0.3, 10.0) == 0.8
    assert keepalive.quality_in_force(10.0, 0.0, 0.8, 0.3, 10.0) == 0.3


def test_quality_in_force_never_rises_with_the_silence() -> None:
    assert keepalive.quality_in_force(10.0, 0.0, 0.2, 0.3, 10.0) == 0.2


def test_quality_in_force_holds_for_ever_when_no_time_was_given() -> None:
    assert keepalive.quality_in_force(1e9, 0.0, 0.8, 0.3, 0.0) == 0.8


def test_split_keeps_order_and_size() -> None:
    assert [list(part) for part in keepalive.split(list(range(5)), 2)] == [[0, 1], [2, 3], [4]]
    assert list(keepalive.split([], 2)) == []


def test_earliest_ignores_what_is_not_set() -> None:
    assert keepalive.earliest([None, 3.0, 2.0]) == 2.0
    assert keepalive.earliest([None]) is None
