"""What the calls of ``ArbiterService`` do: one body for the unary call and for the message of a session."""

from __future__ import annotations

import math

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter_sidecar import errors
from arbiter_sidecar.requests import Beat
from arbiter_sidecar.rpc import convert, render
from arbiter_sidecar.rpc.convert import LeaseTimes
from arbiter_sidecar.runtime import Runtime
from arbiter_sidecar.types import LeaseId

#: Part of the caller's deadline that is kept for the answer that says that time is up.
ANSWER_SHARE = 0.1
MAX_ANSWER_S = 0.1


def _patience(remaining_s: float | None) -> float:
    """How long a call may wait so that its caller still hears that it was in vain."""
    return math.inf if remaining_s is None else remaining_s - min(MAX_ANSWER_S, remaining_s * ANSWER_SHARE)


class Calls:
    """Parse, ask the runtime, render. Raises ArbiterError; knows nothing of transport."""

    def __init__(self, runtime: Runtime, renderer: render.Renderer, times: LeaseTimes) -> None:
        self.runtime = runtime
        self.renderer = renderer
        self._times = times

    async def allocate(self, message: pb.AllocateRequest, remaining_s: float | None = None) -> pb.AllocateResponse:
        """Leases memory; ``remaining_s`` is what is left of the caller's own deadline."""
        if message.HasField("reattach"):
            return self._reattach(message.reattach)
        request = convert.allocation(
            message, times=self._times, watch=self.runtime.watch, wait_at_most_s=_patience(remaining_s)
        )
        if message.dry_run:
            dry = self.runtime.dry_run(request)
            lease = self.renderer.dry_lease(request, dry, self.runtime.books.shape(request))
            return pb.AllocateResponse(lease=lease, directive=lease.directive, server_epoch=self.runtime.epoch)
        grant = await self.runtime.allocate(request)
        lease = self.renderer.lease(grant.lease, secret=True)
        return pb.AllocateResponse(
            lease=lease,
            directive=lease.directive,
            waited=render.span(grant.waited_s),
            already_granted=grant.already_granted,
            server_epoch=self.runtime.epoch,
        )

    async def preempt(
        self, message: pb.RequestPreemptionRequest, remaining_s: float | None = None
    ) -> pb.RequestPreemptionResponse:
        """Has memory taken from others; ``remaining_s`` is what is left of the caller's own deadline."""
        asked = convert.preemption(message)
        if message.dry_run:
            return self.renderer.draft(self.runtime.dry_preempt(asked), self.runtime.books.leases)
        return self.renderer.plan((await self.runtime.preempt(asked)).plan)

    async def reserve(self, message: pb.ReserveKvRequest, remaining_s: float | None = None) -> pb.ReserveKvResponse:
        """Reserves KV tokens; ``remaining_s`` is what is left of the caller's own deadline."""
        asked = convert.reservation(message, wait_at_most_s=_patience(remaining_s))
        return self.renderer.reservation(await self.runtime.reserve(asked))

    def complete(self, message: pb.CompleteKvRequest) -> pb.CompleteKvResponse:
        """Returns a reservation."""
        self.runtime.complete(convert.completion(message))
        return pb.CompleteKvResponse()

    def _reattach(self, message: pb.Reattach) -> pb.AllocateResponse:
        lease_id, fence = convert.claim(message)
        lease = self.runtime.books.leases.get(lease_id)
        if lease is None:
            raise errors.LeaseNotFound("this server does not remember the lease; allocate again", lease_id=lease_id)
        # At its deadline a lease is dead, whether or not the sweep has come by.
        if lease.fence != fence or not lease.alive or lease.deadline <= self.runtime.clock.now():
            raise errors.Fenced("the lease is not yours any more; allocate again", lease_id=lease_id)
        found = self.renderer.lease(lease, secret=True)
        return pb.AllocateResponse(
            lease=found, directive=found.directive, already_granted=True, server_epoch=self.runtime.epoch
        )

    def beat(self, message: pb.HeartbeatRequest) -> Beat:
        """A checked heartbeat, of which nothing has been carried out yet."""
        return convert.beat(message, epoch=self.runtime.epoch)

    def heartbeat(self, beat: Beat) -> pb.HeartbeatResponse:
        """Renews leases and takes reports in."""
        outcome = self.runtime.heartbeat(beat)
        return self.renderer.beat(
            outcome,
            sequence=beat.sequence,
            epoch=self.runtime.epoch,
            draining=self.runtime.books.draining,
            interval_s=self._interval(beat.handles, [report.lease_id for report in beat.reports]),
        )

    def _interval(self, handles: tuple[int, ...], lease_ids: list[LeaseId]) -> float:
        """A third of the shortest time to live among the living leases named; of the default where there is none."""
        leases = self.runtime.books.leases
        known = [lease for handle in handles if (lease := leases.by_handle(handle)) is not None]
        known += [lease for lease_id in lease_ids if (lease := leases.get(lease_id)) is not None]
        shortest = min((lease.ttl_s for lease in known if lease.alive), default=self._times.ttl_default_s)
        return shortest * render.INTERVAL_SHARE

    def release(self, message: pb.ReleaseRequest) -> pb.ReleaseResponse:
        """Gives a lease back."""
        lease_id, fence = convert.release(message)
        return pb.ReleaseResponse(already_released=self.runtime.release(lease_id, fence))
