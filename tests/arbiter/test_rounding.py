"""Bytes are whole: what rounding adds must not be taken from anybody."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import MIB, Process, WorkloadType
from tests.arbiter.desk import Desk


def half(pid: int) -> AllocationRequest:
    """Half a GiB, of which the default elasticity sheds the half."""
    process = Process(pid, 1000 + pid)
    return AllocationRequest(
        holder=f"worker-{pid}",
        workload=WorkloadType.LLM_INFERENCE,
        memory_bytes=512 * MIB,
        pids=(pid,),
        processes=(process,),
        ttl_s=300.0,
    )


@pytest.mark.parametrize("elasticity", [0.5, 1.0])
def test_nobody_is_told_less_when_another_goes(elasticity: float) -> None:
    plain = Desk()
    config = replace(plain.books.config, elasticity=dict.fromkeys(WorkloadType, elasticity))
    desk = Desk(config)
    desk.card(1)
    desk.sample(held={})
    first, second = desk.take(half(1)), desk.take(half(2))
    desk.apply(first, second)
    told = second.quality
    assert told < 1.0
    desk.release(first)
    assert second.quality >= told
