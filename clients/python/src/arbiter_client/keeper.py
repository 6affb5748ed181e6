"""The one thread of a client: keeps the session open, the leases alive and the worker told.

Everything that changes runs on this thread; the worker's threads and the transport's only put steps into its inbox. It
is a thread and not a task, so that leases outlive an event loop that is busy.
"""

from __future__ import annotations

import functools
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import grpc

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import beats, errors, holding, keepalive, kv_reservations, preemption, requests, session, tending

if TYPE_CHECKING:
    from concurrent.futures import Future

    from arbiter_client import beater_process, transport

#: Responses that may wait for this thread. The session's reader waits when there are more, so that flow control reaches
#: the server. The worker's own steps need no bound: each is one request it waits for, or one report per lease.
MAX_UNREAD = 1024
#: Steps taken before the clock is looked at again.
MAX_STEPS = 256
#: How long closing waits for the arbiter to take the leases back; after that the time to live does.
CLOSE_PATIENCE_S = 2.0

#: Codes that say that this server will never take the session.
_HOPELESS = frozenset(
    {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
)

Step: TypeAlias = Callable[[], None]
#: The answers that may take their time.
Awaited: TypeAlias = "Future[holding.Holding] | Future[preemption.Preemption] | Future[kv_reservations.Reserved]"


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
        self._clock = clock
        self._inbox: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self._room = threading.Semaphore(MAX_UNREAD)
        self._thread: threading.Thread | None = None
        self._posting = threading.Lock()
        self._stopped = False
        self._closing_until: float | None = None
        self._beater = beater
        self._session: session.Session[tending.About] = session.Session(source)
        self._waiting = requests.Waiting(connect_timeout)
        self._tending = tending.Tending(worker_name(), self._session, beater, clock, self._on_report)

    # From any thread.

    @property
    def by_beater(self) -> bool:
        """Whether heartbeats come from the beater process."""
        return self._tending.by_beater

    def allocate(self, request: arbiter_service_pb2.AllocateRequest) -> Future[holding.Holding]:
        """Asks for a lease; call ``abandon`` with the future when it is no longer wanted."""
        asked = requests.Allocation(request, self._clock())
        self._post(functools.partial(self._begin, asked), asked.fail)
        return asked.future

    def preempt(self, request: arbiter_service_pb2.RequestPreemptionRequest) -> Future[preemption.Preemption]:
        """Asks for memory of others; call ``abandon`` with the future when it is no longer wanted."""
        asked = requests.Demand(request, self._clock())
        self._post(functools.partial(self._begin, asked), asked.fail)
        return asked.future

    def reserve(self, request: arbiter_service_pb2.ReserveKvRequest) -> Future[kv_reservations.Reserved]:
        """Asks for KV tokens; call ``abandon`` with the future when they are no longer wanted."""
        asked = requests.Reservation(request, self._clock())
        self._post(functools.partial(self._begin, asked), asked.fail)
        return asked.future

    def complete(self, reservation_id: str, actual_tokens: int, patience: float) -> Future[None]:
        """Returns reserved KV tokens. Gives up after ``patience`` seconds."""
        giving = requests.Completion(reservation_id, actual_tokens, until=self._clock() + patience)
        self._post(functools.partial(self._begin, giving), giving.fail)
        return giving.future

    def abandon(self, future: Awaited) -> None:
        """Makes sure that nothing is kept of a request that nobody waits for any more, here or at the arbiter."""
        if future.cancel():
            self._post(functools.partial(self._take_back, future), lambda _: None)
        else:
            future.add_done_callback(self._give_back)

    def release(self, lease_id: str, fence: int, patience: float) -> Future[bool]:
        """Gives a lease back; the answer says whether it had ended before. Gives up after ``patience`` seconds."""
        giving = requests.Return(lease_id, fence, until=self._clock() + patience)
        if (held := self._tending.find(lease_id)) is not None and held.fence == fence:
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

    def _on_report(self, held: holding.Holding) -> None:
        self._post(functools.partial(self._tending.notice, held), lambda _: None)

    def _give_back(self, future: Awaited) -> None:
        if not future.cancelled() and future.exception() is None:
            granted = future.result()
            # Memory that was taken from others belongs to the lease that asked, and goes back with it.
            if isinstance(granted, holding.Holding):
                self.release(granted.lease_id, granted.fence, CLOSE_PATIENCE_S)
            elif isinstance(granted, kv_reservations.Reserved):
                self.complete(granted.reservation_id, 0, CLOSE_PATIENCE_S)

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
        self._tending.judge()
        taken = 0
        while step is not None:
            step()
            taken += 1
            step = None if taken >= MAX_STEPS or self._inbox.empty() else self._inbox.get_nowait()
        self._act(self._clock())

    def _act(self, now: float) -> None:
        self._waiting.give_up(now, self._session.troubled_since, self._session.trouble)
        if self._session.is_silent(now, self._tending.interval()):
            self._session.close()
            self._lose_session(now, None)
        if self._session.is_open:
            for asked in self._waiting.ready(now, heard=self._session.is_heard):
                self._ask(asked)
            self._tending.say_due(now)
        elif (self._tending or self._waiting) and now >= self._session.open_at:
            self._session.open(now, self._post_response, self._post_end)
            self._tending.greet(now)
            for waiting in self._waiting:
                if not isinstance(waiting, requests.Demand):
                    self._ask(waiting)

    def _next_due(self) -> float | None:
        connected = self._session.is_open
        times: list[float | None] = [
            self._closing_until,
            self._tending.due(),
            self._waiting.due(connected=connected, troubled_since=self._session.troubled_since),
        ]
        if connected:
            times.append(self._session.silent_at(self._tending.interval()))
        elif self._tending or self._waiting:
            times.append(self._session.open_at)
        return keepalive.earliest(times)

    def _is_done(self) -> bool:
        if self._closing_until is None:
            return False
        return not self._waiting.returns or self._clock() >= self._closing_until

    def _begin_close(self) -> None:
        self._closing_until = self._clock() + CLOSE_PATIENCE_S
        self._waiting.fail_asked(errors.Cancelled("the client is closed"))
        for held in self._tending.end_all("RELEASED"):
            self._begin(requests.Return(held.lease_id, held.fence, until=self._closing_until))

    def _finish(self) -> None:
        self._session.close()
        # A reader that waits for room would wait for ever.
        self._room.release(MAX_UNREAD)
        while not self._inbox.empty():
            # A request that came too late is begun, so that it fails with the others.
            self._inbox.get_nowait()()
        for asked in self._waiting:
            asked.fail(errors.Cancelled("the client is closed"))
        self._tending.end_all("RELEASED" if self._closing_until is not None else "ABANDONED")

    # Requests.

    def _begin(self, asked: requests.Patient | requests.Back) -> None:
        if self._closing_until is not None and not isinstance(asked, requests.Giving):
            asked.fail(errors.Cancelled("the client is closed"))
        elif not self._waiting.begin(asked) or isinstance(asked, requests.Demand):
            # Refused already; or sent at the end of this turn, where the arbiter is known to listen.
            return
        elif self._session.is_open:
            self._ask(asked)

    def _ask(self, asked: requests.Patient | requests.Back) -> None:
        if isinstance(asked, requests.Giving):
            self._session.send(asked, _giving(asked))
            return
        asked.retry_at = None
        asked.sent_at = self._clock()
        if asked.first_sent_at is None:
            asked.first_sent_at = asked.sent_at
        if isinstance(asked, requests.Allocation):
            message = arbiter_service_pb2.SessionRequest(allocate=asked.message(asked.sent_at))
        elif isinstance(asked, requests.Reservation):
            message = arbiter_service_pb2.SessionRequest(reserve_kv=asked.message(asked.sent_at))
        else:
            message = arbiter_service_pb2.SessionRequest(request_preemption=asked.request)
        self._session.send(asked, message)

    def _take_back(self, future: Awaited) -> None:
        asked = self._waiting.find(future)
        # What is in flight stays until its answer, which may be a grant that has to be given back.
        if asked is None or self._session.take_back(asked):
            return
        if not (isinstance(asked, requests.Reservation) and asked.in_flight):
            self._waiting.done(asked)

    def _on_allocate(self, asked: requests.Allocation, answer: arbiter_service_pb2.AllocateResponse) -> None:
        self._waiting.done(asked)
        granted = self._tending.adopt(asked, answer)
        if not asked.deliver(granted):
            self.release(granted.lease_id, granted.fence, CLOSE_PATIENCE_S)

    def _on_reserve(self, asked: requests.Reservation, reserved: kv_reservations.Reserved) -> None:
        self._waiting.done(asked)
        if not asked.deliver(reserved):
            self.complete(reserved.reservation_id, 0, CLOSE_PATIENCE_S)

    # The session.

    def _post_response(self, number: int, response: arbiter_service_pb2.SessionResponse) -> None:
        self._room.acquire()
        self._inbox.put(functools.partial(self._on_response, number, response))

    def _post_end(self, number: int, error: errors.ArbiterClientError | None) -> None:
        self._inbox.put(functools.partial(self._on_end, number, error))

    def _on_end(self, number: int, error: errors.ArbiterClientError | None) -> None:
        if self._session.is_present(number):
            self._lose_session(self._clock(), error)

    def _lose_session(self, now: float, error: errors.ArbiterClientError | None) -> None:
        for about in self._session.ended(now, self._tending.interval(), error):
            if isinstance(about, beats.Beat):
                self._tending.on_lost(about)
        self._waiting.disconnected()
        if error is not None and error.code in _HOPELESS:
            self._waiting.fail_asked(error)

    def _on_response(self, number: int, response: arbiter_service_pb2.SessionResponse) -> None:
        self._room.release()
        if not self._session.is_present(number):
            return
        now = self._clock()
        self._tending.heard(now)
        about = self._session.answered(now, response.correlation_id)
        kind = response.WhichOneof("response")
        if kind == "error":
            self._on_error(about, errors.from_session_error(response.error))
        elif kind == "quality":
            self._tending.on_quality(response.quality)
        elif isinstance(about, beats.Beat) and kind == "heartbeat":
            self._tending.on_heartbeat(about, response.heartbeat)
        elif isinstance(about, requests.Allocation) and kind == "allocate":
            self._on_allocate(about, response.allocate)
        elif isinstance(about, requests.Demand) and kind == "request_preemption":
            self._waiting.done(about)
            tokens = about.request.WhichOneof("need") == "kv_tokens"
            about.deliver(preemption.from_message(response.request_preemption, tokens=tokens))
        elif isinstance(about, requests.Reservation) and kind == "reserve_kv":
            self._on_reserve(about, kv_reservations.from_message(response.reserve_kv))
        elif isinstance(about, requests.Completion) and kind == "complete_kv":
            self._waiting.done(about)
            about.deliver(None)
        elif isinstance(about, requests.Return) and kind == "release":
            self._waiting.done(about)
            about.deliver(response.release.already_released)

    def _on_error(self, about: tending.About, error: errors.ArbiterClientError) -> None:
        if isinstance(about, beats.Beat):
            self._tending.on_refused(about, error)
        elif about is not None:
            self._waiting.refused(about, error, self._clock())
        else:
            self._tending.on_subscription_refused()


def _giving(asked: requests.Back) -> arbiter_service_pb2.SessionRequest:
    """The message that gives something back."""
    if isinstance(asked, requests.Return):
        release = arbiter_service_pb2.ReleaseRequest(lease_id=asked.lease_id, fence=asked.fence)
        return arbiter_service_pb2.SessionRequest(release=release)
    complete = arbiter_service_pb2.CompleteKvRequest(
        reservation_id=asked.reservation_id, actual_tokens=asked.actual_tokens
    )
    return arbiter_service_pb2.SessionRequest(complete_kv=complete)
