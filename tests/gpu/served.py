"""A real arbiter that shares a part of the card, and processes that lease from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import arbiter_client
from arbiter_sidecar.adapters import procfs
from arbiter_sidecar.types import GIB, MIB
from tests.gpu.bench import GUARD_S, Bench
from tests.running import running_server

if TYPE_CHECKING:
    from arbiter.v1 import lease_pb2, state_service_pb2
    from arbiter_sidecar.types import Process

#: What the arbiter has to share beyond what is in use on the card when it starts.
SHARED_BYTES = 4 * GIB
#: The least that the arbiter keeps back from what it is given.
_RESERVE_BYTES = 512 * MIB
#: The use of the card counts as settled when it has moved by no more than this in that time.
_SETTLED_BYTES = 16 * MIB
_SETTLED_S = 0.3


class Tenant:
    """A process that leases from the arbiter; see ``tests.gpu.tenant``."""

    def __init__(self, served: Served, holder: str, memory_bytes: int, min_bytes: int, *words: str) -> None:
        device = served.bench.probe.facts.device_id
        sizes = map(str, (memory_bytes, min_bytes, served.context_bytes))
        command = [sys.executable, "-m", "tests.gpu.tenant", served.address, device, holder, *sizes, *words]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": device}
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.holder = holder
        self.held_bytes = self.holds()
        stat = procfs.ProcFs().stat(self._popen.pid)
        assert stat is not None, "the tenant is not visible in /proc"
        self.process: Process = stat.process

    def __enter__(self) -> Tenant:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._popen.communicate(timeout=GUARD_S)

    def holds(self) -> int:
        """Bytes of the blocks that it says to hold when it has next obeyed."""
        assert self._popen.stdout is not None
        word, _, size = self._popen.stdout.readline().partition(" ")
        assert word == "holds", "the tenant has ended; its error is above"
        return int(size)

    def kill(self) -> None:
        """Kills it with SIGKILL; without effect on one that is dead."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGKILL)
            self._popen.wait(GUARD_S)


class Served:
    """The arbiter on the card, as a client sees it.

    Attributes:
        bench: The card itself, to be asked without the arbiter.
        client: A client.
        address: Where it serves.
        context_bytes: What a CUDA context costs here, with some room.
    """

    def __init__(self, bench: Bench, client: arbiter_client.BlockingClient, address: str, context_bytes: int) -> None:
        self.bench = bench
        self.client = client
        self.address = address
        self.context_bytes = context_bytes

    def device(self) -> state_service_pb2.Device:
        """The card as the arbiter shows it."""
        wanted = self.bench.probe.facts.device_id
        return next(device for device in self.client.state().devices if device.device_id == wanted)

    def lease(self, holder: str) -> lease_pb2.Lease:
        """The lease of a holder, alive or draining.

        Raises:
            AssertionError: There is none.
        """
        leases = self.client.state(include_ended=True).leases
        found = [lease for lease in leases if lease.holder == holder]
        assert found, f"no lease of {holder}"
        return found[-1]

    def ask(self, holder: str, memory_bytes: int, wait_s: float = GUARD_S) -> arbiter_client.BlockingLease:
        """A lease of one size at HIGH for this process, which takes nothing; waits until it is granted."""
        return self.client.lease(
            holder,
            memory=memory_bytes,
            min_quality=1.0,
            workload_type="other",
            priority="high",
            device=self.bench.probe.facts.device_id,
            wait=wait_s,
        ).acquire()

    def tenant(self, holder: str, memory_bytes: int, min_bytes: int, *words: str) -> Tenant:
        """A process that leases and holds what it may; returns when the arbiter has measured that."""
        tenant = Tenant(self, holder, memory_bytes, min_bytes, *words)
        self.bench.lag("measuring the tenant", lambda: self.measured(holder) >= tenant.held_bytes)
        return tenant

    def measured(self, holder: str) -> int:
        """What the arbiter measures for a holder."""
        return self.lease(holder).measured_memory_bytes


def _cap_bytes(bench: Bench) -> int:
    """What the arbiter has to be given, so that it has so much to share beside what is in use already."""
    wanted = _settled(bench) + SHARED_BYTES
    cap = max(wanted + _RESERVE_BYTES, wanted * 10 // 9 + 1)
    total = bench.probe.facts.total_bytes
    assert cap <= total, f"{cap // MIB} MiB of the card are needed beside what is in use, it has {total // MIB}"
    return cap


def _settled(bench: Bench) -> int:
    """The use of the card when what the last check left behind has gone."""
    until = time.monotonic() + GUARD_S
    before = bench.used()
    while True:
        time.sleep(_SETTLED_S)
        used = bench.used()
        if abs(used - before) <= _SETTLED_BYTES:
            return used
        assert time.monotonic() < until, "the use of the card does not settle: other programs are busy on it"
        before = used


@contextmanager
def serving(bench: Bench) -> Iterator[Served]:
    """An arbiter until the block ends. It aims at its whole capacity, and leases may be taken as soon as granted."""
    with bench.worker() as worker:
        context_bytes = bench.held(worker.process) + 64 * MIB
    flags = (
        *("--devices", "nvidia", "--devices-cap", str(_cap_bytes(bench)), "--quality-soft-target", "1"),
        *("--preemption-shrink-hold", "0s", "--preemption-revoke-hold", "0s"),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), *flags) as server,
        arbiter_client.connect_blocking(server.address) as client,
    ):
        yield Served(bench, client, server.address, context_bytes)
