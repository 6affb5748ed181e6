"""The one thread of a client: keeps the session open, the leases alive and the worker told.

Everything that changes runs on this thread; the worker's threads and the transport's only put steps into its inbox. It
is a thread and not a task, so that leases outlive an event loop that is busy.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import grpc

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import beats, directive, errors, holding, keepalive, requests, session

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from arbiter_client import beater_process, transport

_LOG = logging.getLogger(__name__)

#: Responses that may wait for this thread. The session's reader waits when there are more, so that flow control reaches
#: the server. The worker's own steps need no bound: each is one request it waits for, or one report per lease.
MAX_UNREAD = 1024
#: Steps taken before the clock is looked at again.
MAX_STEPS = 256
#: Interval that bounds retries and silences while no lease has told its own.
IDLE_INTERVAL_S = 5.0
#: Longest sleep while a beater process works: its news is read, and it is shown that this process lives.
BEATER_TURN_S = 1.0
#: How long closing waits for the arbiter to take the leases back; after that the time to live does.
CLOSE_PATIENCE_S = 2.0

#: Codes that say that this server will never take the session.
_HOPELESS = frozenset(
    {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
)
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

Step: TypeAlias = Callable[[], None]
#: What a message on the session is about; ``None`` for a subscription.
About: TypeAlias = beats.Beat | requests.Allocation | requests.Return | None


def worker_name() -> str:
    """A name for this process that no other has."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Keeper:
    """Holds the leases of one client. All public methods may be called from any thread."""

    def __init__(
        self,
        source: transport.Transport,
        *,
        connect_timeout: float,
        beater: beater_process.BeaterProcess | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares; the thread starts with the first request.

        Args:
            source: Where sessions are opened.
            connect_timeout: Seconds for which a request outlives an arbiter that cannot be reached.
            beater: Sends the heartbeats instead of this thread.
            clock: Monotonic seconds.
        """
        self._beater = beater
        self._clock = clock
        self._inbox: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self._room = threading.Semaphore(MAX_UNREAD)
        self._thread: threading.Thread | None = None
        self._posting = threading.Lock()
        self._stopped = False
        self._closing_until: float | None = None
        self._heart = beats.Heart(worker_name())
        self._contact = holding.Contact(clock())
        self._session: session.Session[About] = session.Session(source)
        self._waiting = requests.Waiting(connect_timeout)
        self._holdings: dict[str, holding.Holding] = {}
        self._eager: dict[str, holding.Holding] = {}
        self._beat_failures = 0
        self._asked_interval = 0.0
        self._next_beat_at: float | None = None
        self._resume = (0, 0)
        self._subscribed = True

    # From any thread.

    @property
    def by_beater(self) -> bool:
        """Whether heartbeats come from the beater process."""
        return self._beater is not None

    def allocate(self, request: arbiter_service_pb2.AllocateRequest) -> Future[holding.Holding]:
        """Asks for a lease; call ``abandon`` with the future when it is no longer wanted."""
        asked = requests.Allocation(request, self._clock())
        self._post(functools.partial(self._begin, asked), asked.fail)
        return asked.future

    def abandon(self, future: Future[holding.Holding]) -> None:
        """Makes sure that nothing is kept of a request that nobody waits for any more."""
        if not future.cancel():
            future.add_done_callback(self._give_back)

    def release(self, lease_id: str, fence: int, patience: float) -> Future[bool]:
        """Gives a lease back; the answer says whether it had ended before. Gives up after ``patience`` seconds."""
        giving = requests.Return(lease_id, fence, self._clock() + patience)
        if (held := self._holdings.get(lease_id)) is not None:
            # Before anything is sent: from here on nobody may use the memory.
            held.end("RELEASED")
        self._post(functools.partial(self._begin, giving), giving.fail)
        return giving.future

    def close(self) -> None:
        """Gives every lease back, ends the session and the thread. Takes a little over two seconds at most."""
        with self._posting:
            thread = self._thread
            self._stopped = self._stopped or thread is None
        if thread is not None:
            self._post(self._begin_close, lambda _: None)
            thread.join(CLOSE_PATIENCE_S * 2)
        if self._beater is not None:
            self._beater.close()

    def _post(self, step: Step, refuse: Callable[[errors.ArbiterClientError], None]) -> None:
        with self._posting:
            refused = self._stopped
            if not refused:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="arbiter-keeper", daemon=True)
                    self._thread.start()
                self._inbox.put(step)
        if refused:
            refuse(errors.Cancelled("the client is closed"))

    def _give_back(self, future: Future[holding.Holding]) -> None:
        if not future.cancelled() and future.exception() is None:
            granted = future.result()
            self.release(granted.lease_id, granted.fence, CLOSE_PATIENCE_S)

    # The thread.

    def _run(self) -> None:
        try:
            while not self._is_done():
                self._turn(self._wait())
        finally:
            # Also on a defect: nobody may go on waiting for, or trusting in, a keeper that is gone.
            with self._posting:
                self._stopped = True
            self._finish()

    def _wait(self) -> Step | None:
        due = self._next_due()
        try:
            if due is None:
                return self._inbox.get()
            left = due - self._clock()
            return self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait()
        except queue.Empty:
            return None

    def _turn(self, step: Step | None) -> None:
        # The clock comes before anything that waits to be read: after a stall, an answer from before the stall must not
        # bring back a lease that others have seen end.
        self._mind_beater()
        self._judge(self._clock())
        taken = 0
        while step is not None:
            step()
            taken += 1
            step = None if taken >= MAX_STEPS or self._inbox.empty() else self._inbox.get_nowait()
        self._act(self._clock())

    def _act(self, now: float) -> None:
        self._waiting.give_up(now, self._session.troubled_since, self._session.trouble())
        if self._session.is_silent(now, self._interval()):
            self._session.close()
            self._lost_session(now, None)
        if not self._session.is_open:
            if (self._holdings or self._waiting) and now >= self._session.open_at:
                self._open(now)
            return
        for asked in self._waiting.retries(now):
            self._ask(asked)
        if self._next_beat_at is not None and now >= self._next_beat_at:
            self._beat(now)
        elif self._eager:
            self._send_beats(now, list(self._eager.values()), by_handle=False)

    def _next_due(self) -> float | None:
        connected = self._session.is_open
        times: list[float | None] = [
            self._closing_until,
            keepalive.earliest(held.lost_at for held in self._holdings.values()),
            self._waiting.due(connected=connected, troubled_since=self._session.troubled_since),
        ]
        if self._beater is not None and self._holdings:
            times.append(self._clock() + BEATER_TURN_S)
        if connected:
            times += [self._next_beat_at, self._session.silent_at(self._interval())]
        elif self._holdings or self._waiting:
            times.append(self._session.open_at)
        return keepalive.earliest(times)

    def _is_done(self) -> bool:
        if self._closing_until is None:
            return False
        return not self._waiting.returns or self._clock() >= self._closing_until

    def _begin_close(self) -> None:
        self._closing_until = self._clock() + CLOSE_PATIENCE_S
        self._waiting.fail_allocations(errors.Cancelled("the client is closed"))
        for held in list(self._holdings.values()):
            held.end("RELEASED")
            self._begin(requests.Return(held.lease_id, held.fence, self._closing_until))
        self._forget_ended()

    def _finish(self) -> None:
        self._session.close()
        # A reader that waits for room would wait for ever.
        self._room.release(MAX_UNREAD)
        gone = errors.Cancelled("the client is closed")
        while not self._inbox.empty():
            # A request that came too late is begun, so that it fails with the others.
            self._inbox.get_nowait()()
        for asked in self._waiting:
            asked.fail(gone)
        for held in self._holdings.values():
            held.end("RELEASED" if self._closing_until is not None else "ABANDONED")

    # Leases.

    def _judge(self, now: float) -> None:
        for held in self._holdings.values():
            held.judge(now)
        self._forget_ended()

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
            beater.close()
            if self._holdings:
                self._next_beat_at = self._clock()

    def _interval(self) -> float:
        shortest = min((held.ttl for held in self._holdings.values()), default=0.0)
        return keepalive.beat_interval(self._asked_interval, shortest) if shortest else IDLE_INTERVAL_S

    def _beat(self, now: float) -> None:
        self._next_beat_at = keepalive.next_beat(now, self._interval(), random.random())
        if not self._subscribed:
            self._subscribe()
        self._send_beats(now, self._holdings.values(), by_handle=self._beater is None)

    def _send_beats(self, now: float, holdings: Iterable[holding.Holding], *, by_handle: bool) -> None:
        messages = list(self._heart.compose(now, self._session.incarnation, holdings, by_handle=by_handle))
        self._eager.clear()
        for beat, message in messages:
            self._session.send(beat, arbiter_service_pb2.SessionRequest(heartbeat=message), now)

    def _on_report(self, held: holding.Holding) -> None:
        self._post(functools.partial(self._notice_report, held), lambda _: None)

    def _notice_report(self, held: holding.Holding) -> None:
        if held.lease_id in self._holdings and held.has_report:
            self._eager[held.lease_id] = held

    def _on_heartbeat(self, beat: beats.Beat, answer: arbiter_service_pb2.HeartbeatResponse) -> None:
        self._heart.epoch = answer.server_epoch or self._heart.epoch
        if answer.stale:
            # A later message of ours was taken before this one; it said nothing about these leases.
            self._retry_beat(beat)
            return
        self._beat_failures = 0
        beats.read_answer(beat, answer)
        if beat.quiet or beat.talking:
            self._asked_interval = answer.next_heartbeat_interval.ToNanoseconds() / 1e9
        for held, _ in beat.talking:
            held.report_delivered()
            self._notice_report(held)
        self._forget_ended()

    def _on_beat_refused(self, beat: beats.Beat, error: errors.ArbiterClientError) -> None:
        if error.code not in _PASSING and beat.talking:
            # Said again it would be refused again, and the lease would die of it. The next beat goes by handle.
            _LOG.warning("the arbiter refused a report: %s", error.message)
            for held, _ in beat.talking:
                held.report_delivered()
        self._retry_beat(beat)

    def _retry_beat(self, beat: beats.Beat) -> None:
        self._beat_failures += 1
        for held, _ in beat.talking:
            held.report_failed()
        if self._holdings and self._next_beat_at is not None:
            delay = keepalive.retry_delay(self._beat_failures, self._interval(), random.random())
            self._next_beat_at = min(self._next_beat_at, self._clock() + delay)

    def _on_allocate(self, asked: requests.Allocation, answer: arbiter_service_pb2.AllocateResponse) -> None:
        self._waiting.done(asked)
        self._heart.epoch = answer.server_epoch or self._heart.epoch
        lease = answer.lease
        now = self._clock()
        granted = holding.Holding(
            lease,
            directive.from_message(
                answer.directive if answer.HasField("directive") else lease.directive, answer.server_epoch
            ),
            sent_at=now if asked.sent_at is None else asked.sent_at,
            startup_window=asked.request.startup_window.ToNanoseconds() / 1e9,
            contact=self._contact,
            clock=self._clock,
            on_report=self._on_report,
        )
        self._holdings[lease.lease_id] = granted
        if self._beater is not None:
            granted.catch_up = self._beater.catch_up
            self._beater.add(granted)
        interval = granted.interval or granted.ttl / 3
        self._asked_interval = min(self._asked_interval or interval, interval)
        first = keepalive.first_beat(now, interval, random.random())
        self._next_beat_at = first if self._next_beat_at is None else min(first, self._next_beat_at)
        if not asked.deliver(granted):
            self.release(granted.lease_id, granted.fence, CLOSE_PATIENCE_S)

    # The session.

    def _begin(self, asked: requests.Allocation | requests.Return) -> None:
        if self._closing_until is not None and isinstance(asked, requests.Allocation):
            asked.fail(errors.Cancelled("the client is closed"))
        elif self._waiting.begin(asked) and self._session.is_open:
            self._ask(asked)

    def _ask(self, asked: requests.Allocation | requests.Return) -> None:
        if isinstance(asked, requests.Return):
            message = arbiter_service_pb2.ReleaseRequest(lease_id=asked.lease_id, fence=asked.fence)
            self._session.send(asked, arbiter_service_pb2.SessionRequest(release=message))
            return
        asked.retry_at = None
        asked.sent_at = self._clock()
        self._session.send(asked, arbiter_service_pb2.SessionRequest(allocate=asked.request))

    def _open(self, now: float) -> None:
        self._session.open(now, self._post_response, self._post_end)
        if self._holdings:
            self._next_beat_at = keepalive.next_beat(now, self._interval(), random.random())
            self._send_beats(now, self._holdings.values(), by_handle=True)
            self._subscribe()
        else:
            beat, message = self._heart.hello(now, self._session.incarnation)
            self._session.send(beat, arbiter_service_pb2.SessionRequest(heartbeat=message), now)
        for asked in self._waiting:
            self._ask(asked)

    def _subscribe(self) -> None:
        self._subscribed = True
        # Beyond the limit of one subscription, directives still come with the answers to heartbeats.
        ids = list(self._holdings)[: keepalive.MAX_HANDLES]
        epoch, revision = self._resume
        message = arbiter_service_pb2.StreamQualityRequest(lease_ids=ids, resume_epoch=epoch, resume_revision=revision)
        self._session.send(None, arbiter_service_pb2.SessionRequest(subscribe=message))

    def _post_response(self, number: int, response: arbiter_service_pb2.SessionResponse) -> None:
        self._room.acquire()
        self._inbox.put(functools.partial(self._on_response, number, response))

    def _post_end(self, number: int, error: errors.ArbiterClientError | None) -> None:
        self._inbox.put(functools.partial(self._on_end, number, error))

    def _on_end(self, number: int, error: errors.ArbiterClientError | None) -> None:
        if self._session.is_present(number):
            self._lost_session(self._clock(), error)

    def _lost_session(self, now: float, error: errors.ArbiterClientError | None) -> None:
        for about in self._session.ended(now, self._interval(), error):
            if isinstance(about, beats.Beat):
                for held, _ in about.talking:
                    held.report_failed()
        self._waiting.disconnected()
        if error is not None and error.code in _HOPELESS:
            self._waiting.fail_allocations(error)

    def _on_response(self, number: int, response: arbiter_service_pb2.SessionResponse) -> None:
        self._room.release()
        if not self._session.is_present(number):
            return
        now = self._clock()
        self._contact.heard_at = now
        about = self._session.answered(now, response.correlation_id)
        kind = response.WhichOneof("response")
        if kind == "error":
            self._on_error(about, errors.from_session_error(response.error))
        elif kind == "quality":
            self._on_quality(response.quality)
        elif isinstance(about, beats.Beat) and kind == "heartbeat":
            self._on_heartbeat(about, response.heartbeat)
        elif isinstance(about, requests.Allocation) and kind == "allocate":
            self._on_allocate(about, response.allocate)
        elif isinstance(about, requests.Return) and kind == "release":
            self._waiting.done(about)
            about.deliver(response.release.already_released)

    def _on_quality(self, message: arbiter_service_pb2.StreamQualityResponse) -> None:
        self._heart.epoch = message.server_epoch or self._heart.epoch
        self._resume = (message.server_epoch, message.revision)
        beats.read_quality(self._holdings, message)
        if message.ended:
            self._forget_ended()

    def _on_error(self, about: About, error: errors.ArbiterClientError) -> None:
        if isinstance(about, beats.Beat):
            self._on_beat_refused(about, error)
        elif about is not None:
            self._waiting.refused(about, error, self._clock())
        else:
            # A subscription that named a lease the server no longer knows: the next heartbeat tells which, then again.
            self._subscribed = False
