"""Holders die, freeze, fall silent or keep what they gave back; their bytes are charged until measured gone."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2, state_service_pb2
from tests.faults.conftest import (
    GUARD_S,
    MIB,
    Cards,
    StartWorker,
    Worker,
    in_line,
    request,
    staged,
    staged_cards,
    talking_to,
)

GRANTED = state_service_pb2.EVENT_KIND_LEASE_GRANTED
CONFIRMED = state_service_pb2.EVENT_KIND_LEASE_CONFIRMED
SUSPECT = state_service_pb2.EVENT_KIND_LEASE_SUSPECT
ENDED = state_service_pb2.EVENT_KIND_LEASE_ENDED
DRAINED = state_service_pb2.EVENT_KIND_LEASE_DRAINED
ALARM = state_service_pb2.EVENT_KIND_RESIDUE_ALARM

#: Ten times the promised 50 ms: a guard, the promise itself is a row of the benchmarks.
NOTICE_GUARD_S = 0.5
#: Nothing must have been measured for so long before bytes count as gone.
GONE_AFTER_S = 0.3
#: An end is an alarm after so long, here.
QUICK_ALARM = ("--lease-drain-grace", "500ms")
SMALL = ("--devices", "host", "--host-budget", "200MiB")


def _holding(start: StartWorker, memory_mib: int) -> Worker:
    worker = start()
    assert worker.ask("hold", memory_mib) == ["holding"]
    return worker


def _connections(socket: Path) -> set[str]:
    """The kernel's numbers of the server's open connections on its socket."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]]
    return {row[6] for row in rows if row[5] == "03" and row[7:] == [str(socket)]}


# Killed ---------------------------------------------------------------------------------------------------------------


def test_killed_worker_is_noticed_at_once_and_its_bytes_return_when_gone(tmp_path: Path, start: StartWorker) -> None:
    with staged(tmp_path, *SMALL) as stage:
        worker = _holding(start, 64)
        lease = stage.arbiter.Allocate(request("holder", 120, worker.pid)).lease
        assert lease.pids_visible
        killed = time.monotonic()
        worker.signal(signal.SIGKILL)
        ended, noticed = stage.events.until(ENDED, lease.lease_id)
        assert ended.fields["reason"] == "ORPHANED"
        assert noticed - killed < NOTICE_GUARD_S
        # Its bytes are still charged at that moment; a request for them waits for the measurement.
        waited = stage.arbiter.Allocate(request("next", 150, os.getpid()))
        drained, heard = stage.events.until(DRAINED, lease.lease_id)
        granted, _ = stage.events.until(GRANTED, waited.lease.lease_id)
        assert heard > noticed
        assert granted.sequence > drained.sequence > ended.sequence


