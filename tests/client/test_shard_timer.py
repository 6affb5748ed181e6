"""Forward passes are timed and told no more often than heartbeats come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import ShardTimer, reports
from arbiter_client.blocking import BlockingLease
from arbiter_client.testing import InMemoryArbiter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lease() -> Iterator[BlockingLease]:
    shard = arbiter_service_pb2.Shard(group="llama", name="a", layers=8)
    with (
        InMemoryArbiter() as arbiter,
        arbiter.blocking_client() as client,
        client.lease("a", memory="1GiB", workload_type="llm", ttl=15, shard=shard) as held,
    ):
        yield held


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[float]]:
    """What is reported."""
    found: list[Sequence[float]] = []
    monkeypatch.setattr(BlockingLease, "report", lambda self, *, shard_latencies: found.append(shard_latencies))
    return found


def passes(timer: ShardTimer, clock: Clock, seconds: float, count: int = 1) -> None:
    for _ in range(count):
        with timer:
            clock.now += seconds


def test_passes_are_told_together_when_a_heartbeat_would_be_due(
    lease: BlockingLease, told: list[Sequence[float]]
) -> None:
    clock = Clock()
    timer = ShardTimer(lease, clock=clock)
    passes(timer, clock, 1.0, 4)
    assert not told
    passes(timer, clock, 1.5)
    assert [[round(each, 6) for each in said] for said in told] == [[1.0, 1.0, 1.0, 1.0, 1.5]]
    timer.tell()
    assert len(told) == 1


def test_newest_passes_are_kept_when_there_are_many(lease: BlockingLease, told: list[Sequence[float]]) -> None:
    clock = Clock()
    timer = ShardTimer(lease, clock=clock)
    passes(timer, clock, 0.001, 300)
    passes(timer, clock, 0.002)
    timer.tell()
    assert len(told[0]) == reports.MAX_LATENCIES
    assert told[0][-1] == pytest.approx(0.002)


def test_pass_does_not_count_when_it_fails_or_takes_no_time(lease: BlockingLease, told: list[Sequence[float]]) -> None:
    clock = Clock()
    timer = ShardTimer(lease, clock=clock)
    with pytest.raises(ZeroDivisionError), timer:
        clock.now += 1.0 / 0.0
    passes(timer, clock, 0.0)
    timer.tell()
    assert not told


def test_what_was_measured_before_layers_changed_is_forgotten(
    lease: BlockingLease, told: list[Sequence[float]]
) -> None:
    clock = Clock()
    timer = ShardTimer(lease, clock=clock)
    passes(timer, clock, 1.0)
    timer.restart()
    timer.add(0.25)
    timer.tell()
    assert told == [[0.25]]


@pytest.mark.parametrize("latency", [0.0, -1.0, float("nan"), float("inf"), 1e-10, 3601.0])
def test_latency_is_refused_before_it_costs_a_heartbeat(lease: BlockingLease, latency: float) -> None:
    with pytest.raises(ValueError, match="is not the time of a forward pass"):
        lease.report(shard_latencies=[0.1, latency])
