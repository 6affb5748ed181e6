"""An arbiter in memory, for the tests of workers: no sockets, no server, no policy.

    with arbiter_client.testing.InMemoryArbiter(capacity="8GiB") as arbiter:
        with arbiter.blocking_client() as client, client.lease("w", memory="2GiB", workload_type="llm") as lease:
            revision = arbiter.push(lease.lease_id, quality=0.5)
            ...
            assert arbiter.applied(lease.lease_id, revision=revision, timeout=5).outcome == "APPLIED"

The clients, leases, threads and timings are the real ones; only what is behind the transport is replaced. It grants
what fits at full size and says only what the test tells it to say.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc

from arbiter.v1 import arbiter_service_pb2, lease_pb2, state_service_pb2
from arbiter_client import aio, amounts, blocking, connection, errors, keeper, memory_books

if TYPE_CHECKING:
    from types import TracebackType

    from arbiter_client import transport

#: Responses that may wait for a client; one that lets more pile up is cut off.
MAX_UNDELIVERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a worker last said about a lease.

    Attributes:
        revision: Newest revision it has dealt with; 0 for none.
        outcome: ``APPLIED``, ``DEFERRED``, ``REFUSED``, or empty.
        achievable_quality: With REFUSED, what it can reach.
        used_memory_bytes: What it says it uses; ``None`` before it said so.
    """

    revision: int = 0
    outcome: str = ""
    achievable_quality: float | None = None
    used_memory_bytes: int | None = None


class _Link:
    """One session: requests are answered where they are sent, answers arrive on a thread of its own."""

    def __init__(self, arbiter: InMemoryArbiter, on_response: transport.OnResponse, on_end: transport.OnEnd) -> None:
        self._arbiter = arbiter
        self._on_response = on_response
        self._on_end = on_end
        self._answers: queue.SimpleQueue[arbiter_service_pb2.SessionResponse | None] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._deliver, name="arbiter-in-memory", daemon=True).start()

    def send(self, request: arbiter_service_pb2.SessionRequest) -> bool:
        """Answers a message."""
        if self._closed:
            return False
        self._arbiter.answer(self, request)
        return True

    def tell(self, response: arbiter_service_pb2.SessionResponse) -> None:
        """Queues an answer or a push."""
        if self._answers.qsize() >= MAX_UNDELIVERED:
            self.close()
        if not self._closed:
            self._answers.put(response)

    def close(self) -> None:
        """Ends the session."""
        self._closed = True
        self._answers.put(None)

    def _deliver(self) -> None:
        for response in iter(self._answers.get, None):
            self._on_response(response)
        self._arbiter.forget(self)
        self._on_end(None)


class _Transport:
    """The seam, with an arbiter in memory behind it."""

    address = "in-memory"

    def __init__(self, arbiter: InMemoryArbiter) -> None:
        self._arbiter = arbiter

    @property
    def calls(self) -> transport.Calls:
        """The calls beside the session."""
        return _Calls(self._arbiter)

    def open(self, on_response: transport.OnResponse, on_end: transport.OnEnd) -> _Link:
        """Begins a session."""
        return self._arbiter.connect(on_response, on_end)

    def close(self) -> None:
        """There is nothing to let go of."""


class _Calls:
    """The picture is real; reasons and events are a matter of policy, which an in-memory arbiter has none of."""

    def __init__(self, arbiter: InMemoryArbiter) -> None:
        self._arbiter = arbiter

    def get_state(
        self, request: state_service_pb2.GetStateRequest, timeout: float
    ) -> state_service_pb2.GetStateResponse:
        """The picture."""
        return self._arbiter.state()

    def explain(self, request: state_service_pb2.ExplainRequest, timeout: float) -> state_service_pb2.ExplainResponse:
        """Not served."""
        raise errors.NotServed("the in-memory arbiter has no reasons")

    def watch_events(
        self, request: state_service_pb2.WatchEventsRequest
    ) -> transport.Stream[state_service_pb2.WatchEventsResponse]:
        """Not served."""
        raise errors.NotServed("the in-memory arbiter has no events")

    def stream_quality(
        self, request: arbiter_service_pb2.StreamQualityRequest
    ) -> transport.Stream[arbiter_service_pb2.StreamQualityResponse]:
        """Not served."""
        raise errors.NotServed("the in-memory arbiter pushes over sessions only")


