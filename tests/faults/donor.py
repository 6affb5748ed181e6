"""A worker of the client package that holds real memory and follows every directive as soon as it hears it.

python -m tests.faults.donor ADDRESS HOLDER PRIORITY MIB MIN_MIB [QUALITY]

It says "leased ID", then "holds MIB at QUALITY" after each directive. With a QUALITY it refuses, holding on to what it
has, whatever is below that, and says "refuses QUALITY".
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import arbiter_client

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
PAGE_BYTES = 4096
#: The interpreter's own memory is measured too.
PYTHON_BYTES = 64 * MIB


def _taken(size_bytes: int) -> bytearray:
    memory = bytearray(size_bytes)
    for place in range(0, size_bytes, PAGE_BYTES):
        memory[place] = 1
    return memory


def _follow(lease: arbiter_client.BlockingLease, lowest: float) -> None:
    memory = bytearray()
    for directive in lease.directives():
        if directive.quality < lowest:
            lease.refused(directive, achievable_quality=lowest, used_memory_bytes=len(memory) + PYTHON_BYTES)
            print(f"refuses {directive.quality:.2f}", flush=True)
            continue
        if directive.reclaim is not None:
            lease.acknowledge(directive.reclaim)
        memory = bytearray()  # gives back before it takes
        memory = _taken(max(0, directive.memory_limit_bytes - PYTHON_BYTES))
        lease.applied(directive, used_memory_bytes=len(memory) + PYTHON_BYTES)
        print(f"holds {len(memory) // MIB} at {directive.quality:.2f}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Leases, and follows what it is told until the lease is over."""
    address, holder, priority, memory_mib, min_mib, *rest = arguments
    with (
        arbiter_client.connect_blocking(address) as client,
        client.lease(
            holder,
            memory=f"{memory_mib}MiB",
            min_memory=f"{min_mib}MiB",
            workload_type="other",
            priority=priority,
        ) as lease,
    ):
        print("leased", lease.lease_id, flush=True)
        _follow(lease, float(rest[0]) if rest else 0.0)


if __name__ == "__main__":
    main(sys.argv[1:])
