"""One bidirectional stream for everything a worker says and hears."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Coroutine

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter_sidecar import errors
from arbiter_sidecar.rpc import convert, handlers, status
from arbiter_sidecar.rpc.calls import Calls
from arbiter_sidecar.rpc.outlet import Outlet
from arbiter_sidecar.rpc.status import Context
from arbiter_sidecar.rpc.subscriber import Subscriber
from arbiter_sidecar.rpc.subscriptions import Subscriptions

#: Answers that may wait to be written; a worker that does not read them is not read from either.
MAX_UNSENT = 256
#: Messages that may wait for their answer at once in one session.
MAX_WAITING = 64


class SessionMoved(errors.ArbiterError):
    """Another session of the same worker took over."""

    code = "ABORTED"
    reason = "SESSION_MOVED"


class Sessions:
    """The open sessions by worker. The highest incarnation wins; of equals, the newest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[Session, None] = {}
        self._by_worker: dict[str, tuple[int, Session]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, session: Session) -> None:
        """Counts a session in. Raises QueueFull."""
        if len(self._open) >= self._limit:
            raise errors.QueueFull("too many sessions are open")
        self._open[session] = None

    def leave(self, session: Session) -> None:
        """Counts a session out."""
        self._open.pop(session, None)
        if session.worker and self._by_worker.get(session.worker, (0, None))[1] is session:
            del self._by_worker[session.worker]

    def claim(self, session: Session, worker: str, incarnation: int) -> None:
        """A session speaks for this worker from now on, and for no other; the one that did before is told so.

        Raises:
            SessionMoved: A higher incarnation of the worker has a session.
        """
        held = self._by_worker.get(worker)
        if held is not None and held[1] is not session:
            if held[0] > incarnation:
                raise SessionMoved(worker=worker)
            held[1].move_away()
        if session.worker not in ("", worker):
            del self._by_worker[session.worker]
        session.worker = worker
        self._by_worker[worker] = (incarnation, session)

    def close(self) -> None:
        """Ends every session when what it has to say is written."""
        for session in self._open:
            session.finish()


