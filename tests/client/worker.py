"""A worker process for the tests: leases, does what it is told on standard input, and prints what it sees.

    python -m tests.client.worker ADDRESS MODE TTL MAX_SILENCE

Commands, one a line: ``hold SECONDS`` sleeps in C without giving up the interpreter lock; ``look`` prints a line of
JSON; ``end`` leaves. The first line it prints, when it holds its lease, is one of those too.
"""

from __future__ import annotations

import ctypes
import json
import sys

import arbiter_client


def main() -> int:
    address, mode, ttl, max_silence = sys.argv[1:]
    client = arbiter_client.connect_blocking(
        address, heartbeat_mode="process" if mode == "process" else "thread", max_silence=float(max_silence)
    )
    with client, client.lease("worker", memory="1MiB", workload_type="other", ttl=float(ttl)) as lease:
        look(client, lease)
        for line in sys.stdin:
            match line.split():
                case ["hold", seconds]:
                    # PyDLL, unlike CDLL, keeps the interpreter lock during the call.
                    ctypes.PyDLL(None).sleep(int(seconds))
                case ["look"]:
                    look(client, lease)
                case _:
                    break
    return 0


def look(client: arbiter_client.BlockingClient, lease: arbiter_client.BlockingLease) -> None:
    # What a woken worker sees first must be true, so this is asked before anything else.
    lost = lease.lost
    print(json.dumps({"lost": lost, "end_reason": lease.end_reason, "mode": client.heartbeat_mode}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
