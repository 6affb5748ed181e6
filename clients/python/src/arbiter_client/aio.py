"""The client for asyncio programs.

Nothing here runs on the event loop but the waking of those who wait: heartbeats come from the keeper's thread, so a
loop that is busy for seconds loses no lease.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from arbiter.v1 import state_service_pb2
from arbiter_client import connection, errors, kv_reservations, lease, preemption, terms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import timedelta
    from types import TracebackType
    from typing import Unpack

    import grpc

    from arbiter.v1 import arbiter_service_pb2
    from arbiter_client.directive import Directive
    from arbiter_client.holding import Holding
    from arbiter_client.keeper import Keeper


class Lease(lease.HeldLease):
    """A lease. Leaving the ``async with`` block gives it back."""

    __slots__ = ("_keeper",)

    def __init__(self, held: Holding, keeper: Keeper) -> None:
        super().__init__(held)
        self._keeper = keeper

    async def directives(self) -> AsyncIterator[Directive]:
        """The present directive at once, then each newer one; a slow reader gets the newest only.

        An open reclaim is part of every directive until it is done, so none is missed by a slow reader; one that is no
        longer wanted shows as the same directive without it. Ends when the lease is over.
        """
        changed = asyncio.Event()
        forget = self._held.listen(_waker(changed))
        seen: Directive | None = None
        try:
            while not self._held.lost:
                changed.clear()
                present = self._held.directive
                if present is not seen:
                    seen = present
                    yield present
                elif not self._held.lost:
                    await changed.wait()
        finally:
            forget()

    async def wait_lost(self) -> None:
        """Waits until the lease is over, its own release included."""
        changed = asyncio.Event()
        forget = self._held.listen(_waker(changed))
        try:
            while not self._held.lost:
                await changed.wait()
                changed.clear()
        finally:
            forget()

    async def preempt(self, **need: Unpack[preemption.Need]) -> preemption.Preemption:
        """Takes memory or KV tokens from less important leases for this one; see ``Need`` for the arguments.

        Lasts until enough was confirmed free or time is up. What was confirmed may be used when the lease's memory
        limit or token budget has grown by it: with the next directive, which comes at about the same time. When the
        task is cancelled meanwhile, those who were asked are let off.

        Raises:
            ValueError: An argument cannot be read.
            NoDonor: Nobody may be asked, or too little came free in time.
            QueueFull: Another preemption is under way on the device.
            ArbiterClientError: Refused for another reason, or nobody answers. After ``ArbiterUnreachable`` the memory
                may have been taken all the same; the lease's directive shows it.
        """
        return await _preempt(self._keeper, preemption.message(need, lease_id=self.lease_id))

    def reserve_kv(
        self, tokens: int, *, wait: float | timedelta = 0.0, request_id: str | None = None
    ) -> KvReservationRequest:
        """Describes a reservation of KV tokens; entering it waits for them, leaving it returns them.

        They count against the engine's token budget, and as demand while it waits for them, so that an idle engine
        wakes. At most 64 of one client may wait at once.

        Args:
            tokens: How many, at least 1.
            wait: Seconds to wait for them, or a ``timedelta``; 0: not at all.
            request_id: Makes a retry across restarts of the worker safe; absent: a new one.
        """
        return KvReservationRequest(self._keeper, self, tokens, wait, request_id)

    async def release(self) -> bool:
        """Gives the lease back; True when it had ended before. From the call on it counts as lost.

        Raises:
            ArbiterUnreachable: The arbiter did not answer for 5 s; the time to live then ends the lease.
        """
        if self.lost:
            return True
        future = self._keeper.release(self.lease_id, self.fence, connection.RELEASE_PATIENCE_S)
        return await asyncio.wrap_future(future)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.release()
        except (errors.ArbiterUnreachable, errors.LeaseNotFound, errors.Fenced, errors.Cancelled):
            # It is over for this worker in each of these cases, and the block's own error matters more.
            return


class KvReservation(kv_reservations.HeldReservation):
    """Reserved KV tokens. Leaving the ``async with`` block returns them."""

    __slots__ = ()

    async def complete(self, used: int | None = None) -> None:
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
        await asyncio.wrap_future(self._return())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not waited for: it is sent before anything that is asked later, and sent again where that is needed.
        self._return()


class KvReservationRequest:
    """A reservation that was described and not yet asked for: enter it, or await ``acquire``."""

    __slots__ = ("_held", "_keeper", "_lease", "_message")

    def __init__(
        self, keeper: Keeper, holder: Lease, tokens: int, wait: float | timedelta, request_id: str | None
    ) -> None:
        self._keeper = keeper
        self._lease = holder
        self._message = kv_reservations.message(holder.lease_id, holder.fence, tokens, wait, request_id)
        self._held: KvReservation | None = None

    async def acquire(self) -> KvReservation:
        """Waits for the tokens; the caller then has to await ``complete``.

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
            return KvReservation(await asyncio.wrap_future(future), self._keeper, self._lease.ttl)
        except BaseException:
            # Also when the task is cancelled: tokens that come now must not stay with a program that has gone on.
            self._keeper.abandon(future)
            raise

    async def __aenter__(self) -> KvReservation:
        self._held = await self.acquire()
        return self._held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await held.__aexit__(kind, error, traceback)


