"""One worker's session as it comes and goes: what is in flight on it, and when to open the next one."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import errors, keepalive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arbiter_client import transport

    OnResponse = Callable[[int, arbiter_service_pb2.SessionResponse], None]
    OnEnd = Callable[[int, errors.ArbiterClientError | None], None]

#: A session that lived so long was a success; the next attempt begins with the shortest delay again.
GOOD_LIFE_S = 1.0

About = TypeVar("About")


class Session(Generic[About]):
    """The present session, if any. Used on the keeper's thread only.

    Attributes:
        incarnation: Grows with each session, so that a new one overrules the remains of the old.
        open_at: When the next session may be opened.
    """

    __slots__ = (
        "_failures",
        "_heard_at",
        "_in_flight",
        "_last_correlation",
        "_link",
        "_number",
        "_opened_at",
        "_silent_since",
        "_source",
        "_trouble",
        "incarnation",
        "open_at",
    )

    def __init__(self, source: transport.Transport) -> None:
        self.incarnation = 0
        self.open_at = 0.0
        self._source = source
        self._link: transport.Link | None = None
        self._number = 0
        self._opened_at = self._heard_at = 0.0
        self._silent_since: float | None = None
        self._failures = 0
        self._trouble: errors.ArbiterClientError | None = None
        self._last_correlation = 0
        #: What each unanswered message was about, and when it was sent if an answer must come soon.
        self._in_flight: dict[int, tuple[About, float | None]] = {}

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._link is not None

    @property
    def is_heard(self) -> bool:
        """Whether messages can be sent and the arbiter has said something on this very session."""
        return self._link is not None and self._silent_since is None

    @property
    def troubled_since(self) -> float | None:
        """Since when nothing was heard in spite of at least one failed attempt; ``None`` while all is well."""
        return self._silent_since if self._failures else None

    def trouble(self) -> errors.ArbiterClientError:
        """What to tell those who waited for an arbiter that does not answer."""
        if isinstance(self._trouble, errors.ArbiterUnreachable):
            return errors.ArbiterUnreachable(self._trouble.message, metadata=self._trouble.metadata)
        return errors.ArbiterUnreachable.at(self._source.address, str(self._trouble or "no answer"))

    def open(self, now: float, on_response: OnResponse, on_end: OnEnd) -> None:
        """Begins a new session. The callbacks get its number and run on a thread of the transport."""
        self._number += 1
        number = self._number
        self.incarnation = max(self.incarnation + 1, time.time_ns())
        self._opened_at = self._heard_at = now
        if self._silent_since is None:
            self._silent_since = now
        self._link = self._source.open(
            lambda response: on_response(number, response),
            lambda error: on_end(number, error),
        )

    def is_present(self, number: int) -> bool:
        """Whether ``number`` is the session that is open now; what comes from an earlier one is to be ignored."""
        return self._link is not None and number == self._number

    def send(self, about: About, request: arbiter_service_pb2.SessionRequest, answer_from: float | None = None) -> None:
        """Queues a message.

        Args:
            about: Comes back with the answer.
            request: The message; gets its correlation id here.
            answer_from: Now, when a quick answer is certain if the arbiter lives; ``None`` for a request that may wait.
        """
        self._last_correlation += 1
        request.correlation_id = self._last_correlation
        self._in_flight[self._last_correlation] = (about, answer_from)
        if self._link is not None:
            # A link that takes no more says so through on_end, which sorts out everything in flight.
            self._link.send(request)

    def take_back(self, about: About) -> bool:
        """Tells the arbiter that nobody waits for the answer about ``about`` any more; False when none was awaited.

        The answer still comes: that it was cancelled, or what came first.
        """
        awaited = (correlation for correlation, (sent, _) in self._in_flight.items() if sent is about)
        if (correlation_id := next(awaited, None)) is None or self._link is None:
            return False
        cancel = arbiter_service_pb2.CancelRequest(correlation_id=correlation_id)
        # Without a correlation id of its own, since it is not answered.
        self._link.send(arbiter_service_pb2.SessionRequest(cancel=cancel))
        return True

    def answered(self, now: float, correlation_id: int) -> About | None:
        """What the message that came with ``correlation_id`` answers; ``None`` for what the server sends by itself."""
        self._heard_at = now
        self._silent_since = self._trouble = None
        about, _ = self._in_flight.pop(correlation_id, (None, None))
        return about

    def ended(self, now: float, interval: float, error: errors.ArbiterClientError | None) -> Sequence[About]:
        """The session is over; returns what was in flight and plans the next attempt."""
        if self._silent_since is None and now - self._opened_at >= GOOD_LIFE_S:
            self._failures = 0
        self._failures += 1
        self._link = None
        self._trouble = error
        if self._silent_since is None:
            self._silent_since = now
        self.open_at = now + keepalive.retry_delay(self._failures, interval, random.random())
        in_flight = [about for about, _ in self._in_flight.values()]
        self._in_flight.clear()
        return in_flight

    def is_silent(self, now: float, interval: float) -> bool:
        """Whether the session is open, but the arbiter does not answer."""
        return self._link is not None and keepalive.is_silent(now, self._waiting_since(), self._heard_at, interval)

    def silent_at(self, interval: float) -> float | None:
        """When the session is to be given up unless something is heard."""
        since = self._waiting_since()
        return None if self._link is None or since is None else keepalive.silent_at(since, self._heard_at, interval)

    def close(self) -> None:
        """Ends the session for good or before another; nothing that still arrives from it counts."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _waiting_since(self) -> float | None:
        return keepalive.earliest(answer_from for _, answer_from in self._in_flight.values())
