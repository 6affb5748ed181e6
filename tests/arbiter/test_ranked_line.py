"""The waiting line in the whole core: worked sequences with real leases, by rank, age and bounded passing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import QueueConfig
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.types import Priority, Ticket
from tests.arbiter.desk import LINEAR, Desk, DeskMaker, gib, wish

BACKGROUND, LOW, NORMAL, HIGH, CRITICAL = Priority


@pytest.fixture
def line(make_desk: DeskMaker) -> Desk:
    """A line in which waiting counts and which nobody may pass, on a box of 20 GiB."""
    return service(make_desk, backfill=0)


def service(make_desk: DeskMaker, *, backfill: int, size: float = 20.0) -> Desk:
    """A box whose line may be passed ``backfill`` times."""
    # Ended leases on the box free their bytes at once, so that a release is what lets the next one in.
    rules = replace(LINEAR.rules, lock_delay_s=0.0)
    desk = make_desk(replace(LINEAR, queue=QueueConfig(backfill=backfill), rules=rules))
    desk.box(size)
    return desk


def hold(desk: Desk, size: float, priority: Priority = NORMAL) -> Lease:
    """A rigid lease that lives long."""
    return desk.take(wish("holder", size, rigid=True, priority=priority, ttl=1000))


def queue(desk: Desk, size: float, priority: Priority = NORMAL, wait: float = 900.0) -> Ticket:
    """A rigid request that waits long."""
    return desk.ask(wish("waiter", size, rigid=True, priority=priority, wait=wait, ttl=1000))


def free(desk: Desk) -> float:
    """What could be granted, in GiB."""
    return desk.device().available_bytes / gib(1)


def let_go(desk: Desk, lease: Lease) -> None:
    """A release, and what follows in the same moment."""
    desk.release(lease)
    desk.at(desk.now)


def test_a_later_one_waits_although_it_fits_when_the_line_is_strict(line: Desk) -> None:
    hold(line, 14)
    two = hold(line, 2)
    x, y = queue(line, 6), queue(line, 3)
    assert (line.waits(x), line.waits(y)) == (True, True)
    let_go(line, two)
    assert line.lease(x).limit_bytes == gib(6)
    assert line.waits(y)


def test_one_may_pass_and_the_next_waits_when_one_pass_is_allowed(make_desk: DeskMaker) -> None:
    desk = service(make_desk, backfill=1)
    hold(desk, 11)
    five = hold(desk, 5)
    x, y = queue(desk, 6), queue(desk, 3)
    assert desk.lease(y).limit_bytes == gib(3)
    waiter = desk.books.queue.of(x)
    assert waiter is not None
    assert waiter.passed == 1
    z = queue(desk, 1)
    assert (desk.waits(z), free(desk)) == (True, 1.0)
    let_go(desk, five)
    assert desk.lease(x).limit_bytes == gib(6)
    assert (desk.waits(z), free(desk)) == (True, 0.0)


def test_the_limit_counts_when_several_fit_at_once(make_desk: DeskMaker) -> None:
    desk = service(make_desk, backfill=2)
    eight = hold(desk, 8)
    hold(desk, 12)
    x = queue(desk, 10)
    others = [queue(desk, 2) for _ in range(4)]
    let_go(desk, eight)
    assert [desk.waits(ticket) for ticket in (x, *others)] == [True, False, False, True, True]


def test_high_is_granted_first_when_a_normal_waits_longer(line: Desk) -> None:
    six = hold(line, 6)
    hold(line, 14)
    x = queue(line, 6)
    line.at(1.0)
    h = queue(line, 6, HIGH)
    let_go(line, six)
    assert line.lease(h).limit_bytes == gib(6)
    assert line.waits(x)


def test_background_counts_as_normal_when_it_has_waited_a_minute(line: Desk) -> None:
    six = hold(line, 6)
    hold(line, 14)
    patient = queue(line, 6, BACKGROUND)
    line.at(61.0)
    later = queue(line, 6, NORMAL)
    let_go(line, six)
    assert line.lease(patient).limit_bytes == gib(6)
    assert line.waits(later)


def test_background_is_behind_when_a_normal_came_before_it_had_aged(line: Desk) -> None:
    six = hold(line, 6)
    hold(line, 14)
    patient = queue(line, 6, BACKGROUND)
    line.at(59.9)
    later = queue(line, 6, NORMAL)
    let_go(line, six)
    assert line.lease(later).limit_bytes == gib(6)
    assert line.waits(patient)


def test_waiting_never_lifts_above_high(line: Desk) -> None:
    six = hold(line, 6)
    hold(line, 14)
    patient = queue(line, 6, BACKGROUND)
    line.at(600.0)
    critical, high = queue(line, 6, CRITICAL), queue(line, 6, HIGH)
    let_go(line, six)
    assert line.lease(critical).limit_bytes == gib(6)
    let_go(line, line.lease(critical))
    assert line.lease(patient).limit_bytes == gib(6)
    assert line.waits(high)


def test_aged_request_is_granted_when_its_tier_rises_above_a_strict_head(line: Desk) -> None:
    """Nothing comes free: time alone changes who is next, and the arbiter asks to be woken for it."""
    two = hold(line, 2)
    hold(line, 16)
    patient = queue(line, 4, LOW)
    line.at(1.0)
    head = queue(line, 6, NORMAL)
    let_go(line, two)
    assert (line.waits(head), line.waits(patient)) == (True, True)
    due = line.arbiter.next_deadline()
    assert due is not None
    assert due <= 30.0
    line.at(30.0)
    assert line.waits(head)
    assert line.lease(patient).limit_bytes == gib(4)


def test_a_strict_request_stays_strict_when_a_better_one_comes_before_it(make_desk: DeskMaker) -> None:
    desk = service(make_desk, backfill=1)
    hold(desk, 12)
    x, y = queue(desk, 9), queue(desk, 2)
    assert desk.lease(y).limit_bytes == gib(2)
    better = queue(desk, 8, HIGH)
    small = queue(desk, 1)
    assert [desk.waits(ticket) for ticket in (better, x, small)] == [True, True, True]


def test_a_request_too_large_is_refused_at_once_when_others_wait(line: Desk) -> None:
    hold(line, 16)
    x = queue(line, 6)
    refused = line.books.stats.refused
    with pytest.raises(errors.ExceedsCapacity):
        line.ask(wish("huge", 30, rigid=True, wait=60))
    assert line.waits(x)
    assert (len(line.books.queue), line.books.stats.refused) == (1, refused)


def test_background_is_granted_when_better_ones_never_stop_coming(make_desk: DeskMaker) -> None:
    desk = service(make_desk, backfill=8, size=4)
    running = [(2.0, hold(desk, 2, HIGH))]
    patient = queue(desk, 4, BACKGROUND)
    asked: list[Ticket] = []
    for second in range(1, 150):
        desk.at(float(second))
        asked.append(queue(desk, 2, HIGH))
        for end, lease in [each for each in running if each[0] <= second]:
            running.remove((end, lease))
            let_go(desk, lease)
        for ticket in [each for each in asked if not desk.waits(each)]:
            asked.remove(ticket)
            running.append((second + 2.0, desk.lease(ticket)))
        if not desk.waits(patient):
            break
    # Three spans to count as HIGH, then those who came before it, and whoever may still pass.
    assert desk.granted(patient).waited_s <= 90.0 + 2.0 * (8 + 100)
