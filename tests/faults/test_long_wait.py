"""A lease begins to live when it is granted, however long its request has waited."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import arbiter_client
from arbiter.v1 import lease_pb2
from tests.running import running_server

#: The time to live, and how much longer than that the request waits.
TTL_S = 1.0
WAIT_S = 2.5 * TTL_S
FLAGS = (
    *("--devices", "static", "--devices-static", "card=1GiB", "--lease-lock-delay", "0s"),
    *("--lease-ttl-min", f"{TTL_S}s"),
)


def test_lease_lives_when_its_request_waited_for_longer_than_its_time_to_live(tmp_path: Path) -> None:
    with (
        running_server(tmp_path, *FLAGS) as server,
        arbiter_client.connect_blocking(server.address) as client,
    ):
        first = client.lease("first", memory="800MiB", min_quality=1.0, workload_type="other").acquire()
        threading.Timer(WAIT_S, first.release).start()
        begun = time.monotonic()
        with client.lease(
            "second", memory="800MiB", min_quality=1.0, workload_type="other", ttl=TTL_S, wait=60
        ) as second:
            assert time.monotonic() - begun >= WAIT_S
            assert not second.lost, "it has only just begun"
            assert not second.wait_lost(2 * TTL_S), "heartbeats keep it"
            (shown,) = client.state().leases
            assert shown.state == lease_pb2.LEASE_STATE_ACTIVE
        assert not client.state().leases, "it was given back, and not left to its time to live"
