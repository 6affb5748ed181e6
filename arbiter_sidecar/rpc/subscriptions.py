"""Who hears of which lease. Nobody is waited for: what is not sent yet is the newest value only."""

from __future__ import annotations

from collections.abc import Iterable

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2
from arbiter_sidecar import errors
from arbiter_sidecar.ledger.leases import Grave, Lease
from arbiter_sidecar.rpc.render import Renderer
from arbiter_sidecar.rpc.subscriber import Subscriber
from arbiter_sidecar.runtime import Runtime


class Subscriptions:
    """All subscribers, found by lease."""

    def __init__(self, runtime: Runtime, renderer: Renderer) -> None:
        self._runtime = runtime
        self._renderer = renderer
        self._by_lease: dict[str, dict[Subscriber, None]] = {}
        self._all: dict[Subscriber, None] = {}
        #: The newest serialised directive of each subscribed lease, so that it is serialised once for all.
        self._chunks: dict[str, tuple[int, bytes]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def subscribe(self, subscriber: Subscriber, lease_ids: Iterable[str], *, resume: tuple[int, int] = (0, 0)) -> None:
        """Makes a subscriber hear of these leases instead of its former ones; its first message is due at once.

        Args:
            subscriber: New or known.
            lease_ids: The leases, each once.
            resume: Epoch and revision up to which it knows everything.

        Raises:
            LeaseNotFound: One of them is unknown. Nothing has changed then.
        """
        leases = self._runtime.books.leases
        found: list[tuple[str, Lease | Grave]] = []
        for lease_id in lease_ids:
            known: Lease | Grave | None = leases.get(lease_id) or leases.grave(lease_id)
            if known is None:
                raise errors.LeaseNotFound(f"no lease {lease_id!r}", lease_id=lease_id)
            found.append((lease_id, known))
        self.unsubscribe(subscriber)
        self._all[subscriber] = None
        newest = max((known.revision for _, known in found if isinstance(known, Lease)), default=0)
        current = resume[0] == self._runtime.epoch and newest <= resume[1] <= self._runtime.books.revision
        for lease_id, known in found:
            if isinstance(known, Lease) and known.alive:
                self._add(subscriber, lease_id)
                if not current:
                    subscriber.changed(known)
            else:
                subscriber.ended(lease_id, known.end_reason)
        subscriber.announce()
        self._runtime.confirm(subscriber.lease_ids)

    def join(self, subscriber: Subscriber, lease_id: str) -> None:
        """Lets a subscriber hear of one more living lease, whose present directive it has just got."""
        self._all[subscriber] = None
        self._add(subscriber, lease_id)

    def _add(self, subscriber: Subscriber, lease_id: str) -> None:
        subscriber.lease_ids[lease_id] = None
        self._by_lease.setdefault(lease_id, {})[subscriber] = None

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """The subscriber hears of nothing any more."""
        self._all.pop(subscriber, None)
        for lease_id in subscriber.lease_ids:
            listeners = self._by_lease[lease_id]
            del listeners[subscriber]
            if not listeners:
                del self._by_lease[lease_id]
                self._chunks.pop(lease_id, None)
        subscriber.forget()

    def close(self) -> None:
        """Ends every stream when what it has to say is sent."""
        for subscriber in self._all:
            subscriber.finish()

    # Feed of the runtime ----------------------------------------------------------------------------------------------

    def directive_changed(self, lease: Lease) -> None:
        """A lease has a new directive."""
        for subscriber in self._by_lease.get(lease.lease_id, ()):
            subscriber.changed(lease)

    def reclaim_cancelled(self, lease: Lease, reclaim_id: str) -> None:
        """The lease need not give memory back any more."""
        for subscriber in self._by_lease.get(lease.lease_id, ()):
            subscriber.reclaim_cancelled(reclaim_id)

    def lease_ended(self, lease: Lease) -> None:
        """A lease is over; nobody hears of it again."""
        for subscriber in self._by_lease.pop(lease.lease_id, {}):
            subscriber.ended(lease.lease_id, lease.end_reason)
        self._chunks.pop(lease.lease_id, None)

    def draining(self) -> None:
        """The server goes away."""
        for subscriber in self._all:
            subscriber.announce()

    # ------------------------------------------------------------------------------------------------------------------

    def message(self, subscriber: Subscriber) -> bytes | None:
        """The next serialised ``StreamQualityResponse`` for a subscriber; ``None`` when there is nothing to send yet.

        Its revision stops short of what is held back, so that whoever resumes from it misses nothing.

        Serialised messages that follow each other are merged by whoever parses them, so the header and the directives,
        each serialised once for all subscribers, are only put together here.
        """
        taken = subscriber.take()
        if taken is None:
            return None
        header = pb.StreamQualityResponse(
            server_epoch=self._runtime.epoch,
            revision=subscriber.level(self._runtime.books.revision),
            ended=[
                pb.EndedLease(lease_id=lease_id, end_reason=lease_pb2.EndReason.ValueType(reason))
                for lease_id, reason in taken.ended.items()
            ],
            reclaim_cancelled=taken.cancelled,
            draining=self._runtime.books.draining,
        )
        return header.SerializeToString() + b"".join(self._chunk(lease) for lease in taken.changed)

    def _chunk(self, lease: Lease) -> bytes:
        known = self._chunks.get(lease.lease_id)
        if known is None or known[0] != lease.revision:
            rendered = pb.StreamQualityResponse(directives=[self._renderer.directive(lease)])
            known = self._chunks[lease.lease_id] = (lease.revision, rendered.SerializeToString())
        return known[1]
