"""Workers that hold memory before they lease it: it must not stand in their own way, nor become anybody else's."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2, state_service_pb2
from tests.faults.conftest import GUARD_S, LOOK_S, MIB, Cards, Stage, StartWorker, Worker, request, staged, staged_cards

ENDED = state_service_pb2.EVENT_KIND_LEASE_ENDED
CONFIRMED = state_service_pb2.EVENT_KIND_LEASE_CONFIRMED
DRAINED = state_service_pb2.EVENT_KIND_LEASE_DRAINED
ALARM = state_service_pb2.EVENT_KIND_RESIDUE_ALARM
QUICK_ALARM = ("--lease-drain-grace", "500ms")


def _leased_at_once(stage: Stage, memory_mib: int, worker: Worker) -> lease_pb2.Lease:
    """The lease of a worker that will not wait for it; what the driver shows must all be put down to it."""
    asked = request("owner", memory_mib, worker.pid, wait_s=0)
    lease = stage.arbiter.Allocate(asked, timeout=GUARD_S).lease
    assert lease.memory_bytes == memory_mib * MIB
    return lease


def _measured_anew(stage: Stage) -> None:
    """Waits for a sample that began after this call."""
    begun = time.monotonic()
    stage.until(
        lambda picture: picture.devices[0].sample_age.ToTimedelta().total_seconds() < time.monotonic() - begun - LOOK_S
    )


def _all_is(stage: Stage, lease: lease_pb2.Lease, held_mib: int, available_mib: int) -> None:
    """Whatever the driver shows is this lease's, at once and after it was measured again."""
    for _ in range(2):
        device = stage.device()
        assert (device.foreign_bytes, device.draining_bytes) == (0, 0)
        assert device.available_bytes == available_mib * MIB
        _measured_anew(stage)
    assert stage.lease(lease.lease_id).measured_memory_bytes == held_mib * MIB


def test_model_that_was_loaded_before_leasing_is_not_needed_again(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    with staged_cards(tmp_path, cards) as stage:
        worker = start()
        cards.hold(worker.pid, 6_000)
        stage.until(lambda picture: picture.devices[0].foreign_bytes == 6_000 * MIB)
        beside = stage.arbiter.Allocate(
            pb.AllocateRequest(holder="beside", workload_type=lease_pb2.WORKLOAD_TYPE_OTHER, memory_bytes=1_500 * MIB),
            timeout=GUARD_S,
        ).lease
        assert stage.refuses(6_000), "it is as taken as ever for everybody else"
        lease = _leased_at_once(stage, 6_000, worker)
        _all_is(stage, lease, 6_000, 1_500)
        assert stage.lease(beside.lease_id).directive.revision == beside.directive.revision, "nobody was lowered"


def test_survivor_of_a_killed_arbiter_leases_again_what_it_holds(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    worker = start()
    with staged_cards(tmp_path, cards) as stage:
        first = _leased_at_once(stage, 6_000, worker)
        cards.hold(worker.pid, 6_000)
        stage.measured(first.lease_id, 6_000)
        stage.server.process.kill()
        stage.server.process.wait(GUARD_S)
    with staged_cards(tmp_path, cards) as stage:
        stage.until(lambda picture: picture.devices[0].measured_bytes == 6_000 * MIB)
        _all_is(stage, _leased_at_once(stage, 6_000, worker), 6_000, 3_000)


def test_worker_that_gave_its_lease_back_and_kept_its_memory_leases_again(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    with staged_cards(tmp_path, cards) as stage:
        worker = start()
        first = _leased_at_once(stage, 6_000, worker)
        cards.hold(worker.pid, 6_000)
        stage.measured(first.lease_id, 6_000)
        for _ in range(3):
            stage.arbiter.Release(pb.ReleaseRequest(lease_id=first.lease_id, fence=first.fence), timeout=GUARD_S)
            assert stage.refuses(6_000), "it is nobody else's"
            again = _leased_at_once(stage, 6_000, worker)
            stage.events.until(DRAINED, first.lease_id)
            _all_is(stage, again, 6_000, 3_000)
            first = again


@pytest.mark.slow
def test_frozen_worker_leases_again_what_it_holds_when_it_wakes(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    with staged_cards(tmp_path, cards, *QUICK_ALARM) as stage:
        worker = start(stage.server.address)
        _, lease_id, _ = worker.ask("lease", 6_000, 3)
        cards.hold(worker.pid, 6_000)
        stage.events.until(CONFIRMED, lease_id)
        stage.measured(lease_id, 6_000)
        worker.signal(signal.SIGSTOP)
        ended, _ = stage.events.until(ENDED, lease_id)
        assert ended.fields["reason"] == "EXPIRED"
        stage.events.until(ALARM, lease_id)
        assert stage.refuses(6_000)
        worker.signal(signal.SIGCONT)
        _, again, _ = worker.ask("lease", 6_000, 15)
        stage.events.until(DRAINED, lease_id)
        _all_is(stage, stage.lease(again), 6_000, 3_000)


def test_host_memory_that_counts_as_foreign_is_its_owners_when_it_leases(tmp_path: Path, start: StartWorker) -> None:
    listing = tmp_path / "foreign"
    listing.write_text("", encoding="ascii")
    flags = ("--devices", "host", "--host-budget", "200MiB", "--host-foreign", f"pids:{listing}")
    with staged(tmp_path, *flags) as stage:
        worker = start()
        assert worker.ask("hold", 100) == ["holding"]
        listing.write_text(f"{worker.pid}\n", encoding="ascii")
        stage.until(lambda picture: picture.devices[0].foreign_bytes >= 100 * MIB)
        assert stage.refuses(150)
        lease = _leased_at_once(stage, 150, worker)
        stage.measured(lease.lease_id, 100)
        # Pages that it shares with other processes are counted anew with each reading, so a little may be left over.
        stage.until(lambda picture: picture.devices[0].foreign_bytes == 0)
        assert stage.device().available_bytes == 50 * MIB
