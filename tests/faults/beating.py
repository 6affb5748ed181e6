"""A worker that knows nothing but heartbeats: no deadline of its own, no patience of its own.

python -m tests.faults.beating ADDRESS TTL

It leases without naming its process, prints "leased ID", beats three times in each time to live, and prints the verdict
when it is not renewed. A call waits for its answer as long as it takes.
"""

from __future__ import annotations

import sys
import time

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc
from tests.faults.conftest import request


def main(address: str, ttl_s: int) -> None:
    """Beats until the lease is lost."""
    with grpc.insecure_channel(address) as channel:
        arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
        lease = arbiter.Allocate(request("beating", 10, ttl_s=ttl_s)).lease
        print("leased", lease.lease_id, flush=True)
        report = pb.HeartbeatRequest.Report(lease_id=lease.lease_id, fence=lease.fence)
        while True:
            time.sleep(ttl_s / 3)
            [result] = arbiter.Heartbeat(pb.HeartbeatRequest(reports=[report])).results
            if result.verdict != pb.VERDICT_RENEWED:
                print(pb.Verdict.Name(result.verdict), flush=True)
                return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
