"""An engine in a process of its own: it follows its budget, keeps what it was told to keep, and reserves on request.

    python -m tests.e2e.kv_engine ADDRESS NAME WEIGHT MODE

MODE: "obeys" keeps as much as its budget allows and confirms; "stubborn" keeps what it once had and confirms nothing;
"reserves" has nothing resident, reserves everything, then waits for one block more.

Prints "leased ID", then "budget N" for each new budget.
"""

from __future__ import annotations

import sys
import threading

import arbiter_client
from arbiter.v1 import arbiter_service_pb2
from arbiter_client import BlockingLease, KvLayout

SHARE = KvLayout(layers=1, kv_heads=1, head_size=64)


def reserve(lease: BlockingLease, tokens: int) -> None:
    """Reserves everything and waits for more until the process is killed."""
    lease.reserve_kv(tokens).acquire()
    print("reserved", tokens, flush=True)
    lease.reserve_kv(16, wait=600).acquire()


def main(address: str, name: str, weight: int, mode: str) -> None:
    """Runs until it is killed or its lease is over."""
    with (
        arbiter_client.connect_blocking(address) as client,
        client.lease(
            name, memory="128MiB", min_quality=1.0, workload_type="llm", kv=SHARE.share(weight=weight)
        ) as lease,
    ):
        print("leased", lease.lease_id, flush=True)
        if mode == "reserves":
            tokens = lease.directive.kv_token_budget or 0
            threading.Thread(target=reserve, args=(lease, tokens), daemon=True).start()
        most = 0
        for directive in lease.directives():
            budget = directive.kv_token_budget or 0
            most = max(most, budget)
            # What is reserved counts without a report; what else is resident would be in its way.
            resident = {"stubborn": most, "obeys": budget, "reserves": 0}[mode]
            lease.report(kv=arbiter_service_pb2.KvUsage(active=True, resident_tokens=resident))
            if mode != "stubborn":
                lease.applied(directive)
            pressed = directive.reclaim.level.name.lower() if directive.reclaim is not None else ""
            print("budget", budget, pressed, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
