"""Reads the book of one device: its figures, and its KV tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.metrics import catalogue as of
from arbiter_sidecar.metrics.holders import HolderNames, harmless
from arbiter_sidecar.metrics.picture import Picture
from arbiter_sidecar.policy import quality
from arbiter_sidecar.types import DeviceHealth, LeaseState, PressureLevel

if TYPE_CHECKING:
    from enum import IntEnum


def word(value: IntEnum) -> str:
    """A member of an enumeration as a value of a label."""
    return value.name.lower()


class LeaseSums:
    """What a device's figures need of each of its leases."""

    __slots__ = ("floors", "ghost", "states", "unused", "zombie")

    def __init__(self) -> None:
        self.floors = 0
        self.unused = 0
        self.ghost = 0
        self.zombie = 0
        self.states = dict.fromkeys(LeaseState, 0)

    def add(self, lease: Lease) -> None:
        """Counts in a lease of the device, living or draining."""
        self.states[lease.state] += 1
        if lease.alive:
            self.floors += lease.elastic.floor_bytes
            self.unused += lease.unused_bytes
        elif lease.ghost:
            self.ghost += lease.residue_bytes
        elif lease.zombie:
            self.zombie += lease.residue_bytes


def put_device(picture: Picture, book: DeviceBook, sums: LeaseSums, *, soft_target: float, now: float) -> None:
    """What is known of a device."""
    facts, device = book.facts, harmless(book.device_id)
    target = quality.target_bytes(facts.capacity_bytes, soft_target)
    described = (device, harmless(facts.name), str(facts.index), word(facts.kind), word(facts.attribution))
    picture.put(of.DEVICE, 1, *described)
    for metric, value in (
        (of.TOTAL, facts.total_bytes),
        (of.CAPACITY, facts.capacity_bytes),
        (of.TARGET, target),
        (of.SOFT_DEFICIT, max(0, book.elsewhere_bytes(now) + sums.floors - target)),
        (of.GRANTED, book.granted_bytes),
        (of.FOREIGN, book.foreign_bytes),
        (of.DRAINING_BYTES, book.residue_bytes),
        (of.GHOST, sums.ghost),
        (of.ZOMBIE, sums.zombie),
        (of.OVERRUN, book.accounted_bytes - book.granted_bytes),
        (of.UNUSED, sums.unused),
        (of.EARMARKED, book.earmarked_bytes),
        (of.AVAILABLE, max(0, book.available_bytes)),
        (of.PEAK, book.peak_bytes),
        (of.PRESSURE, min(1.0, book.pressure)),
        (of.KV_TOTAL, book.kv.total),
        (of.KV_CHARGED, book.kv.charged),
        (of.KV_OPEN, len(book.kv.reservations)),
        (of.KV_WAITING, len(book.kv.waiting)),
    ):
        picture.put(metric, value, device)
    if book.used_bytes is not None:
        picture.put(of.MEASURED, book.used_bytes, device)
    if book.sampled_at is not None:
        picture.put(of.SAMPLE_AGE, max(0.0, now - book.sampled_at), device)
    for level in PressureLevel:
        picture.put(of.LEVEL, level is book.level, device, word(level))
    found = book.health(now)
    for health in DeviceHealth:
        picture.put(of.HEALTH, health is found, device, word(health))
    for state, count in sums.states.items():
        picture.put(of.DEVICE_LEASES, count, device, word(state))


def put_engines(picture: Picture, book: DeviceBook, names: HolderNames) -> None:
    """What is known of the KV engines of a device, those of one holder together."""
    kv, device = book.kv, harmless(book.device_id)
    uncapped: set[tuple[str, str, str]] = set()
    shown: dict[str, tuple[str, str, str]] = {}
    for lease in kv.engines.values():
        state = kv.of(lease)
        key = (lease.request.namespace, lease.request.holder)
        labels = shown[lease.lease_id] = (device, *names.living(key))
        for metric, value in (
            (of.ENGINES, 1),
            (of.ENGINES_ACTIVE, state.active),
            (of.KV_SHARE, state.share.share_weight),
            (of.KV_FLOOR, state.share.min_tokens),
            (of.KV_RESIDENT, state.resident),
            (of.KV_RESERVED, state.reserved),
            (of.KV_BUDGET, state.budget),
            (of.KV_ENGINE_CHARGED, state.charged),
            (of.KV_DONATED, 0),
            (of.KV_BORROWED, 0),
        ):
            picture.add(metric, value, *labels)
        if state.present_demand is not None:
            picture.add(of.KV_DEMAND, state.present_demand, *labels)
        if state.share.max_tokens is None:
            uncapped.add(labels)
        else:
            picture.add(of.KV_CAP, state.share.max_tokens, *labels)
    for labels in uncapped:
        picture.drop(of.KV_CAP, *labels)
    for loan in kv.loans:
        picture.add(of.KV_DONATED, loan.taken, *shown[loan.donor.lease_id])
        picture.add(of.KV_BORROWED, loan.given, *shown[loan.borrower.lease_id])
