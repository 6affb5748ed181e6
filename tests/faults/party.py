"""A worker that speaks to the arbiter by bare calls: no client package, no heartbeats, no manners.

python -m tests.faults.party ADDRESS HOLDER PRIORITY

allocate MIB WAIT_S [WORD…]   asks for a lease of one size; says "asking", then "granted ID FENCE" or "failed REASON".
                              Words: "unnamed" names no process, "taking" may preempt, "on=DEVICE" names a
                              device, any other is the request id
preempt MIB GRACE_S           has memory taken from others for its lease; says "asking", then "taken MIB" or
                              "failed REASON"
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2
from arbiter_client import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20


class _Party:
    """What this process has and can do."""

    def __init__(self, address: str, holder: str, priority: str) -> None:
        self._calls = arbiter_service_pb2_grpc.ArbiterServiceStub(grpc.insecure_channel(address))
        self._holder = holder
        self._priority = lease_pb2.Priority.Value(f"PRIORITY_{priority.upper()}")
        self._lease_id = ""

    def obey(self, words: Sequence[str]) -> str:
        """Does one thing; the line to answer with."""
        print("asking", flush=True)
        try:
            match words:
                case ["allocate", memory_mib, wait_s, *rest]:
                    lease = self._allocate(int(memory_mib), int(wait_s), rest)
                    self._lease_id = lease.lease_id
                    return f"granted {lease.lease_id} {lease.fence}"
                case ["preempt", memory_mib, grace_s]:
                    return f"taken {self._preempt(int(memory_mib), int(grace_s)).confirmed // MIB}"
        except grpc.RpcError as error:
            return f"failed {errors.from_rpc_error(error).reason}"
        raise ValueError(f"cannot do {words}")

    def _allocate(self, memory_mib: int, wait_s: int, words: Sequence[str]) -> lease_pb2.Lease:
        devices = [word.removeprefix("on=") for word in words if word.startswith("on=")]
        request_ids = [word for word in words if word not in ("unnamed", "taking") and not word.startswith("on=")]
        asked = pb.AllocateRequest(
            request_id="".join(request_ids),
            holder=self._holder,
            device_id="".join(devices),
            pids=[] if "unnamed" in words else [os.getpid()],
            workload_type=lease_pb2.WORKLOAD_TYPE_OTHER,
            priority=self._priority,
            memory_bytes=memory_mib * MIB,
            min_quality=1.0,
            may_preempt="taking" in words,
        )
        asked.wait_timeout.FromSeconds(wait_s)
        return self._calls.Allocate(asked).lease

    def _preempt(self, memory_mib: int, grace_s: int) -> pb.RequestPreemptionResponse:
        asked = pb.RequestPreemptionRequest(lease_id=self._lease_id, memory_bytes=memory_mib * MIB)
        asked.timeout.FromSeconds(grace_s)
        return self._calls.RequestPreemption(asked)


def main(arguments: Sequence[str]) -> None:
    """Obeys until its input ends."""
    party = _Party(*arguments)
    for line in sys.stdin:
        print(party.obey(line.split()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
