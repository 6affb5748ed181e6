"""What the arbiter says: its state when asked, its events as they happen."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import arbiter_client
from arbiter.v1 import state_service_pb2

_NAMES = {int(number): name.removeprefix("EVENT_KIND_").lower() for name, number in state_service_pb2.EventKind.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """One living lease: published quality, bytes charged, bytes measured (None when unknown)."""

    quality: float
    granted_bytes: int
    measured_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The host-memory device and its leases by holder."""

    granted_bytes: int = 0
    draining_bytes: int = 0
    measured_bytes: int | None = None
    leases: Mapping[str, LeaseView] = field(default_factory=dict)


def take(client: arbiter_client.BlockingClient) -> Picture:
    """Asks the arbiter for its state.

    Raises:
        ArbiterClientError: It did not answer.
    """
    state = client.state()
    if not state.devices:
        return Picture()
    device = state.devices[0]
    return Picture(
        granted_bytes=device.granted_bytes,
        draining_bytes=device.draining_bytes,
        measured_bytes=device.measured_bytes if device.HasField("measured_bytes") else None,
        leases={
            lease.holder: LeaseView(
                quality=lease.directive.quality,
                granted_bytes=lease.memory_bytes,
                measured_bytes=lease.measured_memory_bytes if lease.HasField("measured_memory_bytes") else None,
            )
            for lease in state.leases
        },
    )


class EventWatch:
    """Counts the arbiter's events and remembers the newest one, on a thread of its own.

    Args:
        client: Watches through this.
    """

    __slots__ = ("_counts", "_events", "_lock", "_newest", "_thread")

    def __init__(self, client: arbiter_client.BlockingClient) -> None:
        self._events = client.watch()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._newest = ""
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; returns when the last event has been counted."""
        self._events.close()
        self._thread.join()

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind there were, most frequent first."""
        with self._lock:
            return dict(self._counts.most_common())

    @property
    def newest(self) -> str:
        """The newest event for people; empty when there was none."""
        with self._lock:
            return self._newest

    def _run(self) -> None:
        try:
            for event in self._events:
                self._take(event)
        except arbiter_client.ArbiterClientError as error:
            with self._lock:
                self._newest = f"no more events: {error.message}"

    def _take(self, event: state_service_pb2.Event) -> None:
        kind = _NAMES.get(event.kind, str(event.kind))
        with self._lock:
            self._counts[kind] += 1
            self._newest = " ".join(word for word in (kind.replace("_", " "), event.holder) if word)
