"""What one stream still has to be told, and when: fast enough to obey in time, slow enough that nobody drowns in news.

A fall goes out at once, and so does an order to give memory back, or its end. A rise can wait: for those who never
acknowledge it comes less often, for those who do it waits until they have caught up. Only the newest value is kept.
"""

from __future__ import annotations

import asyncio
import math
from typing import NamedTuple

from arbiter_sidecar.ledger.leases import Lease

#: Least time between two messages of one stream, in seconds: changes that come faster are merged.
MIN_INTERVAL_S = 0.05
#: Least time between two rises of a lease whose holder has never acknowledged anything.
MUTE_INTERVAL_S = 0.25
#: A rise that waits for acknowledgements waits no longer: a holder that has stopped to acknowledge is not left in the
#: dark.
HOLD_S = 30.0


class Told(NamedTuple):
    """What one stream was last told of a lease, and when; and the update before that.

    Attributes:
        at: When, in seconds of the event loop.
        revision: Revision of the directive.
        quality: Its quality.
        limit_bytes: Its limit.
        kv_tokens: Its KV token budget; 0 for a lease that is no engine.
        reclaiming: It asked for memory or KV tokens back.
        before_at: When the update before was sent; 0 when there was none.
        before_revision: Its revision; 0 when there was none.
    """

    at: float
    revision: int
    quality: float
    limit_bytes: int
    kv_tokens: int
    reclaiming: bool
    before_at: float
    before_revision: int


class Taken(NamedTuple):
    """What is to be sent now: changed leases, ended ones with their reasons, and cancelled reclaims."""

    changed: list[Lease]
    ended: dict[str, int]
    cancelled: list[str]


def due(lease: Lease, told: Told | None, now: float) -> float:
    """When the newest directive of a lease may be sent, in seconds of the event loop; ``now`` or earlier: at once.

    While two updates of it are unacknowledged a third one waits; that is looked at again after a short while, so that
    heartbeats need not tell anybody.
    """
    if told is None or _ordered(lease) or told.reclaiming:
        return now
    if lease.quality < told.quality or lease.limit_bytes < told.limit_bytes or _kv_tokens(lease) < told.kv_tokens:
        return now
    if not lease.applied_revision:
        return told.at + MUTE_INTERVAL_S
    if told.before_revision > lease.applied_revision:
        held_until = told.before_at + HOLD_S
        return held_until if held_until <= now else min(held_until, now + MUTE_INTERVAL_S)
    return now


def _ordered(lease: Lease) -> bool:
    """Whether its directive asks for memory or KV tokens back."""
    return lease.reclaim is not None or (lease.kv is not None and lease.kv.order is not None)


def _kv_tokens(lease: Lease) -> int:
    return 0 if lease.kv is None else lease.kv.budget


class Subscriber:
    """One stream's view of its leases.

    Attributes:
        lease_ids: The leases it still hears of.
        news: Set when ``look_at`` has come nearer.
        look_at: When there may be something to send, in seconds of the event loop; infinite while there is nothing.
        finished: The server ends the stream once that is sent.
    """

    def __init__(self) -> None:
        self.lease_ids: dict[str, None] = {}
        self.news = asyncio.Event()
        self.look_at = math.inf
        self.finished = False
        self._loop = asyncio.get_running_loop()
        self._told: dict[str, Told] = {}
        self._changed: dict[str, Lease] = {}
        self._ended: dict[str, int] = {}
        self._cancelled: dict[str, None] = {}
        self._announce = False
        self._free_at = 0.0

    @property
    def pending(self) -> bool:
        """Whether anything is still to be sent, now or later."""
        return bool(self._changed or self._ended or self._cancelled or self._announce)

    def level(self, newest: int) -> int:
        """The revision up to which it has been told everything; ``newest`` when nothing is held back."""
        return min((lease.revision - 1 for lease in self._changed.values()), default=newest)

    def changed(self, lease: Lease) -> None:
        """A lease has a newer directive; an older one that was not sent yet is forgotten."""
        self._changed[lease.lease_id] = lease
        self._look(due(lease, self._told.get(lease.lease_id), self._loop.time()))

    def ended(self, lease_id: str, end_reason: int) -> None:
        """A lease is over."""
        self._changed.pop(lease_id, None)
        self._told.pop(lease_id, None)
        self.lease_ids.pop(lease_id, None)
        self._ended[lease_id] = end_reason
        self._look()

    def reclaim_cancelled(self, reclaim_id: str) -> None:
        """A lease need not give back any more what this reclaim asked for."""
        self._cancelled[reclaim_id] = None
        self._look()

    def finish(self) -> None:
        """Nothing will come any more, and what waits is sent at once."""
        self.finished = True
        self.look_at = -math.inf
        self.news.set()

    def forget(self) -> None:
        """What was not sent yet of former leases is of no interest any more; the next message is a first one."""
        self.lease_ids.clear()
        self._told.clear()
        self._changed.clear()
        self._ended = {}
        self._cancelled = {}
        self._free_at = 0.0
        if not self.finished:
            self.look_at = math.inf

    def announce(self) -> None:
        """A message is due even when it says nothing new."""
        self._announce = True
        self._look()

    def _look(self, at: float = 0.0) -> None:
        at = max(at, self._free_at)
        if at < self.look_at:
            self.look_at = at
            self.news.set()

    def take(self) -> Taken | None:
        """What is to be sent now; ``None`` when there is nothing yet. What may wait stays."""
        now = self._loop.time()
        if now < self.look_at:
            return None
        ready, later = [], math.inf
        for lease in self._changed.values():
            at = due(lease, self._told.get(lease.lease_id), now)
            if at <= now or self.finished:
                ready.append(lease)
            else:
                later = min(later, at)
        for lease in ready:
            del self._changed[lease.lease_id]
            self._note(lease, now)
        if not self.finished:
            self.look_at = max(later, self._free_at)
        if not (ready or self._ended or self._cancelled or self._announce):
            return None
        taken = Taken(ready, self._ended, list(self._cancelled))
        self._ended, self._cancelled, self._announce = {}, {}, False
        self.sent()
        return taken

    def _note(self, lease: Lease, now: float) -> None:
        before = self._told.get(lease.lease_id)
        self._told[lease.lease_id] = Told(
            at=now,
            revision=lease.revision,
            quality=lease.quality,
            limit_bytes=lease.limit_bytes,
            kv_tokens=_kv_tokens(lease),
            reclaiming=_ordered(lease),
            before_at=before.at if before is not None else 0.0,
            before_revision=before.revision if before is not None else 0,
        )

    def sent(self) -> None:
        """A message has just been taken by the stream: the next one has to wait a little."""
        self._free_at = self._loop.time() + MIN_INTERVAL_S
        if not self.finished:
            self.look_at = max(self.look_at, self._free_at)
