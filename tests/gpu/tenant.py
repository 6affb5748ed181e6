"""A process that leases memory of the card from an arbiter and really takes it there.

    python -m tests.gpu.tenant ADDRESS DEVICE HOLDER MEMORY MIN_MEMORY CONTEXT [deaf]

It leases MEMORY bytes at BACKGROUND priority and takes what its directive allows in blocks, less CONTEXT bytes for its
CUDA context, and gives blocks back when it is told to. It prints ``holds BYTES`` of blocks after each directive. A deaf
one keeps what it took first, whatever it is told; its heartbeats go on. Either ends at once with its input, so that it
does not outlive who started it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import arbiter_client
from arbiter_sidecar.types import MIB
from tests.gpu import cuda

#: What is taken and given back at once; a multiple of the driver's granularity.
BLOCK_BYTES = 64 * MIB


class _Blocks:
    """The blocks in the context of this process."""

    def __init__(self, context_bytes: int) -> None:
        self._cuda = cuda.Cuda()
        self._context_bytes = context_bytes
        self._count = 0

    def fit(self, limit_bytes: int) -> None:
        """Takes or gives back until the process is just within the limit."""
        wanted = max(0, limit_bytes - self._context_bytes) // BLOCK_BYTES
        while self._count > wanted:
            self._cuda.give_back()
            self._count -= 1
        while self._count < wanted:
            self._cuda.take(BLOCK_BYTES)
            self._count += 1
        print("holds", self._count * BLOCK_BYTES, flush=True)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Obeys, or does not, until the lease is over; a deaf one stays until it is killed."""
    address, device, holder, memory, min_memory, context, *rest = sys.argv[1:]
    deaf = rest == ["deaf"]
    threading.Thread(target=_end_with_input, daemon=True).start()
    blocks = _Blocks(int(context))
    with (
        arbiter_client.connect_blocking(address) as client,
        client.lease(
            holder,
            memory=int(memory),
            min_memory=int(min_memory),
            min_quality=1.0 if memory == min_memory else None,
            workload_type="other",
            priority="background",
            device=device,
        ) as lease,
    ):
        for directive in lease.directives():
            if directive.reclaim is not None and not deaf:
                lease.acknowledge(directive.reclaim)
            blocks.fit(directive.memory_limit_bytes)
            lease.applied(directive, used_memory_bytes=directive.memory_limit_bytes)
            if deaf:
                signal.pause()


if __name__ == "__main__":
    main()
