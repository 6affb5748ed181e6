"""What decisions cost in the core, and how that grows with the number of leases."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

from arbiter_sidecar.arbiter import Arbiter, ArbiterConfig, Names, publishing
from arbiter_sidecar.requests import AllocationRequest, Beat, Report
from arbiter_sidecar.types import (
    Attribution,
    DeviceFacts,
    DeviceId,
    DeviceKind,
    DeviceSample,
    Priority,
    WorkloadType,
)
from benchmarks import rows

SIZES = (10, 100, 1000, 10_000)
UNIT = 1 << 20
CARD = DeviceId("card")


def _arbiter(leases: int) -> Arbiter:
    """An arbiter with so many leases, all at their best."""
    counter = itertools.count(1)
    names = Names(lease_id=lambda: f"lease-{next(counter)}", handle=lambda: next(counter))
    arbiter = Arbiter(ArbiterConfig(pause_guard_s=0), epoch=1, names=names, now=0.0)
    capacity = leases * 10 * UNIT
    facts = DeviceFacts(
        device_id=CARD,
        name="card",
        index=0,
        kind=DeviceKind.NVIDIA,
        total_bytes=capacity,
        capacity_bytes=capacity,
        attribution=Attribution.PER_PROCESS,
    )
    arbiter.add_device(facts, 0.0)
    _squeeze(arbiter, 0)
    priorities, workloads = itertools.cycle(Priority), itertools.cycle(WorkloadType)
    for _ in range(leases):
        request = AllocationRequest(
            holder="bench", workload=next(workloads), memory_bytes=8 * UNIT, priority=next(priorities), ttl_s=1e9
        )
        ticket = arbiter.allocate(request, 0.0)
        arbiter.take_effects()
        arbiter.delivered(ticket)
    # Every holder runs at what it was told, as nearly all do nearly always.
    for lease in arbiter.books.leases:
        report = Report(lease_id=lease.lease_id, fence=lease.fence, applied_revision=lease.revision)
        arbiter.heartbeat(Beat(reports=(report,)), 0.0)
        arbiter.take_effects()
    return arbiter


def _squeeze(arbiter: Arbiter, foreign_bytes: int) -> None:
    """A stranger takes so much of the card."""
    sample = DeviceSample(device_id=CARD, used_bytes=foreign_bytes, foreign_bytes=foreign_bytes)
    arbiter.observe(sample, 0.0, 0.0)
    arbiter.take_effects()


def best_us(work: Callable[[], object], repeats: int) -> float:
    """Microseconds of the fastest of several."""
    best = math.inf
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best * 1e6


def growth(sizes: list[int], micros: list[float]) -> float:
    """Exponent of time over size, least squares on logarithms."""
    xs, ys = [math.log(size) for size in sizes], [math.log(value) for value in micros]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    top = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return top / sum((x - mean_x) ** 2 for x in xs)


def _one_size(size: int, repeats: int) -> tuple[float, float, float]:
    """Microseconds of a reconcile at ease and under pressure, and nanoseconds of one renewal."""
    arbiter = _arbiter(size)
    device = arbiter.books.devices[CARD]
    ease = best_us(lambda: publishing.publish(arbiter.books, device, 1.0), repeats)
    handles = tuple(lease.handle for lease in arbiter.books.leases)[:2000]
    renew = best_us(lambda: arbiter.heartbeat(Beat(handles=handles), 1.0), repeats) / len(handles) * 1000
    _squeeze(arbiter, 2 * size * UNIT)
    full = best_us(lambda: publishing.publish(arbiter.books, device, 1.0), repeats)
    return ease, full, renew


def rows_(quick: bool) -> list[rows.Row]:
    """Best of several, as other processes can only add."""
    sizes = list(SIZES[:3] if quick else SIZES)
    repeats = 5 if quick else 15
    measured = [_one_size(size, repeats) for size in sizes]
    found = []
    for place, (name, unit) in enumerate(
        (("reconcile, all at their best", "us"), ("reconcile under pressure", "us"), ("renew one lease", "ns"))
    ):
        values = [each[place] for each in measured]
        for size, value in zip(sizes, values, strict=True):
            found.append(rows.Row(name=f"{name}, {size} leases", unit=unit, median=value, rounds=repeats))
        exponent = growth(sizes, values)
        found.append(rows.Row(name=f"{name}, growth exponent", unit="", median=exponent, rounds=len(sizes)))
    return found
