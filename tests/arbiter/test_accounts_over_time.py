"""What sharing costs a holder stands in its account: quality and bytes over time, and how long it takes to wake."""

from __future__ import annotations

import pytest

from arbiter_sidecar.ledger.accounts import Account
from arbiter_sidecar.types import GIB, Priority
from tests.arbiter.desk import Desk, wish
from tests.arbiter.preempting import BACKGROUND, HIGH, Stage


def account(desk: Desk, holder: str) -> Account:
    """The account of a holder, up to now."""
    return next(each for each in desk.arbiter.accounts(desk.now) if each.holder == holder)


def test_quality_is_lost_for_as_long_as_it_is_below_the_best(desk: Desk) -> None:
    desk.box(24)
    stays = desk.take(wish("stays", 12, ttl=1000))
    desk.apply(stays)
    desk.at(10.0)
    desk.beat(stays)
    ticket = desk.ask(wish("goes", 12, wait=30, ttl=1000))
    desk.apply(stays)
    lease = desk.lease(ticket)
    assert stays.quality == pytest.approx(0.85, abs=0.005)
    desk.at(20.0)
    lost = (1.0 - stays.quality) * 10.0
    assert account(desk, "stays").quality_seconds_lost == pytest.approx(lost)
    desk.release(lease)
    assert account(desk, "goes").quality_seconds_lost == pytest.approx((1.0 - lease.quality) * 10.0)
    # Asking twice counts nothing twice.
    assert account(desk, "stays").quality_seconds_lost == pytest.approx(lost)


def test_holder_that_asked_for_less_loses_nothing(desk: Desk) -> None:
    desk.box(24)
    desk.take(wish("modest", 4, max_quality=0.5, ttl=1000))
    desk.at(100.0)
    assert not desk.arbiter.accounts(desk.now)


def test_ghost_bytes_count_from_the_alarm_until_they_are_gone(desk: Desk) -> None:
    desk.card(24)
    lease = desk.take(wish("ghost", 4, pids=(1,), ttl=1000))
    desk.sample({1: 4.0})
    desk.release(lease)
    desk.live(10.5, held={1: 4.0})
    desk.live(15.0, held={1: 2.0})
    # Four GiB from the end of the grace at 10 s to the sample at 10.6 s that shows two; then two for 4.4 s.
    expected = 4 * GIB * 0.6 + 2 * GIB * 4.4
    assert account(desk, "ghost").ghost_byte_seconds == pytest.approx(expected, rel=1e-6)
    desk.live(16.0, held={1: 0.0})
    after = account(desk, "ghost").ghost_byte_seconds
    assert desk.drained(lease)
    desk.live(30.0, held={})
    assert account(desk, "ghost").ghost_byte_seconds == after


def test_time_to_come_back_is_measured_and_weighs_when_donors_are_chosen(desk: Desk) -> None:
    stage = Stage(desk)
    slow, quick = stage.hold("slow", BACKGROUND, 30), stage.hold("quick", BACKGROUND, 30)
    asks = stage.hold("R", HIGH, 10, floor=10)
    stage.at(2.0)
    desk.preempt(40, asks)
    stage.give("slow", "quick")
    desk.apply(slow, quick)
    assert (slow.wake_cost_s, quick.wake_cost_s) == (0.0, 0.0)
    while slow.waking_since is None or quick.waking_since is None:
        stage.at(desk.now + 0.5)
    woken = desk.now
    desk.apply(quick)
    stage.at(woken + 3.0)
    desk.apply(slow)
    assert quick.wake_cost_s < slow.wake_cost_s
    assert slow.wake_cost_s >= 3.0
    while quick.quality < 1.0 or slow.quality < 1.0:
        stage.at(desk.now + 1.0)
        desk.apply(quick)
    assert slow.waking_since is not None
    desk.preempt(10, asks)
    assert stage.orders() == "quick10"


def test_wake_that_is_overtaken_by_a_reduction_is_not_measured(desk: Desk) -> None:
    desk.card(30)
    lease = desk.take(wish("a", 20, floor=4, pids=(1,), priority=Priority.BACKGROUND, ttl=1000))
    asks = desk.take(wish("r", 4, rigid=True, pids=(2,), priority=Priority.HIGH, ttl=1000))
    desk.apply(lease, asks)
    held = {1: 20.0, 2: 4.0}
    desk.live(2.0, lease, asks, held=held)
    desk.preempt(2, asks)
    desk.apply(lease)
    desk.sample({1: 18.0, 2: 4.0})
    while lease.waking_since is None:
        desk.live(desk.now + 0.25, lease, asks, held={1: 10.0, 2: 6.0})
    desk.sample({1: 10.0, 2: 6.0}, foreign=12.0)
    assert lease.waking_since is None
    desk.apply(lease)
    assert lease.wake_cost_s == 0.0
