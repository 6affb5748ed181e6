"""``StateService``: the picture, the reasons and the events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arbiter.v1 import lease_pb2
from arbiter.v1 import state_service_pb2 as pb
from arbiter_sidecar import __version__, errors
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.waiting import Waiter
from arbiter_sidecar.policy import quality
from arbiter_sidecar.rpc import handlers, shard_render
from arbiter_sidecar.rpc.fields import Fields
from arbiter_sidecar.rpc.render import Renderer, moment, span
from arbiter_sidecar.rpc.status import Context, printable
from arbiter_sidecar.runtime import AuditEvent, Runtime
from arbiter_sidecar.types import Attribution, DeviceKind, EventKind, PressureLevel

if TYPE_CHECKING:
    import grpc

#: Watchers of events at once; each remembers up to a backlog of events.
MAX_WATCHERS = 256
#: Events of one message.
EVENTS_PER_MESSAGE = 500


class StateServicer:
    """Speaks ``arbiter.v1.StateService``. Changes nothing."""

    name = "arbiter.v1.StateService"

    def __init__(self, runtime: Runtime, renderer: Renderer, notes: tuple[str, ...]) -> None:
        self._runtime = runtime
        self._renderer = renderer
        self._notes = notes
        self._watchers = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """Everything this service answers."""
        return handlers.service(
            self.name,
            {
                "GetState": handlers.unary(pb.GetStateRequest, self._get_state),
                "Explain": handlers.unary(pb.ExplainRequest, self._explain),
                "WatchEvents": handlers.server_stream(pb.WatchEventsRequest, self._watch_events),
            },
        )

    def close(self) -> None:
        """Ends the streams of events, politely."""
        self._runtime.events.close()

    async def _get_state(self, message: pb.GetStateRequest, _: Context) -> pb.GetStateResponse:
        books, now = self._runtime.books, self._runtime.clock.now()

        def wanted(namespace: str) -> bool:
            return not message.namespace or namespace == message.namespace

        shown = [lease for lease in books.leases if wanted(lease.request.namespace)]
        shown = [lease for lease in shown if lease.alive or message.include_ended]
        return pb.GetStateResponse(
            version=__version__,
            server_epoch=self._runtime.epoch,
            uptime=span(now - self._runtime.started_at),
            revision=books.revision,
            quality_policy=books.config.policy.value,
            draining=books.draining,
            devices=[self._device(device, now) for device in books.devices.values()],
            leases=[self._renderer.lease(lease, secret=False) for lease in shown],
            waiting=[
                self._waiting(waiter, place, now)
                for place, waiter in enumerate(books.queue)
                if wanted(waiter.request.namespace)
            ],
            state=self._state(),
            stats=self._stats(now),
            notes=self._notes,
            observe_only=books.config.observe_only,
            shard_groups=[
                shard_render.group(group, books.config.balance.objective, now)
                for group in books.shards.groups.values()
                if wanted(group.namespace)
            ],
            kv_engines=[self._engine(lease) for lease in shown if lease.alive and lease.kv is not None],
            accounts=[
                pb.Account(
                    namespace=account.namespace,
                    holder=account.holder,
                    reclaims=account.reclaims,
                    reclaim_seconds=account.reclaim_seconds,
                    floor_breaches=account.floor_breaches,
                    quality_seconds_lost=account.quality_seconds_lost,
                    ghost_byte_seconds=account.ghost_byte_seconds,
                    overuses=account.overuses,
                )
                for account in self._runtime.accounts()
                if wanted(account.namespace)
            ],
        )

    def _device(self, book: DeviceBook, now: float) -> pb.Device:
        facts, books = book.facts, self._runtime.books
        target = quality.target_bytes(facts.capacity_bytes, books.config.soft_target)
        floors = sum(lease.elastic.floor_bytes for lease in book.live.values())
        message = pb.Device(
            device_id=facts.device_id,
            name=facts.name,
            index=facts.index,
            kind=pb.DeviceKind.ValueType(DeviceKind(facts.kind)),
            health=pb.DeviceHealth.ValueType(book.health(now)),
            health_detail=printable(book.failure),
            attribution=pb.Attribution.ValueType(Attribution(facts.attribution)),
            total_bytes=facts.total_bytes,
            capacity_bytes=facts.capacity_bytes,
            granted_bytes=book.granted_bytes,
            foreign_bytes=book.foreign_bytes,
            foreign_estimated=book.foreign_estimated,
            draining_bytes=book.residue_bytes,
            earmarked_bytes=book.earmarked_bytes,
            ghost_bytes=sum(lease.residue_bytes for lease in book.ended.values() if lease.ghost),
            zombie_bytes=sum(lease.residue_bytes for lease in book.ended.values() if lease.zombie),
            overrun_bytes=book.accounted_bytes - book.granted_bytes,
            unused_bytes=sum(lease.unused_bytes for lease in book.live.values()),
            available_bytes=max(0, book.available_bytes),
            pressure=min(1.0, book.pressure),
            level=pb.PressureLevel.ValueType(PressureLevel(book.level)),
            target_bytes=target,
            soft_deficit_bytes=max(0, book.elsewhere_bytes(now) + floors - target),
            kv_total_tokens=book.kv.total,
            kv_charged_tokens=book.kv.charged,
            peak_bytes=book.peak_bytes,
        )
        if book.used_bytes is not None:
            message.measured_bytes = book.used_bytes
        if book.sampled_at is not None:
            message.sample_age.CopyFrom(span(max(0.0, now - book.sampled_at)))
        return message

    def _engine(self, lease: Lease) -> pb.KvEngine:
        book = self._runtime.books.device_of(lease).kv
        state = book.of(lease)
        return pb.KvEngine(
            lease_id=lease.lease_id,
            holder=lease.request.holder,
            namespace=lease.request.namespace,
            device_id=lease.device_id,
            share_weight=state.share.share_weight,
            min_tokens=state.share.min_tokens,
            max_tokens=state.share.max_tokens,
            active=state.active,
            demand_tokens=state.present_demand,
            resident_tokens=state.resident,
            reserved_tokens=state.reserved,
            budget_tokens=state.budget,
            charged_tokens=state.charged,
            donated_tokens=book.lent(lease),
            borrowed_tokens=book.borrowed(lease),
            advised_tokens=state.advised,
        )

    def _waiting(self, waiter: Waiter, place: int, now: float) -> pb.WaitingRequest:
        request = waiter.request
        return pb.WaitingRequest(
            request_id=waiter.name,
            holder=request.holder,
            namespace=request.namespace,
            workload_type=lease_pb2.WorkloadType.ValueType(request.workload),
            priority=lease_pb2.Priority.ValueType(request.priority),
            memory_bytes=request.memory_bytes,
            min_memory_bytes=self._runtime.books.shape(request).floor_bytes,
            device_id=waiter.device_id or request.device_id,
            waited=span(now - waiter.since),
            position=place,
            reason=waiter.reason or "earlier requests come first",
            reclaiming=waiter.reclaiming,
        )

    def _state(self) -> pb.ArbiterState:
        books = self._runtime.books
        devices = books.devices.values()
        return pb.ArbiterState(
            active_llm_workloads=books.stats.llm.count,
            active_diffusion_workloads=books.stats.diffusion.count,
            llm_quality=books.stats.llm.present,
            diffusion_quality=books.stats.diffusion.present,
            memory_pressure=min(1.0, max((device.pressure for device in devices), default=0.0)),
            memory_used_bytes=sum(device.granted_bytes for device in devices),
            memory_available_bytes=sum(max(0, device.available_bytes) for device in devices),
        )

    def _stats(self, now: float) -> pb.ArbiterStats:
        stats = self._runtime.books.stats
        return pb.ArbiterStats(
            total_allocations=stats.requests,
            successful_allocations=stats.granted,
            refused_allocations=stats.refused,
            timed_out_allocations=stats.timed_out,
            cancelled_allocations=stats.cancelled,
            released_leases=stats.released,
            expired_leases=stats.expired,
            orphaned_leases=stats.orphaned,
            preemptions=stats.preemptions,
            critical_entries=stats.critical_entries,
            quality_reductions=stats.reductions,
            quality_raises=stats.raises,
            average_pressure=stats.pressure.mean(now),
            average_llm_quality=stats.llm.mean(now),
            average_diffusion_quality=stats.diffusion.mean(now),
            heartbeats=stats.heartbeats,
            events=stats.events,
        )

    async def _explain(self, message: pb.ExplainRequest, _: Context) -> pb.ExplainResponse:
        subject = message.WhichOneof("subject")
        if subject is None:
            raise errors.InvalidRequest([("subject", "name a lease_id, a request_id or a device_id")])
        name = getattr(message, subject)
        fields = Fields()
        fields.text(subject, name, required=True)
        fields.verify()
        asked = {
            "lease_id": self._runtime.explain_lease,
            "request_id": self._runtime.explain_request,
            "device_id": self._runtime.explain_device,
        }[subject](name)
        return pb.ExplainResponse(
            summary=asked.summary,
            rule=asked.rule,
            findings=[pb.Finding(name=name, value=value) for name, value in asked.findings],
        )

    async def _watch_events(self, message: pb.WatchEventsRequest, context: Context) -> None:
        if self._watchers >= MAX_WATCHERS:
            raise errors.QueueFull("too many watchers of events")
        watcher = self._runtime.events.watch(message.after_sequence)
        self._watchers += 1
        try:
            # Headers at once, so that a caller knows that it is watching before anything happens.
            await context.send_initial_metadata(())
            while not watcher.closed:
                missed, events = await watcher.next()
                wanted = [each for each in events if message.namespace in ("", each.happened.namespace)]
                if missed:
                    gap = pb.Event(kind=pb.EVENT_KIND_GAP, fields={"missed": str(missed)})
                    await context.write(pb.WatchEventsResponse(events=[gap]).SerializeToString())
                for first in range(0, len(wanted), EVENTS_PER_MESSAGE):
                    part = wanted[first : first + EVENTS_PER_MESSAGE]
                    response = pb.WatchEventsResponse(events=[_event(each) for each in part])
                    await context.write(response.SerializeToString())
        finally:
            self._watchers -= 1
            self._runtime.events.unwatch(watcher)


def _event(event: AuditEvent) -> pb.Event:
    happened = event.happened
    return pb.Event(
        sequence=event.sequence,
        time=moment(event.wall_time),
        kind=pb.EventKind.ValueType(EventKind(happened.kind)),
        lease_id=happened.lease_id,
        request_id=happened.request_id,
        device_id=happened.device_id,
        holder=happened.holder,
        namespace=happened.namespace,
        fields=happened.fields,
    )
