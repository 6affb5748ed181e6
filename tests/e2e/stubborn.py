"""A worker that leases through the client package and then is deaf in one of three ways.

    python -m tests.e2e.stubborn ADDRESS busy 10        its Python loop computes for so many seconds
    python -m tests.e2e.stubborn ADDRESS locked 9       the interpreter lock is held in C for so many seconds
    python -m tests.e2e.stubborn ADDRESS locked 60 process    the same, with heartbeats from a process of their own
    python -m tests.e2e.stubborn ADDRESS idle 0         it waits until it hears that the lease is lost

It prints "leased ID", then "alive" or "lost REASON" when it hears again.
"""

from __future__ import annotations

import ctypes
import sys
import time

import arbiter_client


def _deaf(how: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    if how == "busy":
        while time.monotonic() < until:
            sum(range(1000))
    elif how == "locked":
        # PyDLL, unlike CDLL, keeps the interpreter lock while the function runs.
        ctypes.PyDLL(None).sleep(int(seconds))


def main() -> None:
    """Leases, is deaf, and tells how that went."""
    address, how, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    mode: arbiter_client.HeartbeatMode = "process" if sys.argv[4:] == ["process"] else "thread"
    ttl = 3.0 if how == "idle" else 15.0
    with (
        arbiter_client.connect_blocking(address, heartbeat_mode=mode) as client,
        client.lease(f"{how}-{mode}", memory="1MiB", workload_type="other", ttl=ttl) as lease,
    ):
        print("leased", lease.lease_id, flush=True)
        if how == "idle":
            lease.wait_lost(60)
            print("lost", lease.end_reason, flush=True)
            return
        _deaf(how, seconds)
        # One interval more, in which a lease that ended meanwhile would be told so.
        lost = lease.wait_lost(6)
        print(f"lost {lease.end_reason}" if lost or lease.lost else "alive", flush=True)


if __name__ == "__main__":
    main()
