"""The runtime brings time, processes and samples to the core, and carries out whatever the core wants."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
from structlog.testing import capture_logs

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import PreemptionConfig, effects
from arbiter_sidecar.arbiter.effects import Effect
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Plan
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.ports import DeviceProbe
from arbiter_sidecar.requests import Beat, PreemptionRequest, Report
from arbiter_sidecar.runtime import Grant, driver
from arbiter_sidecar.types import (
    GIB,
    DeviceHealth,
    DeviceId,
    DeviceSample,
    EndReason,
    EventKind,
    LeaseState,
    Priority,
    Process,
    ReportOutcome,
    Verdict,
)
from tests.runtime.conftest import Drive
from tests.runtime.driving import CORE, Driven, Outside, wish
from tests.runtime.fakes import GUARD_S, FakeClock, until

FULL = wish(24.0, min_quality=1.0, ttl_s=300.0)
GPU = DeviceId("gpu0")
P42 = Process(42, 420)
MEASURED = Outside(devices={}, measured={"gpu0": 24 * GIB}, pids=(42, 43))


async def turns(count: int = 20) -> None:
    """Lets whatever is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


# Time -----------------------------------------------------------------------------------------------------------------


async def test_lease_expires_when_its_time_is_up_and_nobody_calls(drive: Drive) -> None:
    clock = FakeClock()
    driven = await drive(Outside(clock=clock))
    lease = await driven.take(wish(ttl_s=10.0))
    clock.advance(5.0)
    assert (await driven.heard(EventKind.LEASE_SUSPECT)).lease_id == lease.lease_id
    clock.advance(4.999)
    await turns()
    assert lease.alive
    clock.advance(0.001)
    ended = await driven.heard(EventKind.LEASE_ENDED)
    assert ended.fields["reason"] == "EXPIRED"
    assert driven.feed.told == [("ended", lease.lease_id)]
    assert driven.arbiter.books.stats.expired == 1


async def test_every_lease_expires_when_a_thousand_are_due_at_once(drive: Drive) -> None:
    clock = FakeClock()
    driven = await drive(Outside(clock=clock))
    for _ in range(1000):
        await driven.take(wish(0.001))
    with capture_logs() as lines:
        clock.advance(10.0)
        await until(lambda: driven.leases == 0)
    assert driven.feed.told.count(("ended", "lease-1")) == 1
    assert len(driven.feed.told) == 1000
    # A mass event is counted, not written out line by line.
    assert sum(line["count"] for line in lines if line["event"] == "events_not_logged") > 500


async def test_pause_is_absorbed_when_the_loop_was_stalled(drive: Drive) -> None:
    clock = FakeClock()
    driven = await drive(Outside(clock=clock, core=replace(CORE, pause_guard_s=0.75)))
    lease = await driven.take(wish(ttl_s=10.0))
    await turns()
    clock.advance(3600.0)
    assert (await driven.heard(EventKind.PAUSE_ABSORBED)).fields["seconds"] == "3600.0"
    assert lease.alive
    deadline = lease.deadline
    assert deadline == 1000.0 + 10.0 + 3600.0
    while clock.time < deadline - 0.5:
        # Small steps, each of which the core sees, are no pause.
        clock.advance(0.5)
        driven.runtime.confirm(())
        assert lease.alive
    clock.advance(0.5)
    await until(lambda: not lease.alive)
    assert lease.end_reason is EndReason.EXPIRED


async def test_first_heartbeat_after_a_stall_renews_when_it_comes_before_the_next_look(drive: Drive) -> None:
    clock = FakeClock()
    driven = await drive(Outside(clock=clock, core=replace(CORE, pause_guard_s=0.75)))
    lease = await driven.take(wish(ttl_s=10.0))
    clock.advance(60.0)
    outcome = driven.runtime.heartbeat(Beat(handles=(lease.handle,)))
    assert [result.verdict for result in outcome.results] == [Verdict.RENEWED]
    assert lease.deadline == clock.time + 10.0


async def test_waiter_gives_up_in_time_when_it_waits_less_than_a_pulse(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "PULSE_S", 10 * GUARD_S)
    clock = FakeClock()
    driven = await drive(Outside(clock=clock))
    await driven.take(FULL)
    waiting = asyncio.create_task(driven.runtime.allocate(wish(4.0, min_quality=1.0, wait_s=0.02)))
    await turns()
    clock.advance(0.02)
    with pytest.raises(errors.WaitTimeout):
        await asyncio.wait_for(waiting, GUARD_S)


