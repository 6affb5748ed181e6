"""The client for programs without an event loop."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from arbiter.v1 import state_service_pb2
from arbiter_client import connection, errors, kv_reservations, lease, preemption, terms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from types import TracebackType
    from typing import Unpack

    import grpc

    from arbiter.v1 import arbiter_service_pb2
    from arbiter_client.directive import Directive
    from arbiter_client.holding import Holding
    from arbiter_client.keeper import Keeper


class BlockingLease(lease.HeldLease):
    """A lease. Leaving the ``with`` block gives it back."""

    __slots__ = ("_keeper",)

    def __init__(self, held: Holding, keeper: Keeper) -> None:
        super().__init__(held)
        self._keeper = keeper

    def directives(self, timeout: float | None = None) -> Iterator[Directive]:
        """The present directive at once, then each newer one; a slow reader gets the newest only.

        An open reclaim is part of every directive until it is done, so none is missed by a slow reader; one that is no
        longer wanted shows as the same directive without it. Ends when the lease is over. With ``timeout``, ends also
        when nothing newer has come for that many seconds; another iterator then begins with the present one again.
        """
        changed = threading.Event()
        forget = self._held.listen(changed.set)
        seen: Directive | None = None
        try:
            while not self._held.lost:
                changed.clear()
                present = self._held.directive
                if present is not seen:
                    seen = present
                    yield present
                elif not self._held.lost and not changed.wait(timeout):
                    return
        finally:
            forget()

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Waits until the lease is over; False when it still stands after ``timeout`` seconds."""
        changed = threading.Event()
        forget = self._held.listen(changed.set)
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._held.lost:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                changed.wait(left)
                changed.clear()
            return True
        finally:
            forget()

    def preempt(self, **need: Unpack[preemption.Need]) -> preemption.Preemption:
        """Takes memory or KV tokens from less important leases for this one; see ``Need`` for the arguments.

        Lasts until enough was confirmed free or time is up. What was confirmed may be used when the lease's memory
        limit or token budget has grown by it: with the next directive, which comes at about the same time. When it is
        interrupted meanwhile, those who were asked are let off.

        Raises:
            ValueError: An argument cannot be read.
            NoDonor: Nobody may be asked, or too little came free in time.
            QueueFull: Another preemption is under way on the device.
            ArbiterClientError: Refused for another reason, or nobody answers. After ``ArbiterUnreachable`` the memory
                may have been taken all the same; the lease's directive shows it.
        """
        return preempt(self._keeper, preemption.message(need, lease_id=self.lease_id))

    def reserve_kv(
        self, tokens: int, *, wait: float | timedelta = 0.0, request_id: str | None = None
    ) -> BlockingKvReservationRequest:
        """Describes a reservation of KV tokens; entering it waits for them, leaving it returns them.

        They count against the engine's token budget, and as demand while it waits for them, so that an idle engine
        wakes. At most 64 of one client may wait at once.

        Args:
            tokens: How many, at least 1.
            wait: Seconds to wait for them, or a ``timedelta``; 0: not at all.
            request_id: Makes a retry across restarts of the worker safe; absent: a new one.
        """
        return BlockingKvReservationRequest(self._keeper, self, tokens, wait, request_id)

    def release(self) -> bool:
        """Gives the lease back; True when it had ended before. From the call on it counts as lost.

        Raises:
            ArbiterUnreachable: The arbiter did not answer for 5 s; the time to live then ends the lease.
        """
        if self.lost:
            return True
        return self._keeper.release(self.lease_id, self.fence, connection.RELEASE_PATIENCE_S).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.release()
        except (errors.ArbiterUnreachable, errors.LeaseNotFound, errors.Fenced, errors.Cancelled):
            # It is over for this worker in each of these cases, and the block's own error matters more.
            return