class InMemoryArbiter:
    """Grants what fits and says what the test tells it to say. Methods may be called from any thread."""

    def __init__(self, capacity: int | str = "8GiB", *, ttl: float = 15.0) -> None:
        """Begins with one empty device called "memory".

        Args:
            capacity: Bytes of it, or a text such as ``"8GiB"``.
            ttl: Time to live of leases that ask for none, in seconds.

        Raises:
            ValueError: An argument cannot be read.
        """
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._books = memory_books.Books(amounts.parse_bytes(capacity), amounts.parse_seconds(ttl))
        self._links: list[_Link] = []
        self._refusals: deque[str] = deque()
        self._silent = False

    # What a test does.

    def client(self) -> aio.Client:
        """A new asyncio client of this arbiter."""
        return aio.Client(self._connection())

    def blocking_client(self) -> blocking.BlockingClient:
        """A new blocking client of this arbiter."""
        return blocking.BlockingClient(self._connection())

    def push(
        self,
        lease_id: str,
        *,
        quality: float | None = None,
        memory_limit_bytes: int | str | None = None,
        kv_token_budget: int | None = None,
        reclaim: lease_pb2.Reclaim | None = None,
        reason: lease_pb2.DirectiveReason.ValueType = lease_pb2.DirectiveReason.DIRECTIVE_REASON_PRESSURE,
    ) -> int:
        """Sends a new directive and returns its revision; what is not given stays as it was, but a reclaim does not.

        Raises:
            LeaseNotFound: No such living lease.
            ValueError: A quality outside [0, 1], or an amount that cannot be read.
        """
        if quality is not None and not 0.0 <= quality <= 1.0:
            raise ValueError(f"quality {quality} is not in [0, 1]")
        with self._lock:
            directive = self._books.direct(lease_id, reason)
            if quality is not None:
                directive.quality = quality
            if memory_limit_bytes is not None:
                directive.memory_limit_bytes = amounts.parse_bytes(memory_limit_bytes)
            if kv_token_budget is not None:
                directive.kv_token_budget = kv_token_budget
            if reclaim is not None:
                directive.reclaim.CopyFrom(reclaim)
            self._tell_all(self._books.quality(directives=[directive]))
            return directive.revision

    def end(self, lease_id: str, reason: str = "REVOKED") -> None:
        """Ends a lease and tells its holder; ``reason`` as in ``EndReason``, without its prefix.

        Raises:
            LeaseNotFound: No such living lease.
            ValueError: No such reason.
        """
        why = lease_pb2.EndReason.Value("END_REASON_" + reason)
        with self._lock:
            self._books.end(lease_id, why)
            ended = arbiter_service_pb2.EndedLease(lease_id=lease_id, end_reason=why)
            self._tell_all(self._books.quality(ended=[ended]))
            self._changed.notify_all()

    def applied(self, lease_id: str, *, revision: int = 0, timeout: float = 0.0) -> Applied:
        """What the worker last said about the lease, ended ones included.

        Args:
            lease_id: The lease.
            revision: Wait until the worker has said something about this revision or a later one.
            timeout: How long to wait, in seconds.

        Raises:
            LeaseNotFound: No such lease.
            TimeoutError: It said nothing in time.
        """
        with self._lock:
            if not self._changed.wait_for(lambda: self._books.said(lease_id).applied_revision >= revision, timeout):
                raise TimeoutError(f"nothing was said about revision {revision} of {lease_id} in {timeout} s")
            said = self._books.said(lease_id)
        return Applied(
            revision=said.applied_revision,
            outcome=""
            if not said.outcome
            else arbiter_service_pb2.ReportOutcome.Name(said.outcome).removeprefix("REPORT_OUTCOME_"),
            achievable_quality=said.achievable_quality if said.HasField("achievable_quality") else None,
            used_memory_bytes=said.used_memory_bytes if said.HasField("used_memory_bytes") else None,
        )

    def refuse_next(self, reason: str) -> None:
        """Refuses the next request for a lease with ``reason``, such as ``"INSUFFICIENT_MEMORY"``.

        Raises:
            ValueError: No such reason.
        """
        if reason not in errors.BY_REASON:
            raise ValueError(f"{reason!r} is not a reason")
        with self._lock:
            self._refusals.append(reason)

    def silence(self) -> None:
        """Stops answering heartbeats, so that leases run out; everything else is still answered."""
        with self._lock:
            self._silent = True

    def speak(self) -> None:
        """Answers heartbeats again."""
        with self._lock:
            self._silent = False

    def disconnect(self) -> None:
        """Ends every session; clients come back by themselves."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()

    def state(self) -> state_service_pb2.GetStateResponse:
        """The picture: one device and the living leases."""
        with self._lock:
            return self._books.state()

    def close(self) -> None:
        """Ends every session. Clients are closed by whoever asked for them."""
        self.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # What a client's session does.

    def connect(self, on_response: transport.OnResponse, on_end: transport.OnEnd) -> _Link:
        """Begins a session."""
        link = _Link(self, on_response, on_end)
        with self._lock:
            self._links.append(link)
        return link

    def forget(self, link: _Link) -> None:
        """A session has ended."""
        with self._lock:
            if link in self._links:
                self._links.remove(link)

    def answer(self, link: _Link, request: arbiter_service_pb2.SessionRequest) -> None:
        """Answers one message of a session."""
        with self._lock:
            kind = request.WhichOneof("request")
            if kind == "heartbeat" and self._silent:
                return
            response = arbiter_service_pb2.SessionResponse(correlation_id=request.correlation_id)
            try:
                if kind == "heartbeat":
                    response.heartbeat.CopyFrom(self._books.renew(request.heartbeat))
                elif kind == "allocate":
                    response.allocate.CopyFrom(self._grant(request.allocate))
                elif kind == "release":
                    response.release.CopyFrom(self._books.release(request.release))
                elif kind == "subscribe":
                    response.quality.CopyFrom(self._books.snapshot(request.subscribe))
                else:
                    raise errors.NotServed(f"the in-memory arbiter does not serve {kind}")
            except errors.ArbiterClientError as error:
                response.error.CopyFrom(_as_message(error))
            link.tell(response)
            self._changed.notify_all()

    def _grant(self, request: arbiter_service_pb2.AllocateRequest) -> arbiter_service_pb2.AllocateResponse:
        if self._refusals:
            reason = self._refusals.popleft()
            raise errors.BY_REASON[reason](f"the test asked for {reason}")
        return self._books.grant(request)

    def _tell_all(self, message: arbiter_service_pb2.StreamQualityResponse) -> None:
        for link in self._links:
            link.tell(arbiter_service_pb2.SessionResponse(quality=message))

    def _connection(self) -> connection.Connection:
        source = _Transport(self)
        return connection.Connection(source, keeper.Keeper(source, connect_timeout=connection.CONNECT_TIMEOUT_S))


def _as_message(error: errors.ArbiterClientError) -> arbiter_service_pb2.Error:
    number = next((code.value[0] for code in grpc.StatusCode if code is error.code), 2)
    return arbiter_service_pb2.Error(
        code=number, reason=error.reason, message=error.message, metadata=dict(error.metadata)
    )
