"""The worked numbers of waiting and of ending, with the settings that everybody has who changes none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from arbiter.v1 import arbiter_service_pb2, lease_pb2
from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import ArbiterConfig
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.rpc import convert
from arbiter_sidecar.types import EndReason, EventKind, Priority, Process, Verdict, WorkloadType
from tests.arbiter.desk import Desk, DeskMaker, gib, wish

BACKGROUND, LOW, NORMAL, HIGH, CRITICAL = Priority
LLM, IMAGE, VIDEO, OTHER = (
    WorkloadType.LLM_INFERENCE,
    WorkloadType.IMAGE_GENERATION,
    WorkloadType.VIDEO_GENERATION,
    WorkloadType.OTHER,
)


class Nobody:
    """Knows no process."""

    def identify(self, pid: int) -> Process | None:
        """Nobody is there."""
        return None

    def watch(self, process: Process, on_exit: Callable[[Process], None]) -> bool:
        """Whoever is asked for has gone already."""
        return False

    def signal(self, process: Process, number: int) -> bool:
        """Whoever is asked for has gone already."""
        return False

    def unwatch(self, process: Process) -> None:
        """Nobody was watched."""

    def close(self) -> None:
        """Nobody was watched."""


@pytest.fixture
def plain(make_desk: DeskMaker) -> Desk:
    """An arbiter with every setting as it comes, but for the guard that takes a jump of literal times for a pause."""
    return make_desk(ArbiterConfig(pause_guard_s=0.0))


def from_the_wire(workload: WorkloadType, priority: Priority, *, call_s: float = 1e9) -> AllocationRequest:
    """A rigid request for 4 GiB that names no waiting time, by a call that lasts ``call_s`` at most."""
    message = arbiter_service_pb2.AllocateRequest(
        holder="waits",
        workload_type=lease_pb2.WorkloadType.Value(f"WORKLOAD_TYPE_{workload.name}"),
        priority=lease_pb2.Priority.Value(f"PRIORITY_{priority.name}"),
        memory_bytes=gib(4),
        min_quality=1.0,
    )
    return convert.allocation(message, times=convert.LeaseTimes(), watch=Nobody(), wait_at_most_s=call_s)


@pytest.mark.parametrize(
    ("workload", "priority", "call_s", "waits_s"),
    [
        pytest.param(LLM, NORMAL, 1e9, 30.0, id="llm-normal"),
        pytest.param(VIDEO, BACKGROUND, 1e9, 60.0, id="video-background"),
        pytest.param(LLM, CRITICAL, 1e9, 60.0, id="llm-critical"),
        pytest.param(IMAGE, LOW, 1e9, 45.0, id="image-low"),
        pytest.param(IMAGE, HIGH, 1e9, 90.0, id="image-high"),
        pytest.param(OTHER, NORMAL, 1e9, 30.0, id="other-normal"),
        pytest.param(VIDEO, NORMAL, 7.0, 7.0, id="no-longer-than-the-call"),
    ],
)
def test_waiting_ends_at_its_default_when_the_request_names_none(
    plain: Desk, workload: WorkloadType, priority: Priority, call_s: float, waits_s: float
) -> None:
    plain.box(20)
    plain.take(wish("holds", 20, rigid=True, priority=CRITICAL, ttl=1000))
    ticket = plain.ask(from_the_wire(workload, priority, call_s=call_s))
    plain.at(waits_s - 0.001)
    assert plain.waits(ticket)
    plain.at(waits_s)
    error = plain.error(ticket)
    assert isinstance(error, errors.WaitTimeout)
    assert error.metadata()["waited_ms"] == str(round(waits_s * 1000))


def test_eight_may_pass_and_the_ninth_waits_when_nothing_is_configured(plain: Desk) -> None:
    device = plain.card(20)
    six = plain.take(wish("six", 6, rigid=True, ttl=1000, pids=(1,)))
    head = plain.ask(wish("head", 16, rigid=True, wait=900, pids=(2,)))
    small = [plain.ask(wish("small", 1, rigid=True, wait=900, ttl=1000, pids=(pid,))) for pid in range(11, 20)]
    assert [plain.waits(ticket) for ticket in (head, *small)] == [True, *[False] * 8, True]
    held = {1: 6.0, **dict.fromkeys(range(11, 20), 1.0)}
    # Whoever has been passed so often is next, however much comes free before that is enough.
    for gone, left in (((1,), [True, True]), ((11, 12, 13), [True, True]), ((14,), [False, True])):
        for lease in [six if pid == 1 else plain.lease(small[pid - 11]) for pid in gone]:
            plain.release(lease)
        held.update(dict.fromkeys(gone, 0.0))
        for _ in range(4):
            plain.now += 0.15
            plain.sample(held)
        assert [plain.waits(head), plain.waits(small[8])] == left
    assert device.available_bytes == 0


@pytest.mark.parametrize(("arrives", "first"), [(59.0, "later"), (60.0, "patient"), (61.0, "patient")])
def test_patience_counts_as_two_tiers_from_a_minute_on(plain: Desk, arrives: float, first: str) -> None:
    """The patient one came first, so it is ahead from the moment on at which it counts the same."""
    plain.card(20)
    six = plain.take(wish("six", 6, rigid=True, ttl=1000, pids=(1,)))
    plain.take(wish("rest", 14, rigid=True, ttl=1000, pids=(2,)))
    asked = {"patient": plain.ask(wish("patient", 6, rigid=True, priority=BACKGROUND, wait=900, pids=(3,)))}
    plain.at(arrives)
    asked["later"] = plain.ask(wish("later", 6, rigid=True, priority=NORMAL, wait=900, pids=(4,)))
    plain.release(six)
    for _ in range(4):
        plain.now += 0.15
        plain.sample({1: 0.0, 2: 14.0})
    assert [name for name, ticket in asked.items() if not plain.waits(ticket)] == [first]


def test_lease_of_half_a_minute_ends_then_and_its_bytes_stay_until_they_are_gone(plain: Desk) -> None:
    device = plain.card(20)
    lease = plain.take(wish("silent", 16, rigid=True, ttl=30, pids=(1,)))
    waiting = plain.ask(wish("next", 6, rigid=True, wait=900, pids=(2,)))
    plain.live(29.9, held={1: 16.0})
    assert lease.alive
    plain.live(30.0, held={1: 16.0})
    assert (lease.end_reason, lease.ended_at) == (EndReason.EXPIRED, 30.0)
    plain.live(39.9, held={1: 16.0})
    assert not plain.events(EventKind.RESIDUE_ALARM)
    plain.live(40.0, held={1: 16.0})
    # The grace is over: people are told, and nobody is given a byte of it.
    assert len(plain.events(EventKind.RESIDUE_ALARM)) == 1
    plain.live(100.0, held={1: 16.0})
    assert (device.residue_bytes, device.foreign_bytes, plain.waits(waiting)) == (gib(16), 0, True)
    plain.live(100.5, held={1: 0.0})
    assert plain.drained(lease)
    assert plain.lease(waiting).limit_bytes == gib(6)


def test_lease_of_half_a_minute_lives_as_long_again_when_it_beats_in_the_last_moment(plain: Desk) -> None:
    plain.box(20)
    lease = plain.take(wish("late", 6, ttl=30))
    plain.at(29.9)
    plain.beat(lease)
    assert lease.deadline == 59.9
    plain.at(59.8)
    assert lease.alive
    plain.at(59.9)
    assert lease.end_reason is EndReason.EXPIRED


def test_leases_are_forgotten_and_fences_go_on_when_the_arbiter_starts_anew(plain: Desk) -> None:
    plain.card(20)
    old = plain.take(wish("old", 16, rigid=True, pids=(1,), request_id="r"))
    plain.sample({1: 16.0})
    new = Desk(plain.books.config, epoch=2, now=5.0)
    new.books.names = plain.books.names
    device = new.card(20)
    # Nobody leases what the process holds, so it is a stranger's, and nobody is given it.
    new.sample({}, foreign=16.0)
    assert [result.verdict for result in new.beat(old)] == [Verdict.NOT_FOUND]
    assert new.report(old).verdict is Verdict.NOT_FOUND
    with pytest.raises(errors.LeaseNotFound):
        new.arbiter.release(old.lease_id, old.fence, new.now)
    assert (device.granted_bytes, device.residue_bytes, device.available_bytes) == (0, 0, gib(4))
    again = new.ask(wish("old", 16, rigid=True, pids=(1,), request_id="r", wait=60))
    assert new.waits(again)
    new.sample({}, foreign=0.0)
    for _ in range(40):
        new.sample({}, foreign=0.0)
    assert not new.granted(again).already_granted
    assert new.lease(again).fence > old.fence
