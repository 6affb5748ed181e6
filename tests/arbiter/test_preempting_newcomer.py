"""A request that may preempt: somebody must go for it, and it is granted when the memory is measured gone."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.types import EndReason, EventKind, Priority, Ticket
from tests.arbiter.desk import Desk, gib, wish
from tests.arbiter.preempting import BACKGROUND, CRITICAL, HIGH, LOW, NORMAL, Stage


def full(desk: Desk) -> Stage:
    """Sixty GiB held by three who cannot shrink, for longer than half a minute."""
    stage = Stage(desk, size=60)
    for name, priority in (("hi", HIGH), ("bg", BACKGROUND), ("lo", LOW)):
        stage.hold(name, priority, 20, floor=20)
    stage.at(31.0)
    return stage


def come(
    desk: Desk,
    size: float,
    priority: Priority = HIGH,
    *,
    wait: float = 60.0,
    may: bool = True,
    device: str = "",
    floor: float | None = None,
) -> Ticket:
    """A newcomer; a rigid one unless it has a floor."""
    request = wish(
        "newcomer",
        size,
        rigid=floor is None,
        floor=floor,
        priority=priority,
        wait=wait,
        may_preempt=may,
        device=device,
        pids=(9,),
        ttl=1000,
    )
    return desk.ask(request)


def test_newcomer_is_granted_when_the_bytes_are_measured_gone(desk: Desk) -> None:
    stage = full(desk)
    ticket = come(desk, 15)
    assert stage.orders() == "bg20!"
    assert desk.waits(ticket)
    (event,) = desk.events(EventKind.REQUEST_WAITING)
    assert event.fields["reason"] == f"{gib(15)} bytes are being taken from less important leases"
    desk.ack(stage.leases["bg"])
    desk.release(stage.leases["bg"])
    stage.at(desk.now + 1.0)
    assert desk.waits(ticket)
    stage.measure_gone("bg")
    assert desk.lease(ticket).limit_bytes == gib(15)
    assert (stage.open, stage.let_off("lo")) == (False, False)
    (settled,) = desk.events(EventKind.PREEMPTION_SETTLED)
    assert settled.fields["outcome"] == "enough"


def test_victim_is_revoked_when_it_stays_until_the_deadline(desk: Desk) -> None:
    stage = full(desk)
    ticket = come(desk, 15)
    stage.at(desk.now + 2.0)
    assert stage.leases["bg"].end_reason is EndReason.PREEMPTED
    stage.at(desk.now + 5.0)
    assert desk.waits(ticket)
    stage.measure_gone("bg")
    assert desk.lease(ticket).limit_bytes == gib(15)


def test_as_many_go_as_are_needed(desk: Desk) -> None:
    stage = full(desk)
    ticket = come(desk, 38)
    assert stage.orders() == "bg20! lo20!"
    desk.release(stage.leases["lo"])
    stage.measure_gone("lo")
    assert desk.waits(ticket)
    desk.release(stage.leases["bg"])
    stage.measure_gone("bg")
    assert desk.lease(ticket).limit_bytes == gib(38)


def test_nobody_goes_for_a_request_that_does_not_wait(desk: Desk) -> None:
    stage = full(desk)
    ticket = come(desk, 15, wait=0.0)
    assert isinstance(desk.error(ticket), errors.InsufficientMemory)
    assert not stage.open


@pytest.mark.parametrize(
    ("priority", "may", "size"),
    [
        pytest.param(HIGH, False, 15, id="may-not"),
        pytest.param(LOW, True, 15, id="too-little-above"),
        pytest.param(HIGH, True, 45, id="too-little-to-take"),
    ],
)
def test_newcomer_waits_when_nobody_can_be_made_to_go(desk: Desk, priority: Priority, may: bool, size: float) -> None:
    stage = full(desk)
    ticket = come(desk, size, priority, may=may)
    assert (desk.waits(ticket), stage.open) == (True, False)
    waiter = desk.books.queue.of(ticket)
    assert waiter is not None
    assert waiter.reason.endswith("bytes are missing even with every lease at its minimum quality")


def test_age_lifts_in_the_line_but_gives_no_right_to_take(desk: Desk) -> None:
    stage = Stage(desk, size=60)
    stage.hold("bg", BACKGROUND, 40, floor=40)
    stage.hold("hi", HIGH, 20, floor=20)
    stage.at(31.0)
    ticket = come(desk, 15, LOW, wait=500.0)
    stage.at(200.0)
    assert (desk.waits(ticket), stage.open) == (True, False)


def test_quality_gives_before_anybody_goes(desk: Desk) -> None:
    stage = Stage(desk, size=60)
    stage.hold("bg", BACKGROUND, 50, floor=10)
    stage.at(31.0)
    ticket = come(desk, 30)
    assert not stage.open
    stage.give("bg")
    desk.apply(stage.leases["bg"])
    assert desk.lease(ticket).limit_bytes == gib(30)


def test_everybody_else_shrinks_while_one_goes(desk: Desk) -> None:
    stage = Stage(desk, size=60)
    stage.hold("bg", BACKGROUND, 20, floor=20)
    stage.hold("no", NORMAL, 30, floor=25)
    stage.at(31.0)
    ticket = come(desk, 33, CRITICAL)
    assert stage.orders() == "bg20!"
    stage.give("no")
    desk.apply(stage.leases["no"])
    desk.release(stage.leases["bg"])
    stage.measure_gone("bg")
    assert desk.lease(ticket).limit_bytes == gib(33)
    assert desk.device("gpu").accounted_bytes <= gib(60)


@pytest.mark.parametrize("leaver", ["cancel", "timeout", "drain"])
def test_victims_stay_when_the_newcomer_goes(desk: Desk, leaver: str) -> None:
    stage = full(desk)
    ticket = come(desk, 15, wait=1.5)
    donor = stage.leases["bg"]
    if leaver == "cancel":
        desk.cancel(ticket)
    elif leaver == "timeout":
        desk.at(desk.now + 1.5)
    else:
        desk.arbiter.drain(desk.now)
        desk.collect()
    assert (stage.open, donor.reclaim, stage.let_off("bg")) == (False, None, True)
    stage.at(desk.now + 5.0)
    assert (donor.alive, donor.limit_bytes) == (True, gib(20))


def test_plan_goes_on_when_one_of_two_callers_leaves(desk: Desk) -> None:
    stage = full(desk)
    request = wish("n", 15, rigid=True, priority=HIGH, wait=60, may_preempt=True, request_id="r")
    first, second = desk.ask(request), desk.ask(request)
    desk.cancel(first)
    assert stage.open
    desk.cancel(second)
    assert not stage.open


def test_victim_stays_when_room_comes_from_elsewhere(desk: Desk) -> None:
    stage = full(desk)
    ticket = come(desk, 15)
    desk.release(stage.leases["hi"])
    stage.measure_gone("hi")
    assert desk.lease(ticket).limit_bytes == gib(15)
    assert (stage.open, stage.leases["bg"].reclaim, stage.let_off("bg")) == (False, None, True)
    stage.at(desk.now + 5.0)
    assert stage.leases["bg"].alive


def test_victim_stays_when_the_newcomer_finds_room_on_another_device(desk: Desk) -> None:
    stage = full(desk)
    box = desk.box(20)
    holder = desk.take(wish("other", 20, rigid=True, priority=HIGH, device="box", ttl=10))
    ticket = come(desk, 15)
    assert stage.orders() == "bg20!"
    desk.release(holder)
    for _ in range(10):
        desk.sample({1: 20.0, 2: 20.0, 3: 20.0})
    desk.arbiter.process_exited(next(iter(stage.leases["bg"].request.processes)), desk.now)
    desk.collect()
    assert stage.leases["bg"].end_reason is EndReason.ORPHANED
    assert desk.waits(ticket)
    assert box.available_bytes == 0


def test_newcomer_is_granted_elsewhere_when_room_comes_there_first(desk: Desk) -> None:
    stage = full(desk)
    desk.card(20, "second")
    holder = desk.take(wish("other", 20, rigid=True, priority=HIGH, device="second", pids=(8,), ttl=1000))
    ticket = come(desk, 15)
    assert stage.orders() == "bg20!"
    desk.release(holder)
    for _ in range(4):
        desk.now += 0.15
        desk.sample({8: 0.0}, name="second")
    assert desk.lease(ticket).device_id == "second"
    assert (stage.open, stage.leases["bg"].reclaim) == (False, None)


def test_newcomer_waits_where_somebody_can_be_made_to_go(desk: Desk) -> None:
    """The other device has more room, but nobody on it may be taken from."""
    desk.card(70, "first")
    desk.take(wish("rock", 58, rigid=True, priority=CRITICAL, device="first", pids=(8,), ttl=1000))
    stage = Stage(desk, size=60)
    for name in ("bg", "lo"):
        request = wish(name, 30, rigid=True, priority=BACKGROUND, device="gpu", ttl=1000, pids=(len(stage.leases) + 1,))
        stage.leases[name] = desk.take(request)
        stage.held[name] = 30.0
    desk.at(29.0)
    desk.sample({8: 58.0}, name="first")
    stage.measure()
    stage.at(31.0)
    ticket = come(desk, 25)
    assert stage.orders() == "bg30!"
    waiter = desk.books.queue.of(ticket)
    assert waiter is not None
    assert waiter.device_id == "gpu"


def test_freed_bytes_are_nobody_elses_when_a_better_one_comes_late(desk: Desk) -> None:
    stage = full(desk)
    ticket = come(desk, 15)
    desk.release(stage.leases["bg"])
    late = desk.ask(wish("late", 15, rigid=True, priority=CRITICAL, wait=100, pids=(10,)))
    stage.measure_gone("bg")
    assert desk.lease(ticket).limit_bytes == gib(15)
    assert desk.waits(late)


def test_newcomer_does_not_disturb_a_plan_under_way(desk: Desk) -> None:
    stage = Stage(desk, size=60)
    stage.hold("bg", BACKGROUND, 40, floor=30)
    requester = stage.hold("hi", HIGH, 15, floor=15)
    stage.at(31.0)
    held = desk.preempt(5, requester)
    ticket = come(desk, 20, CRITICAL)
    assert stage.plan.waiter is None
    stage.give("bg")
    assert desk.closed[held].error is None
    # Then it is the newcomer's turn, when the donor has been left in peace for a while.
    assert (desk.waits(ticket), stage.open) == (True, False)
    stage.at(desk.now + 3.0)
    assert stage.plan.waiter is not None
    assert stage.orders() == "bg30!"


def test_another_goes_when_the_first_dies_without_letting_go(desk: Desk) -> None:
    stage = full(desk)
    ticket = come(desk, 15, wait=200.0)
    stage.at(desk.now + 30.0)
    assert stage.leases["bg"].residue_alarmed
    assert stage.leases["lo"].end_reason is EndReason.PREEMPTED
    assert stage.leases["hi"].alive
    stage.measure_gone("lo")
    assert desk.lease(ticket).limit_bytes == gib(15)


def test_victims_are_asked_for_no_more_than_is_missing_when_others_are_on_their_way_out(desk: Desk) -> None:
    stage = full(desk)
    desk.release(stage.leases["lo"])
    ticket = come(desk, 15)
    assert not stage.open
    stage.measure_gone("lo")
    assert desk.lease(ticket).limit_bytes == gib(15)
