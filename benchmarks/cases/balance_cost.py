"""What balancing a split model costs in the core, and how that grows with the number of its shards."""

from __future__ import annotations

import itertools

from arbiter_sidecar.arbiter import Arbiter, ArbiterConfig, Names
from arbiter_sidecar.arbiter.shards import Evaluation
from arbiter_sidecar.policy.balance import MIN_SAMPLES, Settings
from arbiter_sidecar.requests import AllocationRequest, Beat, Report, ShardPlace
from arbiter_sidecar.types import Attribution, DeviceFacts, DeviceId, DeviceKind, WorkloadType
from benchmarks import rows
from benchmarks.cases import core_cost

SIZES = (10, 100, 1000)
#: Layers of each shard at first.
LAYERS = 10
GROUP = "bench"
UNIT = 1 << 20


def _arbiter(shards: int) -> Arbiter:
    """An arbiter with one model of so many shards of different speed, all measured."""
    counter = itertools.count(1)
    names = Names(lease_id=lambda: f"lease-{next(counter)}", handle=lambda: next(counter))
    settings = Settings(interval_s=0.0)
    arbiter = Arbiter(ArbiterConfig(pause_guard_s=0, balance=settings), epoch=1, names=names, now=0.0)
    size = shards * 10 * UNIT
    facts = DeviceFacts(
        device_id=DeviceId("box"),
        name="box",
        index=0,
        kind=DeviceKind.STATIC,
        total_bytes=size,
        capacity_bytes=size,
        attribution=Attribution.SELF_REPORTED,
    )
    arbiter.add_device(facts, 0.0)
    for place in range(shards):
        shard = ShardPlace(group=GROUP, name=f"shard-{place}", position=place, layers=LAYERS, bytes_per_layer=0)
        request = AllocationRequest(
            holder="bench", workload=WorkloadType.OTHER, memory_bytes=8 * UNIT, ttl_s=1e9, shard=shard
        )
        arbiter.allocate(request, 0.0)
        arbiter.take_effects()
    for place, lease in enumerate(arbiter.books.leases):
        passes = (LAYERS * (10.0 + place % 7 + place / 1000),) * MIN_SAMPLES
        report = Report(lease_id=lease.lease_id, fence=lease.fence, shard_latencies_us=passes)
        arbiter.heartbeat(Beat(reports=(report,)), 0.0)
        arbiter.take_effects()
    return arbiter


def _one_size(size: int, repeats: int) -> float:
    """Microseconds of one evaluation."""
    arbiter = _arbiter(size)

    def evaluate() -> Evaluation:
        found = arbiter.evaluate_balance("default", GROUP, 0, 1.0)
        arbiter.take_effects()
        return found

    return core_cost.best_us(evaluate, repeats)


def rows_(quick: bool) -> list[rows.Row]:
    """Best of several, as other processes can only add."""
    repeats = 5 if quick else 15
    values = [_one_size(size, repeats) for size in SIZES]
    found = [
        rows.Row(name=f"balance {size} shards of {LAYERS} layers", unit="us", median=value, rounds=repeats)
        for size, value in zip(SIZES, values, strict=True)
    ]
    growth = core_cost.growth(list(SIZES), values)
    return [*found, rows.Row(name="balance, growth exponent", unit="", median=growth, rounds=len(SIZES))]
