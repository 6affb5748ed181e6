"""One lease as its holder knows it; shared by the keeper's thread and the worker's.

The worker reads; the keeper writes what the arbiter said. Whether the lease still stands is decided by the clock alone,
so a process that was frozen knows the truth before any of its threads has run.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

from arbiter_client import errors, keepalive, reports

if TYPE_CHECKING:
    from collections.abc import Callable

    from arbiter.v1 import lease_pb2
    from arbiter_client.directive import Directive


class Contact:
    """When anything was last heard from the arbiter; one for all leases of a client."""

    __slots__ = ("heard_at",)

    def __init__(self, now: float) -> None:
        self.heard_at = now


class Holding:
    """The state of a held lease.

    Attributes:
        lease_id: The lease.
        fence: Its fence.
        handle: Its name in heartbeats.
        device_id: Where the memory is.
        ttl: Seconds to live without a heartbeat.
        interval: Seconds between heartbeats that the arbiter asked for at the grant.
        directive: The newest directive; replaced as a whole.
        lost_at: Monotonic time at which the lease counts as lost.
        end_reason: Why it is over; ``None`` while it is not known to be.
        catch_up: Reads what others found out about the lease, before the clock is believed.
    """

    __slots__ = (
        "_clock",
        "_contact",
        "_deadline",
        "_listeners",
        "_lock",
        "_on_report",
        "_pending",
        "_sent",
        "catch_up",
        "device_id",
        "directive",
        "end_reason",
        "fence",
        "handle",
        "interval",
        "lease_id",
        "lost_at",
        "pids_visible",
        "ttl",
    )

    def __init__(
        self,
        lease: lease_pb2.Lease,
        directive: Directive,
        *,
        sent_at: float,
        startup_window: float,
        contact: Contact,
        clock: Callable[[], float],
        on_report: Callable[[Holding], None],
    ) -> None:
        self.lease_id = lease.lease_id
        self.fence = lease.fence
        self.handle = lease.handle
        self.device_id = lease.device_id
        self.pids_visible = lease.pids_visible
        self.ttl = lease.ttl.ToNanoseconds() / 1e9
        self.interval = lease.heartbeat_interval.ToNanoseconds() / 1e9
        self.directive = directive
        self.end_reason: str | None = None
        self.catch_up: Callable[[], None] | None = None
        self._clock = clock
        self._contact = contact
        self._on_report = on_report
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._pending: reports.Report | None = None
        self._sent: reports.Report | None = None
        self._deadline = self.lost_at = -1.0
        self.renewed(sent_at, startup_window)

    # What the worker asks.

    @property
    def lost(self) -> bool:
        """Whether the memory may no longer be used; True for ever once it was."""
        if self.end_reason is None and self._clock() >= self.lost_at:
            if self.catch_up is not None:
                self.catch_up()
            self.judge(self._clock())
        return self.end_reason is not None

    @property
    def quality(self) -> float:
        """The quality to run at now, with the fall to the safe one after a long silence."""
        directive = self.directive
        return keepalive.quality_in_force(
            self._clock(), self._contact.heard_at, directive.quality, directive.safe_quality, directive.valid_for
        )

    def check(self) -> None:
        """Does nothing while the lease stands.

        Raises:
            LeaseLost: It does not.
        """
        if self.lost:
            raise errors.LeaseLost(self.lease_id, self.end_reason or "")

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls ``listener`` after each change, on any thread; what is returned ends that."""
        with self._lock:
            self._listeners.append(listener)

        def forget() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return forget

    def say(self, report: reports.Report) -> None:
        """Queues a report; without effect once the lease is over."""
        with self._lock:
            if self.end_reason is not None:
                return
            first = self._pending is None
            if self._pending is None:
                self._pending = report
            else:
                self._pending.add(report)
        if first:
            self._on_report(self)

    # What the keeper writes.

    def judge(self, now: float) -> None:
        """Ends the lease when its local deadline has passed."""
        if now >= self.lost_at:
            self.end("EXPIRED")

    def end(self, reason: str) -> bool:
        """Ends the lease, once; False when it had ended before."""
        with self._lock:
            if self.end_reason is not None:
                return False
            self.end_reason = reason
        self._notify()
        return True

    def renewed(self, sent_at: float, silence: float = 0.0) -> None:
        """The arbiter renewed the lease in answer to something sent after ``sent_at``.

        Args:
            sent_at: Before it was sent.
            silence: Silence that was declared with it; counts where the arbiter can see the processes.
        """
        allowed = silence if self.pids_visible else 0.0
        with self._lock:
            self._deadline = max(self._deadline, keepalive.local_deadline(sent_at, self.ttl, allowed))
            self.lost_at = keepalive.lost_at(self._deadline, self.ttl)

    def obey(self, directive: Directive) -> None:
        """Takes over a directive that is newer than the present one."""
        if directive.replaces(self.directive):
            self.directive = directive
            self._notify()

    def cancel_reclaim(self, reclaim_id: str) -> None:
        """The arbiter no longer wants what it had ordered back."""
        order = self.directive.reclaim
        if order is not None and order.reclaim_id == reclaim_id:
            self.directive = dataclasses.replace(self.directive, reclaim=None)
            self._notify()

    # Reports on their way; at most one of a lease is in flight, so a worker cannot flood the arbiter.

    def take_report(self) -> reports.Report | None:
        """The report to send now, or ``None`` while there is none or one is in flight."""
        with self._lock:
            if self._sent is None:
                self._sent, self._pending = self._pending, None
                return self._sent
            return None

    def report_delivered(self) -> bool:
        """The report in flight arrived; True when another one is waiting."""
        with self._lock:
            self._sent = None
            return self._pending is not None

    def report_failed(self) -> None:
        """The report in flight may not have arrived: it is said again, below anything newer."""
        with self._lock:
            if self._sent is not None:
                if self._pending is not None:
                    self._sent.add(self._pending)
                self._pending, self._sent = self._sent, None

    @property
    def has_report(self) -> bool:
        """Whether something could be sent now."""
        return self._sent is None and self._pending is not None

    def _notify(self) -> None:
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()
