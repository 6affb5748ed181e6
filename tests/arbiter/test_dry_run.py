"""Dry runs: the truth about what an allocation would find, and no trace of having asked."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import Dry
from arbiter_sidecar.types import Attribution, DeviceId
from tests.arbiter.desk import Desk, gib, wish


@pytest.mark.parametrize("size", [2.0, 6.0, 12.0, 20.0, 24.0])
def test_dry_run_finds_what_an_allocation_then_gets(desk: Desk, size: float) -> None:
    desk.box(24)
    desk.take(wish("a", 12, ttl=300))
    before = desk.picture()
    dry = desk.arbiter.dry_run(wish("b", size), desk.now)
    assert desk.picture() == before
    ticket = desk.ask(wish("b", size, wait=30))
    assert desk.waits(ticket) is not dry.fits
    if dry.fits:
        lease = desk.lease(ticket)
        assert (lease.quality, lease.charged_bytes, lease.device_id) == (dry.quality, dry.memory_bytes, dry.device_id)


def test_dry_run_does_not_fit_when_somebody_waits_already(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 16, rigid=True))
    desk.ask(wish("b", 6, rigid=True, wait=60))
    before = desk.picture()
    dry = desk.arbiter.dry_run(wish("c", 3, rigid=True), desk.now)
    assert dry == Dry(device_id=DeviceId("box"), quality=1.0, memory_bytes=gib(3), fits=False)
    assert desk.picture() == before


def test_dry_run_takes_the_device_nobody_waits_for(desk: Desk) -> None:
    desk.box(30, "large")
    desk.box(10, "small")
    desk.take(wish("a", 12, rigid=True, device="large"))
    desk.ask(wish("b", 20, rigid=True, wait=60))
    # The larger one has more room, but somebody waits for it.
    dry = desk.arbiter.dry_run(wish("c", 2, rigid=True), desk.now)
    assert (dry.device_id, dry.fits) == ("small", True)
    assert desk.take(wish("c", 2, rigid=True)).device_id == "small"


def test_dry_run_takes_the_best_device(desk: Desk) -> None:
    desk.box(10, "small")
    desk.box(20, "large")
    assert desk.arbiter.dry_run(wish("a", 4), desk.now).device_id == "large"


def test_dry_run_raises_what_an_allocation_would_answer(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 12, rigid=True))
    desk.add("gpu", 24, Attribution.PER_PROCESS)
    before = desk.picture()
    with pytest.raises(errors.DeviceNotFound):
        desk.arbiter.dry_run(wish("b", 1, device="gpu9"), desk.now)
    with pytest.raises(errors.ExceedsCapacity):
        desk.arbiter.dry_run(wish("b", 30, rigid=True), desk.now)
    with pytest.raises(errors.InsufficientMemory):
        desk.arbiter.dry_run(wish("b", 10, rigid=True, device="box"), desk.now)
    with pytest.raises(errors.InsufficientQuality):
        desk.arbiter.dry_run(wish("b", 10, min_quality=0.9, device="box"), desk.now)
    with pytest.raises(errors.DeviceStale):
        desk.arbiter.dry_run(wish("b", 1, device="gpu"), desk.now)
    assert desk.picture() == before
