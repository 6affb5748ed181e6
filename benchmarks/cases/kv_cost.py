"""What sharing KV tokens costs: the division alone, and one engine's news through the whole core."""

from __future__ import annotations

import itertools
import random
import statistics
import time

from arbiter_sidecar.arbiter import Arbiter, ArbiterConfig, KvConfig, Names
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy import kv_budget
from arbiter_sidecar.policy.kv_budget import Engine
from arbiter_sidecar.requests import AllocationRequest, Beat, KvShare, KvUsage, Report
from arbiter_sidecar.types import (
    Attribution,
    DeviceFacts,
    DeviceId,
    DeviceKind,
    LeaseId,
    Priority,
    ReportOutcome,
    WorkloadType,
)
from benchmarks import rows
from benchmarks.cases import core_cost

#: Engines that are divided for alone.
SIZES = (100, 1000, 10_000)
#: Engines among which one has news; with more the registering takes longer than the measuring.
CROWDS = (10, 100, 1000)
TOKENS_EACH = 2000
UNIT = 1 << 20


def _engines(size: int) -> list[Engine]:
    """Engines of all kinds."""
    source = random.Random(size)
    return [
        Engine(
            lease_id=LeaseId(f"lease-{place}"),
            weight=source.randint(1, 1000),
            floor=source.choice((0, source.randint(0, 1000))),
            cap=source.choice((None, source.randint(2000, 9000))),
            demand=source.choice((None, source.randint(0, 9000))),
        )
        for place in range(size)
    ]


def _division(size: int, repeats: int) -> float:
    """Microseconds of one division of a device's tokens."""
    engines = _engines(size)
    return core_cost.best_us(lambda: kv_budget.allocate(engines, TOKENS_EACH * size), repeats)


def _arbiter(size: int) -> Arbiter:
    """An arbiter with so many engines that have work and want more than there is."""
    counter = itertools.count(1)
    names = Names(lease_id=lambda: f"lease-{next(counter)}", handle=lambda: next(counter))
    config = ArbiterConfig(pause_guard_s=0, kv=KvConfig(tokens=TOKENS_EACH * size))
    arbiter = Arbiter(config, epoch=1, names=names, now=0.0)
    facts = DeviceFacts(
        device_id=DeviceId("box"),
        name="box",
        index=0,
        kind=DeviceKind.STATIC,
        total_bytes=size * 10 * UNIT,
        capacity_bytes=size * 10 * UNIT,
        attribution=Attribution.SELF_REPORTED,
    )
    arbiter.add_device(facts, 0.0)
    source = random.Random(size)
    for _ in range(size):
        request = AllocationRequest(
            holder="bench",
            workload=WorkloadType.LLM_INFERENCE,
            memory_bytes=UNIT,
            ttl_s=1e9,
            kv=KvShare(share_weight=source.randint(1, 1000), block_tokens=1),
        )
        arbiter.allocate(request, 0.0)
        arbiter.take_effects()
    return arbiter


def _says(arbiter: Arbiter, lease: Lease, demand: int) -> None:
    """One engine's heartbeat: it does what it was told, and wants so much."""
    usage = KvUsage(
        active=True,
        resident_tokens=0,
        demand_tokens=demand,
        lowest_running_priority=Priority.NORMAL,
        freeable_tokens=0,
    )
    report = Report(
        lease_id=lease.lease_id,
        fence=lease.fence,
        applied_revision=lease.revision,
        outcome=ReportOutcome.APPLIED,
        kv=usage,
    )
    arbiter.heartbeat(Beat(reports=(report,)), 0.0)
    arbiter.take_effects()


def _news(size: int, repeats: int, *, scarce: bool) -> rows.Row:
    """A heartbeat with which one engine among so many says that it wants twice or half as much, in microseconds.

    Where tokens are ``scarce`` that moves what others get as well, and each of them is told. Everybody confirms what it
    was told before the next: else the others would have nothing left to be told.
    """
    arbiter = _arbiter(size)
    few = TOKENS_EACH // 4
    wanted = 4 * TOKENS_EACH if scarce else few
    leases = list(arbiter.books.leases)
    speaker = leases[size // 2]
    for lease in leases:
        _says(arbiter, lease, wanted)
    _confirm(arbiter, leases, wanted)
    spans: list[float] = []
    for _, demand in zip(range(4 * repeats), itertools.cycle((2 * few, few)), strict=False):
        begin = time.perf_counter()
        _says(arbiter, speaker, demand)
        spans.append((time.perf_counter() - begin) * 1e6)
        _confirm(arbiter, [lease for lease in leases if lease is not speaker], wanted)
    name = f"KV news of one among {size} engines" + (", tokens scarce" if scarce else "")
    return rows.Row(
        name=name, unit="us", median=statistics.median(spans), spread={"max": max(spans)}, rounds=len(spans)
    )


def _confirm(arbiter: Arbiter, leases: list[Lease], demand: int) -> None:
    """These do what they were told, until they are told nothing new."""
    for _ in range(3):
        for lease in leases:
            if lease.applied_revision < lease.revision:
                _says(arbiter, lease, demand)


def rows_(quick: bool) -> list[rows.Row]:
    """Divisions as the best of several, news as the median: they differ by how many others they concern."""
    repeats = 5 if quick else 15
    divisions = [_division(size, repeats) for size in SIZES]
    found = [
        rows.Row(name=f"KV budgets of {size} engines", unit="us", median=value, rounds=repeats)
        for size, value in zip(SIZES, divisions, strict=True)
    ]
    growth = core_cost.growth(list(SIZES), divisions)
    found.append(rows.Row(name="KV budgets, growth exponent", unit="", median=growth, rounds=len(SIZES)))
    for size in CROWDS[:2] if quick else CROWDS:
        for scarce in (False, True):
            found.append(_news(size, repeats, scarce=scarce))
    return found
