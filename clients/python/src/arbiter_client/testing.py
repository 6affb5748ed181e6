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

import secrets
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc

from arbiter.v1 import arbiter_service_pb2, lease_pb2, state_service_pb2
from arbiter_client import (
    aio,
    amounts,
    blocking,
    connection,
    errors,
    keeper,
    memory_books,
    memory_reservations,
    memory_transport,
    preemption,
    terms,
)

if TYPE_CHECKING:
    from types import TracebackType

    from arbiter_client import transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """What a worker said about an order to give memory back.

    Attributes:
        reclaim_id: The order.
        will_free_bytes: Bytes it said it is going to free; 0 when it said none.
        eta: When it expected to be done, in seconds from then; ``None`` when it did not say.
        freed_bytes: Bytes it said it has freed; 0 when it said none.
        freed_tokens: KV tokens it said it has freed; 0 when it said none.
        done: It said that nothing more will be freed.
    """

    reclaim_id: str
    will_free_bytes: int = 0
    eta: float | None = None
    freed_bytes: int = 0
    freed_tokens: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a worker last said about a lease.

    Attributes:
        revision: Newest revision it has dealt with; 0 for none.
        outcome: ``APPLIED``, ``DEFERRED``, ``REFUSED``, or empty.
        achievable_quality: With REFUSED, what it can reach.
        used_memory_bytes: What it says it uses; ``None`` before it said so.
        kv: What it says of its KV cache; ``None`` before it said so.
    """

    revision: int = 0
    outcome: str = ""
    achievable_quality: float | None = None
    used_memory_bytes: int | None = None
    kv: arbiter_service_pb2.KvUsage | None = None


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
        self._reservations = memory_reservations.Reservations(self._books)
        self._links: list[memory_transport.Link] = []
        self._refusals: deque[str] = deque()
        self._preemptions: deque[arbiter_service_pb2.RequestPreemptionResponse] = deque()
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
        """Sends a new directive and returns its revision; what is not given stays as it was.

        That goes for a reclaim too, until the worker says that it is done or it is cancelled.

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
                self._books.order(directive, reclaim)
            self._tell_all(self._books.quality(directives=[directive]))
            return directive.revision

    def reclaim(
        self,
        lease_id: str,
        *,
        memory_bytes: int | str,
        grace: float = 2.0,
        level: lease_pb2.ReclaimLevel.ValueType = lease_pb2.ReclaimLevel.RECLAIM_LEVEL_SOFT,
    ) -> str:
        """Orders a worker to give memory back, as a preemption does, and returns the id of the order.

        The directive that carries it has a memory limit lower by ``memory_bytes``. Nothing happens when ``grace`` is
        over; ``end`` plays the revocation.

        Args:
            lease_id: The lease.
            memory_bytes: Bytes, or a text such as ``"1GiB"``.
            grace: Seconds that the worker is told it has.
            level: Urgency.

        Raises:
            LeaseNotFound: No such living lease.
            ValueError: An argument cannot be read, or is more than the memory limit.
        """
        order = lease_pb2.Reclaim(
            reclaim_id=secrets.token_hex(4),
            memory_bytes=amounts.parse_bytes(memory_bytes),
            grace=terms.duration(grace),
            level=level,
        )
        with self._lock:
            left = self._books.limit(lease_id) - order.memory_bytes
        if left < 0:
            raise ValueError(f"{order.memory_bytes} bytes are {-left} more than the memory limit")
        self.push(
            lease_id,
            memory_limit_bytes=left,
            reclaim=order,
            reason=lease_pb2.DirectiveReason.DIRECTIVE_REASON_PREEMPTION,
        )
        return order.reclaim_id

    def cancel_reclaim(self, lease_id: str) -> None:
        """Tells a worker that what it was last ordered to give back is no longer wanted.

        Raises:
            LeaseNotFound: No such living lease.
            ValueError: It has no open order.
        """
        with self._lock:
            self._tell_all(self._books.quality(reclaim_cancelled=[self._books.cancel_reclaim(lease_id)]))

    def acknowledged(self, lease_id: str, *, done: bool = False, timeout: float = 0.0) -> Acknowledged:
        """What the worker said about the last order to give memory back, for ended leases too.

        Args:
            lease_id: The lease.
            done: Wait until it said that it is done, and not only that it has begun.
            timeout: How long to wait, in seconds.

        Raises:
            LeaseNotFound: No such lease.
            TimeoutError: It did not say so in time.
        """
        with self._lock:
            if not self._changed.wait_for(lambda: self._has_acknowledged(lease_id, done=done), timeout):
                what = "done" if done else "begun"
                raise TimeoutError(f"nothing was said to be {what} about an order for {lease_id} in {timeout} s")
            ack = self._books.acknowledgement(lease_id)
        return Acknowledged(
            reclaim_id=ack.reclaim_id,
            will_free_bytes=ack.will_free_bytes,
            eta=ack.eta.ToNanoseconds() / 1e9 if ack.HasField("eta") else None,
            freed_bytes=ack.freed_bytes,
            freed_tokens=ack.freed_tokens,
            done=ack.done,
        )

    def answer_next_preemption(self, answer: preemption.Preemption) -> None:
        """Answers the next preemption with ``answer``; one for which no answer was given is refused with ``NO_DONOR``.

        Changes no lease: ``push`` tells the one that asked what it may use, ``reclaim`` the donors what to give.

        Raises:
            ValueError: An outcome that the protocol does not have.
        """
        message = preemption.to_message(answer)
        with self._lock:
            self._preemptions.append(message)

    def end(self, lease_id: str, reason: str = "REVOKED") -> None:
        """Ends a lease and tells its holder; ``reason`` as in ``EndReason``, without its prefix.

        Raises:
            LeaseNotFound: No such living lease.
            ValueError: No such reason.
        """
        why = lease_pb2.EndReason.Value("END_REASON_" + reason)
        with self._lock:
            self._books.end(lease_id, why)
            self._reservations.end(lease_id)
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
            said = arbiter_service_pb2.HeartbeatRequest.Report()
            said.CopyFrom(self._books.said(lease_id))
        return Applied(
            revision=said.applied_revision,
            outcome=""
            if not said.outcome
            else arbiter_service_pb2.ReportOutcome.Name(said.outcome).removeprefix("REPORT_OUTCOME_"),
            achievable_quality=said.achievable_quality if said.HasField("achievable_quality") else None,
            used_memory_bytes=said.used_memory_bytes if said.HasField("used_memory_bytes") else None,
            kv=said.kv if said.HasField("kv") else None,
        )

    def reserved_tokens(self, lease_id: str) -> int:
        """KV tokens that are reserved for a lease now; 0 for one that has ended, or never was.

        A reservation is granted at once where it fits the budget that was pushed last, else refused at once.
        """
        with self._lock:
            return self._reservations.reserved(lease_id)

    def used_tokens(self, reservation_id: str) -> int:
        """KV tokens that the worker said it has used of a reservation that it has returned.

        Raises:
            ReservationNotFound: It has not returned it.
        """
        with self._lock:
            return self._reservations.used(reservation_id)

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

    def connect(self, on_response: transport.OnResponse, on_end: transport.OnEnd) -> memory_transport.Link:
        """Begins a session."""
        link = memory_transport.Link(self, on_response, on_end)
        with self._lock:
            self._links.append(link)
        return link

    def forget(self, link: memory_transport.Link) -> None:
        """A session has ended."""
        with self._lock:
            if link in self._links:
                self._links.remove(link)

    def answer(self, link: memory_transport.Link, request: arbiter_service_pb2.SessionRequest) -> None:
        """Answers one message of a session."""
        kind = request.WhichOneof("request")
        with self._lock:
            # Everything is answered where it is sent, so nothing is left that could be taken back.
            if kind == "cancel" or (kind == "heartbeat" and self._silent):
                return
            try:
                response = self._answered(request)
            except errors.ArbiterClientError as error:
                response = arbiter_service_pb2.SessionResponse(error=_as_message(error))
            response.correlation_id = request.correlation_id
            link.tell(response)
            self._changed.notify_all()

    def _answered(self, request: arbiter_service_pb2.SessionRequest) -> arbiter_service_pb2.SessionResponse:
        match request.WhichOneof("request"):
            case "heartbeat":
                return arbiter_service_pb2.SessionResponse(heartbeat=self._books.renew(request.heartbeat))
            case "allocate":
                return arbiter_service_pb2.SessionResponse(allocate=self._grant(request.allocate))
            case "release":
                released = self._books.release(request.release)
                self._reservations.end(request.release.lease_id)
                return arbiter_service_pb2.SessionResponse(release=released)
            case "subscribe":
                return arbiter_service_pb2.SessionResponse(quality=self._books.snapshot(request.subscribe))
            case "request_preemption":
                return arbiter_service_pb2.SessionResponse(request_preemption=self._preempt())
            case "reserve_kv":
                return arbiter_service_pb2.SessionResponse(reserve_kv=self._reservations.reserve(request.reserve_kv))
            case "complete_kv":
                return arbiter_service_pb2.SessionResponse(complete_kv=self._reservations.complete(request.complete_kv))
            case kind:
                raise errors.NotServed(f"the in-memory arbiter does not serve {kind}")

    def _preempt(self) -> arbiter_service_pb2.RequestPreemptionResponse:
        if not self._preemptions:
            raise errors.NoDonor("the test gave no answer_next_preemption")
        return self._preemptions.popleft()

    def _has_acknowledged(self, lease_id: str, *, done: bool) -> bool:
        ack = self._books.acknowledgement(lease_id)
        return bool(ack.reclaim_id) and (ack.done or not done)

    def _grant(self, request: arbiter_service_pb2.AllocateRequest) -> arbiter_service_pb2.AllocateResponse:
        if self._refusals:
            reason = self._refusals.popleft()
            raise errors.BY_REASON[reason](f"the test asked for {reason}")
        return self._books.grant(request)

    def _tell_all(self, message: arbiter_service_pb2.StreamQualityResponse) -> None:
        for link in self._links:
            link.tell(arbiter_service_pb2.SessionResponse(quality=message))

    def _connection(self) -> connection.Connection:
        source = memory_transport.Transport(self)
        return connection.Connection(source, keeper.Keeper(source, connect_timeout=connection.CONNECT_TIMEOUT_S))


def _as_message(error: errors.ArbiterClientError) -> arbiter_service_pb2.Error:
    number = next((code.value[0] for code in grpc.StatusCode if code is error.code), 2)
    return arbiter_service_pb2.Error(
        code=number, reason=error.reason, message=error.message, metadata=dict(error.metadata)
    )
