"""Ends processes that keep the memory of a lease that was taken from them. Off unless configured.

SIGTERM first, SIGKILL when that is not enough, both through pidfds, so that no other process of the same number can be
hit. A process that holds another living lease is left alone.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

import structlog

from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.runtime.driver import Runtime
from arbiter_sidecar.types import EndReason, Process

#: Ends that are the arbiter's own decision; who gave back or fell silent is not hunted.
TAKEN = frozenset({EndReason.PREEMPTED, EndReason.REVOKED})

_log = structlog.get_logger("arbiter.enforcer")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnforcerTimes:
    """How long a holder has. Seconds.

    Attributes:
        patience_s: From the end of its lease to SIGTERM.
        kill_grace_s: From SIGTERM to SIGKILL.
    """

    patience_s: float = 2.0
    kill_grace_s: float = 5.0


class Enforcer:
    """Hears of ended leases; implements the feed."""

    def __init__(self, runtime: Runtime, times: EnforcerTimes) -> None:
        self._runtime = runtime
        self._times = times
        self._timers: set[asyncio.TimerHandle] = set()

    def directive_changed(self, lease: Lease) -> None:
        """Of no interest."""

    def reclaim_cancelled(self, lease: Lease, reclaim_id: str) -> None:
        """Of no interest."""

    def draining(self) -> None:
        """Of no interest: what was taken was taken."""

    def lease_ended(self, lease: Lease) -> None:
        """A lease is over; if it was taken, its holder has to let go."""
        if lease.end_reason in TAKEN:
            self._later(self._times.patience_s, lease, signal.SIGTERM)

    def close(self) -> None:
        """Hunts nobody any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _later(self, seconds: float, lease: Lease, number: signal.Signals) -> None:
        self._timers = {timer for timer in self._timers if not timer.cancelled() and timer.when() > self._time()}
        self._timers.add(asyncio.get_running_loop().call_later(seconds, self._call_in, lease, number))

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()

    def _call_in(self, lease: Lease, number: signal.Signals) -> None:
        if self._runtime.books.leases.get(lease.lease_id) is None or lease.residue_bytes == 0:
            return
        hit = [process for process in lease.request.processes if self._signal(lease, process, number)]
        if hit and number is signal.SIGTERM:
            self._later(self._times.kill_grace_s, lease, signal.SIGKILL)

    def _signal(self, lease: Lease, process: Process, number: signal.Signals) -> bool:
        if any(other.alive for other in self._runtime.books.leases.holding(process)):
            return False
        sent = self._runtime.watch.signal(process, number)
        _log.warning(
            "holder_signalled" if sent else "holder_not_signalled",
            lease_id=lease.lease_id,
            holder=lease.request.holder,
            pid=process.pid,
            signal=number.name,
            residue_bytes=lease.residue_bytes,
        )
        return sent