class LeaseRequest:
    """A lease that was described and not yet asked for: enter it, or await ``acquire``."""

    __slots__ = ("_held", "_holder", "_keeper", "_terms")

    def __init__(self, keeper: Keeper, holder: str, wanted: terms.Terms) -> None:
        self._keeper = keeper
        self._holder = holder
        self._terms = wanted
        self._held: Lease | None = None

    async def acquire(self) -> Lease:
        """Waits for the grant; the caller then has to await ``release``.

        Raises:
            ValueError: A term cannot be read.
            ArbiterClientError: Refused, waited in vain, or nobody answers.
        """
        future = self._keeper.allocate(terms.allocate_request(self._holder, self._terms))
        try:
            return Lease(await asyncio.wrap_future(future), self._keeper)
        except BaseException:
            # Also when the task is cancelled: a grant that comes now must not stay with a program that has gone on.
            self._keeper.abandon(future)
            raise

    async def __aenter__(self) -> Lease:
        self._held = await self.acquire()
        return self._held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await held.__aexit__(kind, error, traceback)


class Client:
    """A connection to the arbiter; its threads start with the first request.

    Belongs to no event loop in particular. Make it after ``fork``, and do not carry it across one.
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
        """The blocking gRPC channel, for stubs of ``arbiter.v1``; for asyncio stubs open one to ``address``.

        Raises:
            NotServed: The arbiter is an in-memory one.
        """
        return self._connection.channel

    @property
    def heartbeat_mode(self) -> connection.HeartbeatMode:
        """Where heartbeats come from now; falls from "process" to "thread" when the beater process has died."""
        return "process" if self._connection.keeper.by_beater else "thread"

    def lease(self, holder: str, **wanted: Unpack[terms.Terms]) -> LeaseRequest:
        """Describes a lease; entering it waits for the grant. See ``Terms`` for the arguments."""
        return LeaseRequest(self._connection.keeper, holder, wanted)

    async def release(self, lease_id: str, fence: int) -> bool:
        """Gives any lease back by its fence; True when it had ended before.

        Raises:
            ArbiterClientError: ``LeaseNotFound``, ``Fenced``, or nobody answers.
        """
        future = self._connection.keeper.release(lease_id, fence, connection.RELEASE_PATIENCE_S)
        return await asyncio.wrap_future(future)

    async def preempt(self, **need: Unpack[preemption.DeviceNeed]) -> preemption.Preemption:
        """Takes memory of a device from less important leases for nobody in particular; see ``DeviceNeed``.

        Lasts until enough was confirmed free or time is up. When the task is cancelled meanwhile, those who were asked
        are let off.

        Raises:
            ValueError: An argument cannot be read.
            NoDonor: Nobody may be asked, or too little came free in time.
            QueueFull: Another preemption is under way on the device.
            ArbiterClientError: Refused for another reason, or nobody answers.
        """
        return await _preempt(self._connection.keeper, preemption.message(need, device=need.get("device")))

    async def state(self, *, namespace: str = "", include_ended: bool = False) -> state_service_pb2.GetStateResponse:
        """One coherent picture of everything.

        Raises:
            ArbiterClientError: Nobody answers, or the arbiter refuses.
        """
        request = state_service_pb2.GetStateRequest(namespace=namespace, include_ended=include_ended)
        calls = self._connection.transport.calls
        return await asyncio.to_thread(calls.get_state, request, connection.CALL_TIMEOUT_S)

    async def explain(
        self, *, lease_id: str | None = None, request_id: str | None = None, device_id: str | None = None
    ) -> state_service_pb2.ExplainResponse:
        """Why a lease, a request or a device is as it is.

        Raises:
            ValueError: None or several were named.
            ArbiterClientError: ``LeaseNotFound``, ``DeviceNotFound``, or nobody answers.
        """
        request = connection.explain_request(lease_id, request_id, device_id)
        return await asyncio.to_thread(self._connection.transport.calls.explain, request, connection.CALL_TIMEOUT_S)

    async def watch(self, after: int = 0) -> AsyncIterator[state_service_pb2.Event]:
        """Audit events after that sequence number, where they are still remembered; only new ones for 0.

        Each iterator occupies a thread of the loop's default executor while it waits.

        Raises:
            ArbiterClientError: While reading, when the stream fails.
        """
        request = state_service_pb2.WatchEventsRequest(after_sequence=after)
        stream = self._connection.transport.calls.watch_events(request)
        try:
            while (message := await asyncio.to_thread(stream.next)) is not None:
                for event in message.events:
                    yield event
        finally:
            # Wakes the thread that still reads when the task was cancelled.
            stream.cancel()

    async def close(self) -> None:
        """Gives every lease back and ends the threads; at most about two seconds when nobody answers."""
        await asyncio.to_thread(self._connection.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def connect(
    address: str | None = None,
    *,
    heartbeat_mode: connection.HeartbeatMode = "thread",
    max_silence: float = connection.MAX_SILENCE_S,
    connect_timeout: float = connection.CONNECT_TIMEOUT_S,
) -> Client:
    """An asyncio client; nothing is sent before it is used.

    Args:
        address: ``unix:/path``, ``/path`` or ``host:port``; absent: ``ARBITER_ADDRESS``, else the default socket.
        heartbeat_mode: ``"thread"`` survives an event loop that is busy and an interpreter lock that is held for up to
            about half the time to live. ``"process"`` spawns a small process that beats, and survives any hold up to
            ``max_silence``; a worker that hangs for good then keeps its memory for as long.
        max_silence: With ``"process"``, seconds after the last sign of this process for which its leases are still
            renewed; 1 to 600.
        connect_timeout: Seconds for which a request for a lease outlives an arbiter that cannot be reached or cannot
            yet answer; 0 to fail at once.

    Raises:
        ValueError: An argument is out of range.
        OSError: The beater process cannot be started.
    """
    return Client(connection.make(address, heartbeat_mode, max_silence, connect_timeout))


async def _preempt(keeper: Keeper, request: arbiter_service_pb2.RequestPreemptionRequest) -> preemption.Preemption:
    future = keeper.preempt(request)
    try:
        return await asyncio.wrap_future(future)
    except BaseException:
        # Also when the task is cancelled: nobody should give for a program that has gone on.
        keeper.abandon(future)
        raise


def _waker(changed: asyncio.Event) -> Callable[[], None]:
    """A listener that sets ``changed`` from any thread."""
    loop = asyncio.get_running_loop()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(changed.set)
        except RuntimeError:
            # The loop was closed while somebody waited on it, so nobody waits any more.
            return

    return wake
