"""What a preemption costs beyond the time that the donor itself needs to give its memory back."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2, state_service_pb2_grpc
from benchmarks import donor, rows, servers

#: The promise: from the call to its answer, less the donor's own freeing, in milliseconds, in 99 of 100 cases.
GOAL_MS = 150.0
#: What is taken from the donor each time.
TAKEN_BYTES = 100 * donor.MIB
#: A fresh lease may give at once, so that a round does not have to wait; nothing else differs from the defaults.
FLAGS = ("--devices", "host", "--host-budget", "640MiB", "--preemption-shrink-hold", "0s")
#: The time between samples when nothing happens; a round begins anywhere in it.
IDLE_S = 0.5
#: Seconds after which a step has failed; it takes a tenth.
GUARD_S = 30.0


@contextlib.contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _heard(process: subprocess.Popen[str], wanted: str) -> float:
    """The figure behind the next ``wanted`` that the donor prints, passing over others."""
    assert process.stdout is not None
    for line in process.stdout:
        word, _, figure = line.partition(" ")
        if word == wanted:
            return float(figure)
    raise RuntimeError("the donor has ended")


def _ask(arbiter: arbiter_service_pb2_grpc.ArbiterServiceStub, pid: int) -> lease_pb2.Lease:
    """The lease that is going to need more."""
    request = pb.AllocateRequest(
        holder="asking",
        pids=[pid],
        workload_type=lease_pb2.WORKLOAD_TYPE_OTHER,
        priority=lease_pb2.PRIORITY_HIGH,
        memory_bytes=32 * donor.MIB,
        min_quality=1.0,
    )
    request.ttl.FromSeconds(300)
    return arbiter.Allocate(request).lease


def _await(channel: grpc.Channel, condition: Callable[[state_service_pb2.GetStateResponse], bool]) -> None:
    calls = state_service_pb2_grpc.StateServiceStub(channel)
    until = time.monotonic() + GUARD_S
    while not condition(calls.GetState(state_service_pb2.GetStateRequest(include_ended=True))):
        if time.monotonic() > until:
            raise RuntimeError("the arbiter does not measure what the workers take and give back")
        time.sleep(0.02)


def _held(state: state_service_pb2.GetStateResponse, least_bytes: float) -> bool:
    """Whether the arbiter has seen what the donor took: else there would be nothing to see leave."""
    return any(each.holder == "donor" and each.measured_memory_bytes >= least_bytes for each in state.leases)


def _one(target: str, channel: grpc.Channel) -> tuple[float, float]:
    """Milliseconds of one preemption and of the donor's freeing in it.

    Every round has processes of its own and begins when nothing of the last one is left: while something drains the
    arbiter measures more often, which would help the next.
    """
    arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
    _await(channel, lambda state: not state.leases)
    with _process(sys.executable, "-m", "benchmarks.donor", target) as worker, _process("sleep", "60") as asking:
        least_bytes = _heard(worker, "held") - donor.MIB
        lease = _ask(arbiter, asking.pid)
        _await(channel, lambda state: _held(state, least_bytes))
        time.sleep(random.uniform(0.0, IDLE_S))
        begun = time.perf_counter()
        answer = arbiter.RequestPreemption(
            pb.RequestPreemptionRequest(lease_id=lease.lease_id, memory_bytes=TAKEN_BYTES), timeout=GUARD_S
        )
        whole_ms = (time.perf_counter() - begun) * 1000
        if answer.confirmed < TAKEN_BYTES:
            raise RuntimeError(f"only {answer.confirmed} bytes were confirmed")
        return whole_ms, _heard(worker, "freed")


def rows_(quick: bool) -> list[rows.Row]:
    """A real worker that honours reclaims, on host memory; the arbiter measures it, nobody is believed."""
    rounds = 8 if quick else 40
    with servers.arbiter(*FLAGS) as target, grpc.insecure_channel(target) as channel:
        seen = [_one(target, channel) for _ in range(rounds)]
    mib = TAKEN_BYTES // donor.MIB
    return [
        rows.summed_up(f"donor gives {mib} MiB back, its own part", "ms", [freeing for _, freeing in seen]),
        rows.summed_up(
            f"preempting {mib} MiB, beyond the donor's own part",
            "ms",
            [whole - freeing for whole, freeing in seen],
            goal=f"p99 <= {GOAL_MS:g} ms",
            limit_p99=GOAL_MS,
        ),
    ]