async def test_process_is_told_when_a_defect_stops_time(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = await drive(Outside())

    def defect(now: float, limit: int = 64) -> bool:
        raise AssertionError("the books contradict themselves")

    monkeypatch.setattr(driven.arbiter, "advance", defect)
    with capture_logs() as lines:
        await asyncio.wait_for(driven.runtime.failed.wait(), GUARD_S)
    [line] = [line for line in lines if line["event"] == "time_stopped"]
    assert line["log_level"] == "error"
    assert "contradict" in line["error"]


async def test_nothing_runs_on_when_it_is_stopped(drive: Drive) -> None:
    clock = FakeClock()
    driven = await drive(replace(MEASURED, clock=clock))
    lease = await driven.take(wish(4.0, P42))
    await driven.runtime.stop()
    asked = len(driven.probes["gpu0"].asked)
    clock.advance(100.0)
    await asyncio.sleep(0.02)
    assert lease.alive
    assert len(driven.probes["gpu0"].asked) == asked
    assert driven.watch.closed


# Callers --------------------------------------------------------------------------------------------------------------


async def about_to_be_granted(driven: Driven, callers: int = 1) -> tuple[Lease, list[asyncio.Task[Grant]]]:
    """A lease whose next report makes room, and those who wait for it with one request id."""
    first = await driven.take(wish(20.0))
    request = wish(10.0, request_id="r1", wait_s=60.0)
    late = [asyncio.create_task(driven.runtime.allocate(request)) for _ in range(callers)]
    await until(lambda: driven.arbiter.books.queue.callers == callers)
    return first, late


def comply(driven: Driven, lease: Lease) -> None:
    """The holder runs at what it was told; whoever waits for that is granted in this very turn."""
    report = Report(
        lease_id=lease.lease_id, fence=lease.fence, applied_revision=lease.revision, outcome=ReportOutcome.APPLIED
    )
    driven.runtime.heartbeat(Beat(reports=(report,)))


async def test_grant_is_undone_when_the_caller_is_cancelled_in_the_same_turn(drive: Drive) -> None:
    driven = await drive(Outside())
    first, [late] = await about_to_be_granted(driven)
    comply(driven, first)
    assert driven.leases == 2
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    assert driven.leases == 1
    assert (await driven.heard(EventKind.LEASE_ENDED)).fields["reason"] == "UNDELIVERED"
    stats = driven.arbiter.books.stats
    assert (stats.granted, stats.cancelled) == (1, 1)


async def test_other_caller_keeps_the_lease_when_one_of_two_is_cancelled_in_the_same_turn(drive: Drive) -> None:
    driven = await drive(Outside())
    first, late = await about_to_be_granted(driven, 2)
    comply(driven, first)
    late[0].cancel()
    grant = await late[1]
    assert grant.lease.alive
    assert driven.leases == 2
    await asyncio.gather(*late, return_exceptions=True)


async def test_grant_is_undone_when_every_caller_is_cancelled_in_the_same_turn(drive: Drive) -> None:
    driven = await drive(Outside())
    first, late = await about_to_be_granted(driven, 3)
    comply(driven, first)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    assert driven.leases == 1
    assert driven.arbiter.books.stats.cancelled == 3


async def test_request_leaves_the_queue_when_its_caller_is_cancelled(drive: Drive) -> None:
    driven = await drive(Outside())
    _, [late] = await about_to_be_granted(driven)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    assert driven.arbiter.books.queue.callers == 0
    assert driven.arbiter.books.devices[GPU].candidate is None


async def test_caller_is_refused_at_once_when_the_core_refuses(drive: Drive) -> None:
    driven = await drive(Outside())
    with pytest.raises(errors.ExceedsCapacity):
        await driven.runtime.allocate(wish(25.0, min_quality=1.0))
    await driven.take(FULL)
    with pytest.raises(errors.InsufficientMemory):
        await driven.runtime.allocate(wish(4.0, min_quality=1.0))
    assert driven.arbiter.books.queue.callers == 0


# Processes ------------------------------------------------------------------------------------------------------------


async def test_lease_ends_when_its_process_exits_and_is_forgotten_when_its_bytes_are_gone(drive: Drive) -> None:
    driven = await drive(MEASURED)
    probe = driven.probes["gpu0"]
    probe.held[P42] = 4 * GIB
    lease = await driven.take(wish(4.0, P42))
    await until(lambda: lease.measured_bytes == 4 * GIB)
    driven.watch.kill(42)
    assert lease.end_reason is EndReason.ORPHANED
    assert driven.feed.told == [("ended", lease.lease_id)]
    await turns()
    assert driven.arbiter.books.leases.get(lease.lease_id) is lease
    probe.held[P42] = 0
    # Nothing must have been measured for a while before it is believed.
    clock = cast("FakeClock", driven.runtime.clock)
    while driven.arbiter.books.leases.get(lease.lease_id) is not None:
        clock.advance(0.1)
        await asyncio.sleep(0.005)
    assert not driven.watch.watched


async def test_process_is_watched_once_when_it_holds_two_leases(drive: Drive) -> None:
    driven = await drive(MEASURED)
    leases = [await driven.take(wish(1.0, P42)) for _ in range(2)]
    assert [len(callbacks) for callbacks in driven.watch.watched.values()] == [1]
    driven.watch.kill(42)
    assert [lease.end_reason for lease in leases] == [EndReason.ORPHANED] * 2


async def test_lease_ends_when_its_process_was_dead_already(drive: Drive) -> None:
    driven = await drive(MEASURED)
    driven.watch.living.pop(42)
    lease = await driven.take(wish(1.0, P42))
    await until(lambda: not lease.alive)
    assert lease.end_reason is EndReason.ORPHANED


async def test_lease_lives_when_only_one_of_its_processes_exits(drive: Drive) -> None:
    driven = await drive(MEASURED)
    lease = await driven.take(wish(1.0, P42, Process(43, 430)))
    driven.watch.kill(42)
    assert lease.alive
    driven.watch.kill(43)
    assert lease.end_reason is EndReason.ORPHANED


# Samples --------------------------------------------------------------------------------------------------------------


async def test_device_is_stale_and_then_frozen_when_its_driver_fails(drive: Drive) -> None:
    clock = FakeClock()
    driven = await drive(replace(MEASURED, clock=clock))
    lease = await driven.take(wish(1.0, P42, ttl_s=60.0))
    probe = driven.probes["gpu0"]
    probe.failure = "no such device"
    await until(lambda: driven.arbiter.books.devices[GPU].failure == "no such device")
    clock.advance(2.5)
    stale = await driven.health_becomes(DeviceHealth.STALE)
    assert stale.fields["detail"] == "no such device"
    assert (await driven.take(wish(1.0))).alive
    clock.advance(3.0)
    with pytest.raises(errors.DeviceStale):
        await driven.runtime.allocate(wish(1.0))
    outcome = driven.runtime.heartbeat(Beat(reports=(Report(lease_id=lease.lease_id, fence=lease.fence),)))
    assert outcome.results[0].verdict is Verdict.RENEWED
    probe.failure = None
    await driven.health_becomes(DeviceHealth.OK)
    assert (await driven.take(wish(1.0))).alive


class Hanging:
    """Measures once, and then hangs."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = False

    async def __call__(self, probe: DeviceProbe, holders: Sequence[Process], guests: Sequence[Process]) -> DeviceSample:
        self.calls += 1
        if self.calls == 1:
            return probe.sample(holders, guests)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        raise AssertionError


async def test_nothing_else_is_held_up_when_a_driver_hangs(drive: Drive) -> None:
    clock, measure = FakeClock(), Hanging()
    driven = await drive(replace(MEASURED, clock=clock, measure=measure))
    lease = await driven.take(wish(1.0, P42, ttl_s=10.0))
    await until(lambda: measure.calls == 2)
    driven.renew(lease)
    clock.advance(6.0)
    await driven.health_becomes(DeviceHealth.STALE)
    driven.renew(lease)
    with pytest.raises(errors.DeviceStale):
        await driven.runtime.allocate(wish(1.0))
    clock.advance(10.0)
    await until(lambda: not lease.alive)
    await driven.runtime.stop()
    assert measure.cancelled


async def test_server_starts_when_the_first_measurement_times_out(drive: Drive) -> None:
    clock = FakeClock()
    patient = Outside(clock=clock, devices={}, measured={"gpu0": 24 * GIB}, measure=too_slow)
    driven = await drive(patient)
    book = driven.arbiter.books.devices[GPU]
    assert book.health(clock.time) is DeviceHealth.UNKNOWN
    assert book.failure == "the driver has not answered"
    with pytest.raises(errors.DeviceStale):
        await driven.runtime.allocate(wish(1.0))


async def too_slow(probe: DeviceProbe, holders: Sequence[Process], guests: Sequence[Process]) -> DeviceSample:
    """A watchdog that always bites."""
    del probe, holders, guests
    raise TimeoutError("the driver has not answered")


async def test_defect_of_a_probe_is_logged_when_it_ends_the_sampling(drive: Drive) -> None:
    with capture_logs() as lines:
        driven = await drive(replace(MEASURED, measure=Broken()))
        lease = await driven.take(wish(1.0, P42))
        await until(lambda: any(line["event"] == "sampling_stopped" for line in lines))
    # Time goes on, and so does everything that needs no sample.
    cast("FakeClock", driven.runtime.clock).advance(10.0)
    await until(lambda: not lease.alive)


class Broken:
    """Measures once, and then raises what no probe may raise."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, probe: DeviceProbe, holders: Sequence[Process], guests: Sequence[Process]) -> DeviceSample:
        self.calls += 1
        if self.calls == 1:
            return probe.sample(holders, guests)
        raise ValueError("not a number")


async def test_leases_end_when_their_device_is_lost(drive: Drive) -> None:
    driven = await drive(MEASURED)
    lease = await driven.take(wish(1.0, P42))
    driven.probes["gpu0"].lost = True
    await until(lambda: not lease.alive)
    assert lease.end_reason is EndReason.DEVICE_LOST
    assert not driven.watch.watched


async def test_probe_is_asked_about_holders_when_there_are_some(drive: Drive) -> None:
    driven = await drive(MEASURED)
    assert driven.probes["gpu0"].asked[0] == ()
    await driven.take(wish(1.0, P42))
    await until(lambda: driven.probes["gpu0"].asked[-1] == (P42,))


async def test_measured_fall_makes_room_when_somebody_waits(drive: Drive) -> None:
    driven = await drive(MEASURED)
    probe = driven.probes["gpu0"]
    probe.held[P42] = 20 * GIB
    first = await driven.take(wish(20.0, P42, ttl_s=300.0))
    await until(lambda: first.measured_bytes == 20 * GIB)
    late = asyncio.create_task(driven.runtime.allocate(wish(10.0, wait_s=600.0)))
    await until(lambda: first.limit_bytes < 20 * GIB)
    await turns()
    assert not late.done()
    probe.held[P42] = first.limit_bytes
    assert (await asyncio.wait_for(late, GUARD_S)).lease.alive


# Effects --------------------------------------------------------------------------------------------------------------


async def test_effect_is_a_defect_when_nobody_knows_it(drive: Drive) -> None:
    driven = await drive(Outside())
    driven.arbiter.books.pending.append(cast("Effect", object()))
    with pytest.raises(TypeError, match="nobody carries out"):
        driven.runtime.confirm(())


async def test_every_effect_is_carried_out(drive: Drive) -> None:
    driven = await drive(Outside())
    first, [late] = await about_to_be_granted(driven)
    assert driven.feed.told == [("changed", first.lease_id)]
    comply(driven, first)
    grant = await late
    assert (grant.lease.state, grant.already_granted) == (LeaseState.GRANTED, False)
    driven.runtime.drain()
    assert driven.feed.told[-1] == ("draining", "")
    # Those of preemption are carried out below and in the tests of its call.
    known = {effects.Granted, effects.Refused, effects.Opened, effects.DirectiveChanged, effects.Ended, effects.Drained}
    preempting = {effects.PlanClosed, effects.ReclaimCancelled}
    kv_and_shards = {effects.Reserved, effects.ReservationRefused, effects.ShardsChanged}
    assert {*known, *preempting, *kv_and_shards, effects.Happened} == set(Effect.__args__)


async def test_settled_is_set_when_no_lease_lives(drive: Drive) -> None:
    driven = await drive(Outside())
    assert driven.runtime.settled.is_set()
    lease = await driven.take(wish())
    assert not driven.runtime.settled.is_set()
    driven.runtime.release(lease.lease_id, lease.fence)
    assert driven.runtime.settled.is_set()


async def test_events_are_logged_with_their_names_when_they_matter(drive: Drive) -> None:
    driven = await drive(Outside())
    with capture_logs() as lines:
        lease = await driven.take(wish(request_id="r1", namespace="n"))
        driven.renew(lease)
    granted = next(line for line in lines if line["event"] == "lease_granted")
    assert (granted["lease_id"], granted["request_id"], granted["holder"]) == (lease.lease_id, "r1", "worker")
    assert granted["log_level"] == "info"
    assert next(line for line in lines if line["event"] == "lease_confirmed")["log_level"] == "debug"
    assert not any(str(lease.handle) in str(line.values()) for line in lines)


async def test_preempted_donor_is_let_off_when_the_caller_goes(drive: Drive) -> None:
    rules = preemption.Rules(shrink_hold_s=0.0)
    driven = await drive(Outside(core=replace(CORE, preemption=PreemptionConfig(rules=rules, grace_s=60.0))))
    giving = await driven.take(wish(16.0, holder="giving", priority=Priority.BACKGROUND))
    taking = await driven.take(wish(2.0, holder="taking", priority=Priority.HIGH))
    asked = PreemptionRequest(lease_id=taking.lease_id, need_bytes=2 * GIB)
    assert [each.lease_id for each in driven.runtime.dry_preempt(asked).donations] == [giving.lease_id]
    call = asyncio.create_task(driven.runtime.preempt(asked))
    await until(lambda: giving.reclaim is not None)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert giving.reclaim is None
    assert ("let off", giving.lease_id) in driven.feed.told


async def test_requester_gets_its_bytes_when_the_donor_complies(drive: Drive) -> None:
    rules = preemption.Rules(shrink_hold_s=0.0)
    driven = await drive(Outside(core=replace(CORE, preemption=PreemptionConfig(rules=rules, grace_s=60.0))))
    giving = await driven.take(wish(16.0, holder="giving", priority=Priority.BACKGROUND))
    taking = await driven.take(wish(2.0, holder="taking", priority=Priority.HIGH))
    asked = PreemptionRequest(lease_id=taking.lease_id, need_bytes=2 * GIB)
    call = asyncio.create_task(driven.runtime.preempt(asked))
    await until(lambda: giving.reclaim is not None)
    comply(driven, giving)
    plan = (await call).plan
    assert isinstance(plan, Plan)
    assert plan.confirmed_bytes == 2 * GIB
    assert taking.limit_bytes == 4 * GIB


async def test_bytes_whose_holder_is_believed_are_free_at_the_release(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = await drive(Outside())
    lease = await driven.take(FULL)
    # Nobody looks for long from here on, unless something is due.
    monkeypatch.setattr(driver, "PULSE_S", 600.0)
    await asyncio.sleep(0.01)
    late = asyncio.create_task(driven.runtime.allocate(replace(FULL, wait_s=300.0)))
    await until(lambda: len(driven.arbiter.books.queue) == 1)
    driven.runtime.release(lease.lease_id, lease.fence)
    assert (await asyncio.wait_for(late, GUARD_S)).lease.alive


async def test_everything_is_measured_anew_when_the_machine_has_slept(drive: Drive) -> None:
    clock, measure = FakeClock(), Gated()
    driven = await drive(replace(MEASURED, clock=clock, measure=measure))
    lease = await driven.take(wish(1.0, P42, ttl_s=9.0))
    await until(lambda: measure.waiting)
    clock.asleep += 0.9
    await turns()
    assert driven.arbiter.books.devices[GPU].health(clock.time) is DeviceHealth.OK
    clock.asleep += 3600.0
    clock.advance(1.0)
    # Asked before time has passed on its own: the request must not be granted on what was measured before.
    late = asyncio.create_task(driven.runtime.allocate(wish(1.0, wait_s=60.0)))
    assert float((await driven.heard(EventKind.RESUMED)).fields["slept_s"]) == pytest.approx(3600.9)
    asked = measure.calls
    measure.gate.set()
    assert (await asyncio.wait_for(late, GUARD_S)).lease.alive
    assert measure.calls > asked, "the sample that was under way while the machine slept does not count"
    assert lease.alive


class Gated:
    """Measures twice, and from then on when the gate is open."""

    def __init__(self) -> None:
        self.calls = 0
        self.waiting = False
        self.gate = asyncio.Event()

    async def __call__(self, probe: DeviceProbe, holders: Sequence[Process], guests: Sequence[Process]) -> DeviceSample:
        self.calls += 1
        if self.calls > 2:
            self.waiting = True
            await self.gate.wait()
        return probe.sample(holders, guests)
