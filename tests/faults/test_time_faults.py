"""Faults of time: the arbiter is frozen, the wall clock jumps, the machine sleeps. Nobody loses a lease for that."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2, state_service_pb2
from arbiter_sidecar.adapters import clock
from tests import fake_nvml
from tests.faults.conftest import GUARD_S, Cards, Stage, StartWorker, in_line, request, staged, staged_cards
from tests.faults.starting import Run, programs

STATIC = ("--devices", "static", "--devices-static", "card=1000MiB")
TTL_S = 3
DAY_S = 86_400
HOUR_S = 3_600


@pytest.fixture
def run() -> Iterator[Run]:
    with programs() as started:
        yield started


class Clocks:
    """The clocks of a server, as the test moves them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.environment = {clock.TEST_CLOCK: str(path)}
        self.move()

    def move(self, **offsets_s: float) -> None:
        """Moves the clocks that are named, and all others back to where they belong."""
        draft = self._path.with_name("clock.draft")
        draft.write_text(json.dumps(offsets_s))
        os.replace(draft, self._path)


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    """Clocks that have not been moved yet."""
    return Clocks(tmp_path / "clock")


def expired(stage: Stage) -> int:
    """How many leases have ended by silence."""
    return stage.picture().stats.expired_leases


def absorbed(stage: Stage, at_least_s: float) -> state_service_pb2.Event:
    """The next pause of such a length that the server tells of; on a busy machine there are short ones too."""
    while True:
        event, _ = stage.events.until(state_service_pb2.EVENT_KIND_PAUSE_ABSORBED)
        if float(event.fields["seconds"]) >= at_least_s:
            return event


def silent_lease(stage: Stage, ttl_s: int = TTL_S) -> lease_pb2.Lease:
    """A lease that has had its last heartbeat."""
    return stage.arbiter.Allocate(request("silent", 10, ttl_s=ttl_s), timeout=GUARD_S).lease


@pytest.mark.slow
def test_nobody_expires_when_the_arbiter_was_frozen_for_longer_than_they_live(
    tmp_path: Path, start: StartWorker, run: Run
) -> None:
    frozen_s = 8.0
    with staged(tmp_path, *STATIC) as stage:
        beating = [run("beating", stage.server.address, TTL_S) for _ in range(3)]
        ids = {worker.hear()[1] for worker in beating}
        patient, strict = start(stage.server.address), start(stage.server.address)
        ids.add(patient.ask("lease", 10, 15)[1])
        strict_id = strict.ask("lease", 10, TTL_S)[1]
        stage.until(lambda picture: all(lease.state == lease_pb2.LEASE_STATE_ACTIVE for lease in picture.leases))
        os.kill(stage.server.process.pid, signal.SIGSTOP)
        time.sleep(frozen_s)
        os.kill(stage.server.process.pid, signal.SIGCONT)
        assert absorbed(stage, at_least_s=frozen_s - 1.0).fields["leases"] == "5"
        assert expired(stage) == 0
        # A worker of the client package counts for itself: it must not rely on what it could not hear.
        assert strict.ask("guard") == ["refused"]
        time.sleep(2 * TTL_S)
        living = {lease.lease_id for lease in stage.picture().leases if lease.state != lease_pb2.LEASE_STATE_ENDED}
        assert living - {strict_id} == ids
        assert all(worker.process.poll() is None for worker in beating)
        assert patient.ask("guard") == ["entered"]


@pytest.mark.parametrize("days", [1, -1], ids=["on", "back"])
def test_wall_clock_that_jumps_ends_nothing_and_keeps_nothing(
    tmp_path: Path, start: StartWorker, clocks: Clocks, days: int
) -> None:
    with staged(tmp_path, *STATIC, environment=clocks.environment) as stage:
        assert '"event": "clock_is_moved_by_a_file"' in stage.server.log.text
        assert '"level": "warning"' in stage.server.log.text
        worker = start(stage.server.address)
        _, kept, _ = worker.ask("lease", 10, TTL_S)
        before_last = time.monotonic()
        silent = silent_lease(stage)
        clocks.move(wall=days * DAY_S)
        ended, heard = stage.events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, silent.lease_id)
        assert abs(ended.time.ToSeconds() - time.time() - days * DAY_S) < DAY_S / 2, "the wall clock has not moved"
        assert ended.fields["reason"] == "EXPIRED"
        assert heard - before_last >= TTL_S
        assert stage.lease(kept).state == lease_pb2.LEASE_STATE_ACTIVE
        assert worker.ask("guard") == ["entered"]
        assert expired(stage) == 1


def test_monotonic_clock_that_jumps_is_taken_for_a_pause(tmp_path: Path, clocks: Clocks) -> None:
    with staged(tmp_path, *STATIC, environment=clocks.environment) as stage:
        before_last = time.monotonic()
        silent = silent_lease(stage)
        clocks.move(monotonic=HOUR_S)
        absorbed(stage, at_least_s=HOUR_S)
        _, heard = stage.events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, silent.lease_id)
        assert heard - before_last >= TTL_S


def test_nothing_is_granted_before_it_was_measured_anew_when_the_machine_has_slept(
    tmp_path: Path, start: StartWorker, clocks: Clocks, cards: Cards
) -> None:
    asleep = replace(cards, environment={**cards.environment, **clocks.environment})
    with staged_cards(tmp_path, asleep) as stage, ThreadPoolExecutor() as threads:
        worker = start(stage.server.address)
        _, kept, _ = worker.ask("lease", 10, TTL_S)
        stage.events.until(state_service_pb2.EVENT_KIND_LEASE_CONFIRMED, kept)
        silent = [silent_lease(stage, 60) for _ in range(3)]
        before = {lease.lease_id: lease.expire_time.ToSeconds() for lease in silent}
        cards.card.errors["any"] = fake_nvml.UNKNOWN
        cards.driver.write()
        clocks.move(boottime=HOUR_S)
        resumed, _ = stage.events.until(state_service_pb2.EVENT_KIND_RESUMED)
        assert (float(resumed.fields["slept_s"]) > HOUR_S - 1, resumed.fields["leases"]) == (True, "4")
        # An interval more for everybody: a third of the time to live.
        assert all(stage.lease(each).expire_time.ToSeconds() >= before[each] + 60 // 3 - 1 for each in before)
        waiting = in_line(stage, threads, request("late", 10, wait_s=60))
        time.sleep(1.0)
        assert not waiting.done(), "what was measured before the sleep must not be granted on"
        assert stage.device().health == state_service_pb2.DEVICE_HEALTH_UNSPECIFIED
        # Whoever holds goes on meanwhile.
        assert {each.verdict for each in stage.beat(*silent).results} <= {pb.VERDICT_RENEWED}
        assert worker.ask("guard") == ["entered"]
        cards.card.errors.clear()
        cards.driver.write()
        assert waiting.result(GUARD_S).lease.lease_id
        picture = stage.picture()
        assert (picture.stats.expired_leases, len(picture.leases)) == (0, 5)
        assert stage.lease(kept).state == lease_pb2.LEASE_STATE_ACTIVE