class BlockingKvReservation(kv_reservations.HeldReservation):
    """Reserved KV tokens. Leaving the ``with`` block returns them."""

    __slots__ = ()

    def complete(self, used: int | None = None) -> None:
        """Returns the tokens, and waits until the arbiter has them back; again, without effect.

        Args:
            used: Tokens that were really used, as ``used`` says it.

        Raises:
            ValueError: Negative, or beyond 2^63-1.
            ReservationNotFound: It ended with its lease, or had been abandoned for too long.
            ArbiterUnreachable: The arbiter did not answer for the lease's time to live, which has ended by then.
        """
        if used is not None:
            self.used(used)
        self._return().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not waited for: it is sent before anything that is asked later, and sent again where that is needed.
        self._return()


class BlockingKvReservationRequest:
    """A reservation that was described and not yet asked for: enter it, or call ``acquire``."""

    __slots__ = ("_held", "_keeper", "_lease", "_message")

    def __init__(
        self, keeper: Keeper, holder: BlockingLease, tokens: int, wait: float | timedelta, request_id: str | None
    ) -> None:
        self._keeper = keeper
        self._lease = holder
        self._message = kv_reservations.message(holder.lease_id, holder.fence, tokens, wait, request_id)
        self._held: BlockingKvReservation | None = None

    def acquire(self) -> BlockingKvReservation:
        """Waits for the tokens; the caller then has to call ``complete``.

        Raises:
            LeaseLost: The lease is over.
            InsufficientTokens: The engine's budget has no room for them, and had none while it was waited for.
            ExceedsCapacity: The engine can never have so many.
            QueueFull: Too many wait already.
            ArbiterClientError: Refused for another reason, or nobody answers.
        """
        self._lease.check()
        future = self._keeper.reserve(self._message)
        try:
            return BlockingKvReservation(future.result(), self._keeper, self._lease.ttl)
        except BaseException:
            # Also on Ctrl-C while waiting: tokens that come now must not stay with a program that has gone on.
            self._keeper.abandon(future)
            raise

    def __enter__(self) -> BlockingKvReservation:
        self._held = self.acquire()
        return self._held

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            held.__exit__(kind, error, traceback)


class BlockingLeaseRequest:
    """A lease that was described and not yet asked for: enter it, or call ``acquire``."""

    __slots__ = ("_held", "_holder", "_keeper", "_terms")

    def __init__(self, keeper: Keeper, holder: str, wanted: terms.Terms) -> None:
        self._keeper = keeper
        self._holder = holder
        self._terms = wanted
        self._held: BlockingLease | None = None

    def acquire(self) -> BlockingLease:
        """Waits for the grant; the caller then has to call ``release``.

        Raises:
            ValueError: A term cannot be read.
            ArbiterClientError: Refused, waited in vain, or nobody answers.
        """
        future = self._keeper.allocate(terms.allocate_request(self._holder, self._terms))
        try:
            return BlockingLease(future.result(), self._keeper)
        except BaseException:
            # Also on Ctrl-C while waiting: a grant that comes now must not stay with a program that has gone on.
            self._keeper.abandon(future)
            raise

    def __enter__(self) -> BlockingLease:
        self._held = self.acquire()
        return self._held

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._held is not None:
            self._held.__exit__(kind, error, traceback)
            self._held = None