class Session:
    """Reads, answers and pushes on one stream.

    Attributes:
        worker: The worker it speaks for; empty before its first heartbeat names one.
    """

    def __init__(self, calls: Calls, subscriptions: Subscriptions, sessions: Sessions, context: Context) -> None:
        self._calls = calls
        self._subscriptions = subscriptions
        self._sessions = sessions
        self._subscriber = Subscriber()
        self._outlet = Outlet(context, self._give_up)
        self._alarm: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None
        self._unsent: deque[pb.SessionResponse] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None
        self._finished = False
        self.worker = ""

    async def serve(self, requests: AsyncIterator[bytes]) -> None:
        """Serves until the worker has nothing more to say, or the server ends it.

        Raises:
            ArbiterError: The session as a whole failed.
        """
        self._sessions.enter(self)
        self._reading = reading = asyncio.create_task(self._read(requests))
        writing = asyncio.create_task(self._write())
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                await self._wind_up(reading, writing)
        finally:
            self._sessions.leave(self)
            self._subscriptions.unsubscribe(self._subscriber)
            if self._alarm is not None:
                self._alarm.cancel()
            tasks = (reading, writing, *self._waiting)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure
        writing.result()

    async def _wind_up(self, reading: asyncio.Task[None], writing: asyncio.Task[None]) -> None:
        """Nothing more comes up: answers what waits for its answer, unless the session has failed; then all is said."""
        if self._failure is None:
            self._failure = reading.exception()
        if self._failure is None:
            # The writer ends early when the session moves away; then nobody waits for the answers any more.
            answers = asyncio.gather(*self._waiting)
            await asyncio.wait((answers, writing), return_when=asyncio.FIRST_COMPLETED)
        self.finish()
        # A write that is under way is waited for: gRPC could not end a call whose write was called off.
        await asyncio.wait((writing,))

    def move_away(self) -> None:
        """Another session speaks for the worker now."""
        if self._failure is None:
            self._failure = SessionMoved(worker=self.worker)
        self.finish()

    def finish(self) -> None:
        """Ends the session once everything is written."""
        self._finished = True
        self._subscriber.finish()

    # Down -------------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        subscriber = self._subscriber
        while True:
            await subscriber.news.wait()
            subscriber.news.clear()
            while self._unsent:
                response = self._unsent.popleft()
                self._room.set()
                await self._outlet.write(response.SerializeToString())
            if self._failure is not None:
                return
            raw = self._subscriptions.message(subscriber)
            if raw is not None:
                await self._outlet.write(_pushed(raw))
                subscriber.sent()
            if self._finished and not (self._unsent or subscriber.pending):
                return
            self._wake_at(subscriber.look_at)

    def _wake_at(self, at: float) -> None:
        """Has the writer look again then, whatever happens in between; never, where ``at`` is infinite."""
        if self._alarm is not None:
            if self._alarm.when() == at:
                return
            self._alarm.cancel()
            self._alarm = None
        if at < math.inf:
            self._alarm = asyncio.get_running_loop().call_at(at, self._subscriber.news.set)

    def _give_up(self, error: errors.SlowSubscriber) -> None:
        """The worker takes no messages: it is not listened to any more, and nothing is kept for it."""
        self._failure = error
        self._subscriptions.unsubscribe(self._subscriber)
        for task in self._waiting:
            task.cancel()
        self._unsent.clear()
        assert self._reading is not None
        self._reading.cancel()

    def _send(self, response: pb.SessionResponse) -> None:
        self._unsent.append(response)
        if len(self._unsent) >= MAX_UNSENT:
            self._room.clear()
        self._subscriber.news.set()

    # Up ---------------------------------------------------------------------------------------------------------------

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        async for raw in requests:
            await self._room.wait()
            if self._failure is not None:
                # Another session speaks for the worker; what this one still says must not take it back.
                return
            request = handlers.parse(pb.SessionRequest, raw)
            try:
                self._take(request)
            except errors.ArbiterError as error:
                self._fail(request.correlation_id, error)
            except Exception as error:
                self._fail(request.correlation_id, handlers.surprise(error, "SessionRequest"))

    def _take(self, request: pb.SessionRequest) -> None:
        correlation_id, kind = request.correlation_id, request.WhichOneof("request")
        if kind == "heartbeat":
            beat = self._calls.beat(request.heartbeat)
            if beat.worker:
                self._sessions.claim(self, beat.worker, beat.incarnation)
            answer = self._calls.heartbeat(beat)
            if correlation_id:
                self._send(pb.SessionResponse(correlation_id=correlation_id, heartbeat=answer))
        elif kind == "allocate":
            self._begin(correlation_id, self._allocate(request.allocate))
        elif kind == "request_preemption":
            self._begin(correlation_id, self._preempt(request.request_preemption))
        elif kind == "reserve_kv":
            self._begin(correlation_id, self._reserve(request.reserve_kv))
        elif kind == "complete_kv":
            completed = self._calls.complete(request.complete_kv)
            if correlation_id:
                self._send(pb.SessionResponse(correlation_id=correlation_id, complete_kv=completed))
        elif kind == "cancel":
            task = self._tasks.get(request.cancel.correlation_id)
            if task is not None:
                task.cancel()
        elif kind == "release":
            released = self._calls.release(request.release)
            if correlation_id:
                self._send(pb.SessionResponse(correlation_id=correlation_id, release=released))
        elif kind == "subscribe":
            self._subscribe(correlation_id, request.subscribe)
        else:
            raise errors.InvalidRequest([("request", "is required")])

    def _begin(self, correlation_id: int, work: Coroutine[None, None, pb.SessionResponse]) -> None:
        """Lets something take its time without holding up what follows."""
        if len(self._waiting) >= MAX_WAITING:
            work.close()
            raise errors.QueueFull(f"{MAX_WAITING} messages of this session wait already")
        task = asyncio.create_task(self._answer(correlation_id, work))
        self._waiting.add(task)
        self._tasks[correlation_id] = task
        task.add_done_callback(lambda done: self._settled(correlation_id, done))

    def _settled(self, correlation_id: int, task: asyncio.Task[None]) -> None:
        self._waiting.discard(task)
        if self._tasks.get(correlation_id) is task:
            del self._tasks[correlation_id]

    async def _answer(self, correlation_id: int, work: Coroutine[None, None, pb.SessionResponse]) -> None:
        try:
            response = await work
        except asyncio.CancelledError:
            self._fail(correlation_id, errors.Cancelled())
            raise
        except errors.ArbiterError as error:
            self._fail(correlation_id, error)
        except Exception as error:
            self._fail(correlation_id, handlers.surprise(error, "SessionRequest"))
        else:
            response.correlation_id = correlation_id
            self._send(response)

    async def _allocate(self, message: pb.AllocateRequest) -> pb.SessionResponse:
        answer = await self._calls.allocate(message)
        lease = self._calls.runtime.books.leases.get(answer.lease.lease_id)
        if lease is not None and lease.alive:
            self._subscriptions.join(self._subscriber, lease.lease_id)
        return pb.SessionResponse(allocate=answer)

    async def _preempt(self, message: pb.RequestPreemptionRequest) -> pb.SessionResponse:
        return pb.SessionResponse(request_preemption=await self._calls.preempt(message))

    async def _reserve(self, message: pb.ReserveKvRequest) -> pb.SessionResponse:
        return pb.SessionResponse(reserve_kv=await self._calls.reserve(message))

    def _subscribe(self, correlation_id: int, message: pb.StreamQualityRequest) -> None:
        lease_ids = convert.subscription(message)
        self._subscriptions.subscribe(
            self._subscriber, lease_ids, resume=(message.resume_epoch, message.resume_revision)
        )
        raw = self._subscriptions.message(self._subscriber)
        quality = handlers.parse(pb.StreamQualityResponse, raw or b"")
        self._send(pb.SessionResponse(correlation_id=correlation_id, quality=quality))

    def _fail(self, correlation_id: int, error: errors.ArbiterError) -> None:
        self._send(pb.SessionResponse(correlation_id=correlation_id, error=status.session_error(error)))


#: Tag of ``SessionResponse.quality`` on the wire: the field's number and the type of a nested message.
_QUALITY_TAG = bytes([pb.SessionResponse.QUALITY_FIELD_NUMBER << 3 | 2])


def _pushed(raw: bytes) -> bytes:
    """A serialised ``SessionResponse`` around a serialised ``StreamQualityResponse``."""
    length, varint = len(raw), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return _QUALITY_TAG + bytes(varint) + raw
