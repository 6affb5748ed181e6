"""Notices when a device's pressure or health changes, and says so."""

from __future__ import annotations

from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.policy import capacity
from arbiter_sidecar.types import EventKind, PressureLevel


def pressure(books: Books, device: DeviceBook, now: float) -> None:
    """Brings level, peak and mean of the pressure up to date."""
    books.stats.pressure.set(max((each.pressure for each in books.devices.values()), default=0.0), now)
    device.peak_bytes = max(device.peak_bytes, device.taken_bytes)
    level = capacity.level(device.level, device.pressure)
    if level is not device.level:
        books.event(
            EventKind.PRESSURE_CHANGED,
            device_id=device.device_id,
            pressure_level=level.name,
            before=device.level.name,
            pressure=round(device.pressure, 4),
        )
        books.stats.critical_entries += level is PressureLevel.CRITICAL
        device.level = level


def health(books: Books, device: DeviceBook, now: float) -> None:
    """Says when the health of a device has changed."""
    present = device.health(now)
    if present is not device.reported_health:
        books.event(
            EventKind.DEVICE_CHANGED,
            device_id=device.device_id,
            health=present.name,
            before=device.reported_health.name,
            detail=device.failure,
        )
        device.reported_health = present
