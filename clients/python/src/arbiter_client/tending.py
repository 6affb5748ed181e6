"""Keeping the leases of one client alive: who is held, when to beat, what to say. Used on the keeper's thread only."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, TypeAlias

import grpc

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import beats, directive, holding, keepalive, requests, session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from arbiter_client import beater_process
    from arbiter_client.errors import ArbiterClientError

_LOG = logging.getLogger(__name__)

#: Interval that bounds retries and silences while no lease has told its own.
IDLE_INTERVAL_S = 5.0
#: Longest sleep while a beater process works: its news is read, and it is shown that this process lives.
BEATER_TURN_S = 1.0

#: Codes after which saying the same thing again may help.
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
    }
)

#: What a message on the session is about; ``None`` for a subscription.
About: TypeAlias = beats.Beat | requests.Patient | requests.Back | None


class Tending:
    """The leases that are held, and their heartbeats."""

    __slots__ = (
        "_asked_interval",
        "_beater",
        "_clock",
        "_contact",
        "_eager",
        "_failures",
        "_heart",
        "_holdings",
        "_next_beat_at",
        "_on_report",
        "_resume",
        "_session",
        "_subscribed",
    )

    def __init__(
        self,
        worker: str,
        talk: session.Session[About],
        beater: beater_process.BeaterProcess | None,
        clock: Callable[[], float],
        on_report: Callable[[holding.Holding], None],
    ) -> None:
        """Begins with no lease.

        Args:
            worker: Name of the worker.
            talk: The session, over which all is sent.
            beater: Sends the heartbeats instead, as long as it can.
            clock: Monotonic seconds.
            on_report: Called on the worker's thread when a lease has something to say.
        """
        self._session = talk
        self._beater = beater
        self._clock = clock
        self._on_report = on_report
        self._heart = beats.Heart(worker)
        self._contact = holding.Contact(clock())
        self._holdings: dict[str, holding.Holding] = {}
        self._eager: dict[str, holding.Holding] = {}
        self._failures = 0
        self._asked_interval = 0.0
        self._next_beat_at: float | None = None
        self._resume = (0, 0)
        self._subscribed = True

    def __len__(self) -> int:
        return len(self._holdings)

    @property
    def by_beater(self) -> bool:
        """Whether heartbeats come from the beater process."""
        return self._beater is not None

    def find(self, lease_id: str) -> holding.Holding | None:
        """The held lease of that id; may be called from any thread."""
        return self._holdings.get(lease_id)

    def interval(self) -> float:
        """Seconds between beats."""
        shortest = min((held.ttl for held in self._holdings.values()), default=0.0)
        return keepalive.beat_interval(self._asked_interval, shortest) if shortest else IDLE_INTERVAL_S

    def due(self) -> float | None:
        """When something here next needs attention."""
        times: list[float | None] = [held.lost_at for held in self._holdings.values()]
        if self._session.is_open:
            times.append(self._next_beat_at)
        if self._beater is not None and self._holdings:
            times.append(self._clock() + BEATER_TURN_S)
        return keepalive.earliest(times)

    # Holding and losing.

    def adopt(self, asked: requests.Allocation, answer: arbiter_service_pb2.AllocateResponse) -> holding.Holding:
        """Takes a granted lease into care."""
        now = self._clock()
        self._heart.epoch = answer.server_epoch or self._heart.epoch
        told = answer.directive if answer.HasField("directive") else answer.lease.directive
        held = holding.Holding(
            answer.lease,
            directive.from_message(told, answer.server_epoch),
            sent_at=_granted_at(asked, answer, now),
            startup_window=asked.request.startup_window.ToNanoseconds() / 1e9,
            contact=self._contact,
            clock=self._clock,
            on_report=self._on_report,
        )
        self._holdings[held.lease_id] = held
        if self._beater is not None:
            held.catch_up = self._beater.catch_up
            self._beater.add(held)
        interval = held.interval or held.ttl / 3
        self._asked_interval = min(self._asked_interval or interval, interval)
        first = keepalive.first_beat(now, interval, random.random())
        self._next_beat_at = first if self._next_beat_at is None else min(first, self._next_beat_at)
        return held

    def judge(self) -> None:
        """Ends the leases whose deadline has passed, after everything that others found out about them was read."""
        self._mind_beater()
        now = self._clock()
        for held in self._holdings.values():
            held.judge(now)
        self._forget_ended()

    def end_all(self, reason: str) -> list[holding.Holding]:
        """Ends every lease and returns those that still lived."""
        ended = [held for held in self._holdings.values() if held.end(reason)]
        self._forget_ended()
        return ended

    def _forget_ended(self) -> None:
        for held in [held for held in self._holdings.values() if held.end_reason is not None]:
            del self._holdings[held.lease_id]
            self._eager.pop(held.lease_id, None)
            if self._beater is not None:
                self._beater.drop(held)
        if not self._holdings:
            self._next_beat_at = None

    def _mind_beater(self) -> None:
        beater = self._beater
        if beater is None:
            return
        beater.sign(self._clock())
        beater.catch_up()
        self._contact.heard_at = max(self._contact.heard_at, beater.heard_at)
        if beater.failure:
            _LOG.warning("the beater process is gone (%s); heartbeats now come from a thread", beater.failure)
            self._beater = None
            # Without patience: the leases wait for their next beat.
            beater.close(0.0)
            if self._holdings:
                self._next_beat_at = self._clock()

    # Saying.

    def greet(self, now: float) -> None:
        """Says the first words on a new session: all about every lease, or a word that only asks for an answer."""
        if not self._holdings:
            beat, message = self._heart.hello(now, self._session.incarnation)
            self._session.send(beat, arbiter_service_pb2.SessionRequest(heartbeat=message), now)
            return
        self._next_beat_at = keepalive.next_beat(now, self.interval(), random.random())
        self._send(now, self._holdings.values(), by_handle=True)
        self._subscribe()

    def say_due(self, now: float) -> None:
        """Beats when it is time, and says what the worker wants said."""
        if self._next_beat_at is not None and now >= self._next_beat_at:
            self._next_beat_at = keepalive.next_beat(now, self.interval(), random.random())
            if not self._subscribed:
                self._subscribe()
            self._send(now, self._holdings.values(), by_handle=self._beater is None)
        elif self._eager:
            self._send(now, list(self._eager.values()), by_handle=False)

    def notice(self, held: holding.Holding) -> None:
        """A lease may have something to say."""
        if held.lease_id in self._holdings and held.has_report:
            self._eager[held.lease_id] = held

    def _send(self, now: float, holdings: Iterable[holding.Holding], *, by_handle: bool) -> None:
        messages = list(self._heart.compose(now, self._session.incarnation, holdings, by_handle=by_handle))
        self._eager.clear()
        for beat, message in messages:
            self._session.send(beat, arbiter_service_pb2.SessionRequest(heartbeat=message), now)

    def _subscribe(self) -> None:
        self._subscribed = True
        # Beyond the limit of one subscription, directives still come with the answers to heartbeats.
        ids = list(self._holdings)[: keepalive.MAX_HANDLES]
        epoch, revision = self._resume
        message = arbiter_service_pb2.StreamQualityRequest(lease_ids=ids, resume_epoch=epoch, resume_revision=revision)
        self._session.send(None, arbiter_service_pb2.SessionRequest(subscribe=message))

    # Hearing.

    def heard(self, now: float) -> None:
        """Something came from the arbiter."""
        self._contact.heard_at = now

    def on_heartbeat(self, beat: beats.Beat, answer: arbiter_service_pb2.HeartbeatResponse) -> None:
        """The arbiter answered a beat."""
        self._heart.epoch = answer.server_epoch or self._heart.epoch
        if answer.stale:
            # A later message of ours was taken before this one; it said nothing about these leases.
            self._retry(beat)
            return
        self._failures = 0
        beats.read_answer(beat, answer)
        if beat.quiet or beat.talking:
            self._asked_interval = answer.next_heartbeat_interval.ToNanoseconds() / 1e9
        for held, _ in beat.talking:
            held.report_delivered()
            self.notice(held)
        self._forget_ended()

    def on_refused(self, beat: beats.Beat, error: ArbiterClientError) -> None:
        """The arbiter answered a beat with an error."""
        if error.code not in _PASSING and beat.talking:
            # Said again it would be refused again, and the lease would die of it. The next beat goes by handle.
            _LOG.warning("the arbiter refused a report: %s", error.message)
            for held, _ in beat.talking:
                held.report_delivered()
        self._retry(beat)

    def on_lost(self, beat: beats.Beat) -> None:
        """The session ended before a beat was answered."""
        for held, _ in beat.talking:
            held.report_failed()

    def on_quality(self, message: arbiter_service_pb2.StreamQualityResponse) -> None:
        """The arbiter pushed directives."""
        self._heart.epoch = message.server_epoch or self._heart.epoch
        self._resume = (message.server_epoch, message.revision)
        beats.read_quality(self._holdings, message)
        if message.ended:
            self._forget_ended()

    def on_subscription_refused(self) -> None:
        """A subscription named a lease the server no longer knows: the next heartbeat tells which, then once more."""
        self._subscribed = False

    def _retry(self, beat: beats.Beat) -> None:
        self._failures += 1
        self.on_lost(beat)
        if self._next_beat_at is not None:
            delay = keepalive.retry_delay(self._failures, self.interval(), random.random())
            self._next_beat_at = min(self._next_beat_at, self._clock() + delay)


def _granted_at(asked: requests.Allocation, answer: arbiter_service_pb2.AllocateResponse, now: float) -> float:
    """A moment by our clock that is not after the grant, from which the arbiter counts the time to live.

    A request may wait for longer than its lease then lives, so that the time for which it waited counts; from the first
    sending, because a request that is sent again goes on waiting.
    """
    if asked.sent_at is None or asked.first_sent_at is None:
        return now
    return min(now, max(asked.sent_at, asked.first_sent_at + answer.waited.ToNanoseconds() / 1e9))