class Events:
    """Audit events as they happen; close it, or leave its ``with`` block, to stop."""

    def __init__(self, client: connection.Connection, after: int) -> None:
        self._stream = client.transport.calls.watch_events(state_service_pb2.WatchEventsRequest(after_sequence=after))

    def __iter__(self) -> Iterator[state_service_pb2.Event]:
        while (message := self._stream.next()) is not None:
            yield from message.events

    def close(self) -> None:
        """Ends the stream, from any thread."""
        self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class BlockingClient:
    """A connection to the arbiter; its threads start with the first request.

    Any number of threads may use it. Make it after ``fork``, and do not carry it across one.
    """

    __slots__ = ("_connection",)

    def __init__(self, made: connection.Connection) -> None:
        self._connection = made

    @property
    def address(self) -> str:
        """The gRPC target of the arbiter."""
        return self._connection.transport.address

    @property
    def channel(self) -> grpc.Channel:
        """The gRPC channel, for stubs of ``arbiter.v1``.

        Raises:
            NotServed: The arbiter is an in-memory one.
        """
        return self._connection.channel

    @property
    def heartbeat_mode(self) -> connection.HeartbeatMode:
        """Where heartbeats come from now; falls from "process" to "thread" when the beater process has died."""
        return "process" if self._connection.keeper.by_beater else "thread"

    def lease(self, holder: str, **wanted: Unpack[terms.Terms]) -> BlockingLeaseRequest:
        """Describes a lease; entering it waits for the grant. See ``Terms`` for the arguments."""
        return BlockingLeaseRequest(self._connection.keeper, holder, wanted)

    def release(self, lease_id: str, fence: int) -> bool:
        """Gives any lease back by its fence; True when it had ended before.

        Raises:
            ArbiterClientError: ``LeaseNotFound``, ``Fenced``, or nobody answers.
        """
        return self._connection.keeper.release(lease_id, fence, connection.RELEASE_PATIENCE_S).result()

    def preempt(self, **need: Unpack[preemption.DeviceNeed]) -> preemption.Preemption:
        """Takes memory of a device from less important leases for nobody in particular; see ``DeviceNeed``.

        Lasts until enough was confirmed free or time is up. When it is interrupted meanwhile, those who were asked are
        let off.

        Raises:
            ValueError: An argument cannot be read.
            NoDonor: Nobody may be asked, or too little came free in time.
            QueueFull: Another preemption is under way on the device.
            ArbiterClientError: Refused for another reason, or nobody answers.
        """
        return preempt(self._connection.keeper, preemption.message(need, device=need.get("device")))

    def state(self, *, namespace: str = "", include_ended: bool = False) -> state_service_pb2.GetStateResponse:
        """One coherent picture of everything.

        Raises:
            ArbiterClientError: Nobody answers, or the arbiter refuses.
        """
        request = state_service_pb2.GetStateRequest(namespace=namespace, include_ended=include_ended)
        return self._connection.transport.calls.get_state(request, connection.CALL_TIMEOUT_S)

    def explain(
        self, *, lease_id: str | None = None, request_id: str | None = None, device_id: str | None = None
    ) -> state_service_pb2.ExplainResponse:
        """Why a lease, a request or a device is as it is.

        Raises:
            ValueError: None or several were named.
            ArbiterClientError: ``LeaseNotFound``, ``DeviceNotFound``, or nobody answers.
        """
        request = connection.explain_request(lease_id, request_id, device_id)
        return self._connection.transport.calls.explain(request, connection.CALL_TIMEOUT_S)

    def watch(self, after: int = 0) -> Events:
        """Audit events after that sequence number, where they are still remembered; only new ones for 0.

        Raises:
            ArbiterClientError: While reading, when the stream fails.
        """
        return Events(self._connection, after)

    def close(self) -> None:
        """Gives every lease back and ends the threads; at most about two seconds when nobody answers."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def preempt(keeper: Keeper, request: arbiter_service_pb2.RequestPreemptionRequest) -> preemption.Preemption:
    """Asks and waits for the answer.

    Raises:
        ArbiterClientError: Refused, too little came free in time, or nobody answers.
    """
    future = keeper.preempt(request)
    try:
        return future.result()
    except BaseException:
        # Also on Ctrl-C while waiting: nobody should give for a program that has gone on.
        keeper.abandon(future)
        raise


def connect_blocking(
    address: str | None = None,
    *,
    heartbeat_mode: connection.HeartbeatMode = "thread",
    max_silence: float = connection.MAX_SILENCE_S,
    connect_timeout: float = connection.CONNECT_TIMEOUT_S,
) -> BlockingClient:
    """A blocking client; nothing is sent before it is used. The arguments are those of ``connect``.

    Raises:
        ValueError: An argument is out of range.
        OSError: The beater process cannot be started.
    """
    return BlockingClient(connection.make(address, heartbeat_mode, max_silence, connect_timeout))
