"""The driver fails, hangs, says N/A, loses a card or counts in other numbers: nobody is served on old figures."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2, state_service_pb2
from tests import fake_nvml
from tests.faults.conftest import (
    GUARD_S,
    LOOK_S,
    MIB,
    Cards,
    Stage,
    StartWorker,
    Talk,
    in_line,
    request,
    staged_cards,
    talking_to,
)

ENDED = state_service_pb2.EVENT_KIND_LEASE_ENDED
DRAINED = state_service_pb2.EVENT_KIND_LEASE_DRAINED
OK = state_service_pb2.DEVICE_HEALTH_OK
STALE = state_service_pb2.DEVICE_HEALTH_STALE
LOST = state_service_pb2.DEVICE_HEALTH_LOST

#: Figures older than this serve nobody.
TRUSTED_S = 5.0
#: How long each call to a driver that hangs takes.
HANG_MS = 4000
#: A heartbeat takes a millisecond; in a loop that waited for the driver it would take as long as a call.
BEAT_GUARD_S = 2.0
FOREIGN_MIB = 1_000
TTL_S = 3
#: The lock delay is the longer of this and so many times to live.
SHORT_LOCK = ("--lease-lock-delay", "1s")
LOCK_TTLS = 2


@dataclass(slots=True)
class _Pulse:
    """Heartbeats that were sent while something else went on."""

    beats: int = 0
    refused: int = 0
    slowest_s: float = 0.0

    def live_on(self) -> None:
        """Waits until one more was answered."""
        deadline, before = time.monotonic() + GUARD_S, self.beats
        while self.beats == before:
            assert time.monotonic() < deadline, "the heartbeats have stopped"
            time.sleep(LOOK_S)


@contextlib.contextmanager
def _beating(stage: Stage, lease: lease_pb2.Lease) -> Iterator[_Pulse]:
    """Keeps a lease alive with a heartbeat five times a second, and times each."""
    pulse, over = _Pulse(), threading.Event()

    def beat() -> None:
        while not over.wait(0.2):
            begun = time.monotonic()
            (result,) = stage.beat(lease).results
            pulse.slowest_s = max(pulse.slowest_s, time.monotonic() - begun)
            pulse.beats += 1
            pulse.refused += result.verdict != pb.VERDICT_RENEWED

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield pulse
    finally:
        over.set()
        thread.join(GUARD_S)


def _health(stage: Stage, health: state_service_pb2.DeviceHealth.ValueType, place: int = 0) -> state_service_pb2.Device:
    """Waits until a device is shown with this health."""
    return stage.until(lambda picture: picture.devices[place].health == health).devices[place]


def _sampled_anew(stage: Talk) -> None:
    """Waits for a sample that began after now."""
    asked_s = stage.picture().uptime.ToMicroseconds() / 1e6
    stage.until(lambda picture: picture.uptime.ToMicroseconds() / 1e6 - _age_s(picture.devices[0]) > asked_s)


def _age_s(device: state_service_pb2.Device) -> float:
    return device.sample_age.ToMicroseconds() / 1e6


def _survives_a_silent_driver(stage: Stage, cards: Cards, complaint: str) -> None:
    """What must hold from when the driver's faults, already set, begin until after they are mended."""
    holder = stage.arbiter.Allocate(request("holder", 2_000, ttl_s=TTL_S)).lease
    with _beating(stage, holder) as pulse, ThreadPoolExecutor() as threads:
        began = time.monotonic()
        cards.driver.write()
        device = _health(stage, STALE)
        assert complaint in device.health_detail
        assert device.foreign_bytes == FOREIGN_MIB * MIB, "the last figures stay"
        stage.until(lambda picture: _age_s(picture.devices[0]) > TRUSTED_S)
        assert time.monotonic() - began > TTL_S, "a lease that was not renewed would have ended by now"
        # There is room by all that is known, but that is too old.
        assert stage.refusal(request("impatient", 1_000, wait_s=0)) is grpc.StatusCode.UNAVAILABLE
        waiting = in_line(stage, threads, request("patient", 1_000))
        cards.card.errors.clear()
        cards.card.hangs_ms.clear()
        assert not waiting.done()
        cards.driver.write()
        assert waiting.result(GUARD_S).lease.memory_bytes == 1_000 * MIB
        _health(stage, OK)
        pulse.live_on()
    assert pulse.refused == 0, "renewals go on whatever the driver does"
    assert pulse.slowest_s < BEAT_GUARD_S, "nobody waits for the driver"
    assert stage.lease(holder.lease_id).state == lease_pb2.LEASE_STATE_ACTIVE


# Silent ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_driver_that_fails_stops_grants_and_nothing_else(tmp_path: Path, cards: Cards) -> None:
    cards.hold(os.getpid(), FOREIGN_MIB)
    with staged_cards(tmp_path, cards) as stage:
        cards.card.errors["any"] = fake_nvml.UNKNOWN
        _survives_a_silent_driver(stage, cards, "could not say")


