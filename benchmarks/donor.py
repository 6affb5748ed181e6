"""A worker that fills its lease and gives memory back as soon as it is told: ``python -m benchmarks.donor ADDRESS``.

It prints ``held BYTES`` when it holds that much, and ``freed MILLISECONDS`` when it has obeyed an order to give memory
back: how long its own freeing took, from the directive in its hands to the last page returned. Then it holds what is
left until its input ends.
"""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import arbiter_client

MIB = 1 << 20
#: Size of the lease, and what is left at its lowest quality.
FULL_BYTES = 320 * MIB
LEAST_BYTES = 96 * MIB
#: Granularity of taking and giving.
_BLOCK_BYTES = MIB
#: What the interpreter may still grow by between measuring itself and being measured.
_SPARE_BYTES = 8 * MIB


def _own_bytes() -> int:
    """The proportional share of this process, as the kernel counts it."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not tell the proportional share of a process")


def _block() -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return mmap.mmap(-1, _BLOCK_BYTES, flags=flags)


def _fit(held: list[mmap.mmap], limit_bytes: int) -> None:
    """Takes or gives whole blocks until this process is just within the limit."""
    blocks = (limit_bytes - _SPARE_BYTES - _own_bytes()) // _BLOCK_BYTES
    held.extend(_block() for _ in range(blocks))
    for _ in range(min(-blocks, len(held))):
        held.pop().close()


def main() -> None:
    """Serves until its input ends."""
    held: list[mmap.mmap] = []
    with (
        arbiter_client.connect_blocking(sys.argv[1]) as client,
        client.lease(
            "donor", memory=FULL_BYTES, min_memory=LEAST_BYTES, workload_type="other", priority="background"
        ) as lease,
    ):
        for directive in lease.directives():
            begun = time.perf_counter()
            _fit(held, directive.memory_limit_bytes)
            spent_s = time.perf_counter() - begun
            lease.applied(directive, used_memory_bytes=_own_bytes())
            if directive.reclaim is not None:
                print("freed", spent_s * 1000, flush=True)
                break
            print("held", _own_bytes(), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