def test_bytes_of_the_killed_are_charged_until_the_driver_shows_nothing_for_a_while(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    with staged_cards(tmp_path, cards) as stage, ThreadPoolExecutor() as threads:
        worker = _holding(start, 1)
        lease = stage.arbiter.Allocate(request("holder", 6_000, worker.pid)).lease
        cards.hold(worker.pid, 6_000)
        stage.measured(lease.lease_id, 6_000)
        worker.signal(signal.SIGKILL)
        ended, _ = stage.events.until(ENDED, lease.lease_id)
        assert ended.fields["reason"] == "ORPHANED"
        waiting = in_line(stage, threads, request("next", 6_000))
        assert stage.refuses(6_000)
        device = stage.device()
        assert (device.draining_bytes, device.foreign_bytes, device.granted_bytes) == (6_000 * MIB, 0, 0)
        assert not waiting.done(), "nobody may have the bytes that the driver still shows"
        shown_gone = time.monotonic()
        cards.hold(worker.pid, 0)
        assert waiting.result(GUARD_S).lease.memory_bytes == 6_000 * MIB
        assert time.monotonic() - shown_gone >= GONE_AFTER_S
        stage.events.until(DRAINED, lease.lease_id)


@pytest.mark.slow
def test_bytes_that_outlive_their_process_are_never_given_away(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    # Were these bytes taken for untraceable, they would come free after twice the time to live.
    with staged_cards(tmp_path, cards, *QUICK_ALARM, "--lease-lock-delay", "100ms") as stage:
        worker = _holding(start, 1)
        lease = stage.arbiter.Allocate(request("holder", 6_000, worker.pid, ttl_s=3)).lease
        cards.hold(worker.pid, 6_000)
        stage.measured(lease.lease_id, 6_000)
        worker.signal(signal.SIGKILL)
        _, died = stage.events.until(ENDED, lease.lease_id)
        alarm, _ = stage.events.until(ALARM, lease.lease_id)
        assert int(alarm.fields["residue_bytes"]) == 6_000 * MIB
        while time.monotonic() < died + 8:
            device = stage.device()
            assert (device.zombie_bytes, device.draining_bytes) == (6_000 * MIB, 6_000 * MIB)
            assert (device.ghost_bytes, device.foreign_bytes, device.available_bytes) == (0, 0, 3_000 * MIB)
            assert stage.refuses(4_000)
            time.sleep(0.5)
        # What is free beside them is not held back.
        beside = stage.arbiter.Allocate(request("beside", 3_000)).lease
        assert beside.memory_bytes == 3_000 * MIB


# Frozen and silent ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_frozen_worker_expires_in_its_time_and_refuses_itself_when_it_wakes(tmp_path: Path, start: StartWorker) -> None:
    with staged(tmp_path, *SMALL, *QUICK_ALARM) as stage:
        worker = start(stage.server.address)
        assert worker.ask("hold", 64) == ["holding"]
        _, lease_id, _ = worker.ask("lease", 150, 3)
        stage.events.until(CONFIRMED, lease_id)
        assert worker.ask("guard") == ["entered"]
        worker.signal(signal.SIGSTOP)
        suspect, _ = stage.events.until(SUSPECT, lease_id)
        assert stage.lease(lease_id).state == lease_pb2.LEASE_STATE_SUSPECT
        ended, _ = stage.events.until(ENDED, lease_id)
        assert ended.fields["reason"] == "EXPIRED"
        # By the server's own times, so that the way of the events does not count: its silence when it became
        # suspect, in milliseconds, and from then to the end.
        since_suspect_s = (ended.time.ToMicroseconds() - suspect.time.ToMicroseconds()) / 1e6
        assert float(suspect.fields["silent_s"]) + since_suspect_s >= 3 - 0.01
        # It is there and holds its memory: nobody else gets it.
        stage.events.until(ALARM, lease_id)
        assert stage.device().ghost_bytes >= 64 * MIB
        assert stage.refuses(150)
        # It wakes while the server cannot say anything, so what it answers it knows by its own clock.
        os.kill(stage.server.process.pid, signal.SIGSTOP)
        try:
            worker.tell("guard")
            worker.signal(signal.SIGCONT)
            assert worker.hear() == ["refused"]
        finally:
            os.kill(stage.server.process.pid, signal.SIGCONT)
        assert worker.ask("lost", GUARD_S)[0] == "lost"


def test_frozen_holder_hears_that_it_is_fenced(tmp_path: Path, start: StartWorker) -> None:
    with staged(tmp_path, *SMALL) as stage:
        worker = _holding(start, 1)
        lease = stage.arbiter.Allocate(request("frozen", 50, worker.pid, ttl_s=3)).lease
        other = stage.arbiter.Allocate(request("other", 50, os.getpid())).lease
        assert [result.verdict for result in stage.beat(lease, other).results] == [pb.VERDICT_RENEWED] * 2
        worker.signal(signal.SIGSTOP)
        ended, _ = stage.events.until(ENDED, lease.lease_id)
        assert ended.fields["reason"] == "EXPIRED"
        late, alive = stage.beat(lease, other).results
        assert (late.verdict, late.end_reason) == (pb.VERDICT_FENCED, lease_pb2.END_REASON_EXPIRED)
        assert alive.verdict == pb.VERDICT_RENEWED
        assert stage.lease(lease.lease_id).state == lease_pb2.LEASE_STATE_ENDED, "the dead are not revived"


@pytest.mark.slow
def test_deaf_worker_with_a_short_life_expires_and_is_charged_while_its_connection_stands(
    tmp_path: Path, start: StartWorker
) -> None:
    with staged(tmp_path, *SMALL) as stage:
        worker = start(stage.server.address, "thread")
        assert worker.ask("hold", 64) == ["holding"]
        _, lease_id, _ = worker.ask("lease", 120, 3)
        stage.events.until(CONFIRMED, lease_id)
        connected = _connections(stage.server.socket)
        assert len(connected) >= 2, "the worker's and ours"
        worker.tell("locked", 6)
        ended, _ = stage.events.until(ENDED, lease_id)
        assert ended.fields["reason"] == "EXPIRED"
        assert stage.device().draining_bytes >= 64 * MIB
        assert stage.refuses(150)
        assert _connections(stage.server.socket) == connected
        assert worker.hear() == ["awake"]
        assert worker.ask("guard") == ["refused"]
        assert worker.ask("lost", GUARD_S) == ["lost", "EXPIRED"]
        assert stage.refuses(150)
        worker.signal(signal.SIGKILL)
        stage.events.until(DRAINED, lease_id)
        assert stage.arbiter.Allocate(request("next", 150)).lease.memory_bytes == 150 * MIB


# Processes that are not the holder ------------------------------------------------------------------------------------


def test_memory_of_a_child_that_outlives_its_parent_stays_the_parents(tmp_path: Path, start: StartWorker) -> None:
    with staged(tmp_path, *SMALL, *QUICK_ALARM) as stage:
        worker = _holding(start, 1)
        child = worker.fork(64)
        lease = stage.arbiter.Allocate(request("parent", 120, worker.pid)).lease
        stage.measured(lease.lease_id, 64)
        worker.tell("leave")
        ended, _ = stage.events.until(ENDED, lease.lease_id)
        assert ended.fields["reason"] == "ORPHANED"
        stage.events.until(ALARM, lease.lease_id)
        device = stage.device()
        assert device.zombie_bytes >= 64 * MIB
        assert (device.ghost_bytes, device.foreign_bytes) == (0, 0)
        assert stage.refuses(150)
        os.kill(child, signal.SIGKILL)
        stage.events.until(DRAINED, lease.lease_id)
        assert stage.arbiter.Allocate(request("next", 150)).lease.memory_bytes == 150 * MIB


def test_card_memory_of_a_child_that_outlives_its_parent_stays_the_parents(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    with staged_cards(tmp_path, cards, *QUICK_ALARM) as stage:
        worker = _holding(start, 1)
        child = worker.fork(1)
        lease = stage.arbiter.Allocate(request("parent", 7_000, worker.pid)).lease
        cards.hold(child, 6_000)
        stage.measured(lease.lease_id, 6_000)
        worker.tell("leave")
        stage.events.until(ENDED, lease.lease_id)
        stage.events.until(ALARM, lease.lease_id)
        device = stage.device()
        assert (device.zombie_bytes, device.foreign_bytes) == (6_000 * MIB, 0)
        assert stage.refuses(4_000)
        cards.hold(child, 0)
        stage.events.until(DRAINED, lease.lease_id)
        assert stage.arbiter.Allocate(request("next", 9_000)).lease.memory_bytes == 9_000 * MIB


def test_process_that_gets_the_id_of_a_dead_holder_is_not_taken_for_it(tmp_path: Path, start: StartWorker) -> None:
    machine = start(sys.executable, "-m", "tests.faults.reborn", str(tmp_path), *SMALL, module="tests.faults.apart")
    with talking_to(f"unix:{tmp_path / 'arbiter.sock'}") as talk:
        _, pid = machine.ask("hold", 64)
        lease = talk.arbiter.Allocate(request("mortal", 120, int(pid), ttl_s=300)).lease
        talk.measured(lease.lease_id, 64)
        assert machine.ask("reborn", pid, 80) == ["holding", pid]
        ended, _ = talk.events.until(ENDED, lease.lease_id)
        assert ended.fields["reason"] == "ORPHANED"
        # The newcomer holds memory all the while, and none of it is the old lease's.
        talk.events.until(DRAINED, lease.lease_id)
        assert (talk.device().draining_bytes, talk.device().granted_bytes) == (0, 0)
        assert talk.beat(lease).results[0].verdict != pb.VERDICT_RENEWED
        fresh = talk.arbiter.Allocate(request("newcomer", 180, int(pid))).lease
        talk.measured(fresh.lease_id, 80)


# Given back and still there -------------------------------------------------------------------------------------------


def test_released_bytes_that_stay_are_the_ex_holders_and_nobody_elses(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    with staged_cards(tmp_path, cards, *QUICK_ALARM) as stage, ThreadPoolExecutor() as threads:
        worker = _holding(start, 1)
        lease = stage.arbiter.Allocate(request("keeper", 6_000, worker.pid)).lease
        cards.hold(worker.pid, 6_000)
        stage.measured(lease.lease_id, 6_000)
        stage.arbiter.Release(pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence))
        device = stage.device()
        assert (device.draining_bytes, device.ghost_bytes, device.foreign_bytes) == (6_000 * MIB, 0, 0)
        waiting = in_line(stage, threads, request("next", 4_000))
        stage.events.until(ALARM, lease.lease_id)
        device = stage.device()
        assert (device.ghost_bytes, device.zombie_bytes, device.foreign_bytes) == (6_000 * MIB, 0, 0)
        former = stage.lease(lease.lease_id)
        assert (former.holder, former.end_reason) == ("keeper", lease_pb2.END_REASON_RELEASED)
        assert former.measured_memory_bytes == 6_000 * MIB
        assert not waiting.done(), "nobody may have the bytes that the driver still shows"
        # Half of it goes: the request fits beside what is left, and nothing more.
        cards.hold(worker.pid, 3_000)
        assert waiting.result(GUARD_S).lease.memory_bytes == 4_000 * MIB
        assert stage.device().ghost_bytes == 3_000 * MIB
        assert stage.refuses(2_001)
        cards.hold(worker.pid, 0)
        stage.events.until(DRAINED, lease.lease_id)
        assert stage.device().draining_bytes == 0


def test_released_host_memory_that_stays_is_the_ex_holders(tmp_path: Path, start: StartWorker) -> None:
    with staged(tmp_path, *SMALL, *QUICK_ALARM) as stage:
        worker = start(stage.server.address)
        assert worker.ask("hold", 100) == ["holding"]
        _, lease_id, _ = worker.ask("lease", 150, 15)
        stage.measured(lease_id, 100)
        assert worker.ask("release") == ["released"]
        stage.events.until(ALARM, lease_id)
        device = stage.device()
        assert device.ghost_bytes >= 100 * MIB
        assert device.granted_bytes == 0
        assert stage.refuses(150)
        assert worker.ask("hold", 0) == ["holding"]
        # The interpreter itself is still there and charged; the rest is somebody else's now.
        left = stage.until(lambda picture: picture.devices[0].ghost_bytes < 80 * MIB).devices[0].ghost_bytes
        assert left > 0
        assert stage.arbiter.Allocate(request("next", 100)).lease.memory_bytes == 100 * MIB