@pytest.mark.slow
def test_driver_that_hangs_stops_grants_and_nothing_else(tmp_path: Path, cards: Cards) -> None:
    cards.hold(os.getpid(), FOREIGN_MIB)
    with staged_cards(tmp_path, cards, "--devices-probe-timeout", "1s") as stage:
        cards.card.hangs_ms["any"] = HANG_MS
        _survives_a_silent_driver(stage, cards, "has not answered")


@pytest.mark.slow
def test_driver_that_answers_nothing_but_na_stops_grants_and_nothing_else(tmp_path: Path, cards: Cards) -> None:
    cards.hold(os.getpid(), FOREIGN_MIB)
    with staged_cards(tmp_path, cards) as stage:
        cards.card.errors["any"] = fake_nvml.NOT_SUPPORTED
        _survives_a_silent_driver(stage, cards, "lists no processes")


# N/A ------------------------------------------------------------------------------------------------------------------


def test_bytes_that_the_driver_no_longer_tells_stay_as_they_were_read_last(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    with staged_cards(tmp_path, cards) as stage:
        worker = start()
        lease = stage.arbiter.Allocate(request("holder", 6_000, worker.pid)).lease
        cards.card.used_bytes = 6_000 * MIB
        cards.hold(worker.pid, 6_000)
        stage.measured(lease.lease_id, 6_000)
        cards.card.compute[worker.pid] = None
        cards.driver.write()
        _sampled_anew(stage)
        worker.signal(signal.SIGKILL)
        stage.events.until(ENDED, lease.lease_id)
        for _ in range(5):
            _sampled_anew(stage)
            assert stage.device().draining_bytes == 6_000 * MIB, "unknown is not zero"
        assert stage.refuses(4_000)
        cards.card.used_bytes = 0
        cards.hold(worker.pid, 0)
        stage.events.until(DRAINED, lease.lease_id)
        assert stage.arbiter.Allocate(request("next", 9_000)).lease.memory_bytes == 9_000 * MIB


def test_use_that_the_driver_does_not_tell_is_unknown_and_processes_still_count(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    with staged_cards(tmp_path, cards) as stage:
        worker = start()
        lease = stage.arbiter.Allocate(request("holder", 4_000, worker.pid)).lease
        cards.hold(worker.pid, 4_000)
        cards.hold(os.getpid(), FOREIGN_MIB)
        stage.measured(lease.lease_id, 4_000)
        for call in ("memory", "memory_v2"):
            cards.card.errors[call] = fake_nvml.NOT_SUPPORTED
        cards.driver.write()
        device = stage.until(lambda picture: not picture.devices[0].HasField("measured_bytes")).devices[0]
        assert device.health == OK
        assert device.foreign_bytes == FOREIGN_MIB * MIB
        assert stage.refuses(5_000)
        assert stage.arbiter.Allocate(request("next", 4_000)).lease.memory_bytes == 4_000 * MIB


# Lost -----------------------------------------------------------------------------------------------------------------


def test_card_that_falls_off_the_bus_ends_its_leases_and_serves_again_when_it_is_back(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    second = fake_nvml.FakeCard(uuid="GPU-2", total_bytes=10_000 * MIB)
    cards.driver.cards.append(second)
    cards.driver.write()

    def lose() -> None:
        second.errors["any"] = fake_nvml.GPU_IS_LOST

    def find() -> None:
        second.errors.clear()

    _loses_the_second_card(tmp_path, start, cards, lose, find)


def test_card_that_vanishes_ends_its_leases_and_serves_again_when_it_is_back(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    second = fake_nvml.FakeCard(uuid="GPU-2", total_bytes=10_000 * MIB)
    cards.driver.cards.append(second)
    cards.driver.write()

    def lose() -> None:
        cards.driver.cards.remove(second)

    def find() -> None:
        # At another place than before; it is known by its UUID.
        cards.driver.cards.insert(0, second)

    _loses_the_second_card(tmp_path, start, cards, lose, find)


def _loses_the_second_card(
    folder: Path, start: StartWorker, cards: Cards, lose: Callable[[], None], find: Callable[[], None]
) -> None:
    def on_card(holder: str, name: str, memory_mib: int, *pids: int) -> pb.AllocateRequest:
        asked = request(holder, memory_mib, *pids)
        asked.device_id = name
        return asked

    with staged_cards(folder, cards) as stage, ThreadPoolExecutor() as threads:
        worker = start()
        safe = stage.arbiter.Allocate(on_card("safe", "GPU-1", 5_000)).lease
        lost = stage.arbiter.Allocate(on_card("lost", "GPU-2", 5_000, worker.pid)).lease
        waiting = in_line(stage, threads, on_card("waiting", "GPU-2", 5_000))
        lose()
        cards.driver.write()
        ended, _ = stage.events.until(ENDED, lost.lease_id)
        assert ended.fields["reason"] == "DEVICE_LOST"
        assert "lost the device" in _health(stage, LOST, place=1).health_detail
        fenced, renewed = stage.beat(lost, safe).results
        assert (fenced.verdict, fenced.end_reason) == (pb.VERDICT_FENCED, lease_pb2.END_REASON_DEVICE_LOST)
        assert renewed.verdict == pb.VERDICT_RENEWED
        assert stage.refusal(on_card("late", "GPU-2", 1_000)) is grpc.StatusCode.UNAVAILABLE
        other = stage.arbiter.Allocate(request("anywhere", 4_000)).lease
        assert other.device_id == "GPU-1", "the other card goes on"
        assert stage.device(0).health == OK
        assert not waiting.done()
        find()
        cards.driver.write()
        assert waiting.result(GUARD_S).lease.device_id == "GPU-2"
        assert _health(stage, OK, place=1).granted_bytes == 5_000 * MIB
        assert stage.lease(safe.lease_id).state != lease_pb2.LEASE_STATE_ENDED


# Only totals ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_totals_are_believed_when_the_driver_counts_in_another_process_namespace(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    cards.hold(1, 3_000)
    cards.hold(os.getpid(), 2_000)
    flags = ("--devices", "nvidia", "--devices-sample-interval", "100ms", *SHORT_LOCK)
    program = (sys.executable, "-m", "tests.faults.reborn", str(tmp_path), *flags)
    machine = start(*program, module="tests.faults.apart", environment=cards.environment)
    with talking_to(f"unix:{tmp_path / 'arbiter.sock'}") as talk:
        device = talk.device()
        assert device.attribution == state_service_pb2.ATTRIBUTION_DEVICE_ONLY
        assert device.foreign_estimated
        assert device.foreign_bytes == device.measured_bytes == 5_000 * MIB
        assert any("measured device only" in note for note in talk.picture().notes)
        # The driver lists somebody by the very number that our worker has in the server's namespace.
        _, pid = machine.ask("hold", 1)
        cards.hold(1, 0)
        cards.hold(int(pid), 3_000)
        lease = talk.arbiter.Allocate(request("holder", 1_000, int(pid), ttl_s=TTL_S)).lease
        assert lease.pids_visible
        _sampled_anew(talk)
        assert not talk.lease(lease.lease_id).HasField("measured_memory_bytes"), "they are not the worker's bytes"
        _holds_for_the_lock_delay(talk, cards, lease)


@pytest.mark.slow
def test_only_totals_are_believed_when_the_driver_lists_no_processes(
    tmp_path: Path, start: StartWorker, cards: Cards
) -> None:
    cards.card.errors.update(compute=fake_nvml.NOT_SUPPORTED, graphics=fake_nvml.NOT_SUPPORTED)
    cards.card.used_bytes = 5_000 * MIB
    cards.driver.write()
    with staged_cards(tmp_path, cards, *SHORT_LOCK) as stage:
        assert stage.device().attribution == state_service_pb2.ATTRIBUTION_DEVICE_ONLY
        worker = start()
        lease = stage.arbiter.Allocate(request("holder", 1_000, worker.pid, ttl_s=TTL_S)).lease
        assert lease.pids_visible
        _holds_for_the_lock_delay(stage, cards, lease)


def _holds_for_the_lock_delay(talk: Talk, cards: Cards, lease: lease_pb2.Lease) -> None:
    """A lease of 1000 MiB beside 5000 of strangers: its bytes are held after its end, and longer where still used."""
    cards.card.used_bytes = 6_000 * MIB
    cards.driver.write()
    talk.until(lambda picture: picture.devices[0].measured_bytes == 6_000 * MIB)
    talk.arbiter.Release(pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence))
    assert talk.device().draining_bytes == 1_000 * MIB
    # Gone as far as the total says, but nobody can tell whose the rest is.
    cards.card.used_bytes = 5_000 * MIB
    cards.driver.write()
    talk.until(lambda picture: picture.devices[0].measured_bytes == 5_000 * MIB)
    assert talk.refuses(4_000)
    # It comes back before the delay is over: the delay alone frees nothing that is used.
    cards.card.used_bytes = 6_000 * MIB
    cards.driver.write()
    drained, _ = talk.events.until(DRAINED, lease.lease_id)
    assert float(drained.fields["drained_s"]) >= LOCK_TTLS * TTL_S
    assert talk.device().foreign_bytes == 6_000 * MIB
    assert talk.refuses(4_000)
    cards.card.used_bytes = 5_000 * MIB
    cards.driver.write()
    assert talk.arbiter.Allocate(request("next", 4_000)).lease.memory_bytes == 4_000 * MIB
