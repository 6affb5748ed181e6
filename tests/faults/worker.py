"""A worker that does what its standard input says, one line after the other, and answers each with one line.

python -m tests.faults.worker [ADDRESS] [thread|process]

lease MIB TTL       leases with heartbeats; answers "leased ID FENCE"
release             gives the lease back
hold MIB            really takes so much memory, and gives back what it took before
locked SECONDS      holds the interpreter lock in C for so long
guard               tries to enter a guarded block; answers "entered", or "refused" when the lease is lost
lost SECONDS        waits until the lease is lost; answers "lost REASON", or "alive" after so long
fork MIB            forks a child that takes so much memory and lives until it is killed; answers "forked PID"
leave               ends without giving anything back, children apart
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

import arbiter_client

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
PAGE_BYTES = 4096


def _taken(memory_mib: int) -> bytearray:
    memory = bytearray(memory_mib * MIB)
    for place in range(0, len(memory), PAGE_BYTES):
        memory[place] = 1
    return memory


def fork_holder(memory_mib: int) -> int:
    """The id of a new child that holds memory of its own and neither listens nor speaks."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for descriptor in (0, 1, reading):
            os.close(descriptor)
        memory = _taken(memory_mib)  # kept to the end
        os.write(writing, b".")
        signal.pause()
        del memory
        os._exit(0)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    return child


class _Worker:
    """What this process has leased and holds."""

    def __init__(self, client: arbiter_client.BlockingClient | None) -> None:
        self._client = client
        self._lease: arbiter_client.BlockingLease | None = None
        self._memory = bytearray()

    def obey(self, words: Sequence[str]) -> str:
        """Does one thing; the line to answer with."""
        match words:
            case ["lease", memory_mib, ttl_s]:
                assert self._client is not None
                wanted = self._client.lease(
                    "worker",
                    memory=f"{memory_mib}MiB",
                    min_memory=f"{memory_mib}MiB",
                    workload_type="other",
                    ttl=float(ttl_s),
                )
                self._lease = wanted.acquire()
                return f"leased {self._lease.lease_id} {self._lease.fence}"
            case ["release"]:
                self._held.release()
                return "released"
            case ["hold", memory_mib]:
                self._memory = bytearray()
                self._memory = _taken(int(memory_mib))
                return "holding"
            case ["locked", seconds]:
                # PyDLL, unlike CDLL, keeps the interpreter lock while the function runs.
                ctypes.PyDLL(None).sleep(int(seconds))
                return "awake"
            case ["guard"]:
                return self._guard()
            case ["lost", seconds]:
                lost = self._held.wait_lost(float(seconds))
                return f"lost {self._held.end_reason}" if lost else "alive"
            case ["fork", memory_mib]:
                return f"forked {fork_holder(int(memory_mib))}"
            case ["leave"]:
                os._exit(0)
            case _:
                raise ValueError(f"cannot do {words}")

    @property
    def _held(self) -> arbiter_client.BlockingLease:
        assert self._lease is not None
        return self._lease

    def _guard(self) -> str:
        try:
            with self._held.guarded():
                return "entered"
        except arbiter_client.LeaseLost:
            return "refused"


def main(arguments: Sequence[str]) -> None:
    """Obeys until its input ends."""
    client = None
    if arguments:
        mode: arbiter_client.HeartbeatMode = "process" if arguments[1:] == ["process"] else "thread"
        client = arbiter_client.connect_blocking(arguments[0], heartbeat_mode=mode)
    worker = _Worker(client)
    for line in sys.stdin:
        print(worker.obey(line.split()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
