"""A gRPC server that answers as a test tells it to; it has no books and no policy."""

from __future__ import annotations

import json
import queue
import threading
import time
from concurrent import futures
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import grpc

from arbiter.v1 import (
    arbiter_service_pb2,
    arbiter_service_pb2_grpc,
    lease_pb2,
    state_service_pb2,
    state_service_pb2_grpc,
)
from arbiter_client import terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Ten times what anything here takes on a busy machine; a guard against hanging.
GUARD_S = 15.0

Answer = arbiter_service_pb2.SessionResponse


@dataclass(slots=True, eq=False)
class Stream:
    """One session as the server sees it."""

    outgoing: queue.SimpleQueue[Answer | None] = field(default_factory=queue.SimpleQueue)
    dropped: bool = False

    def tell(self, answer: Answer) -> None:
        self.outgoing.put(answer)

    def drop(self) -> None:
        self.dropped = True
        self.outgoing.put(None)


@dataclass(slots=True)
class Script:
    """What the server does; may be changed while it runs."""

    epoch: int = 7
    ttl: float = 15.0
    interval: float = 0.0
    valid_for: float = 0.0
    answers_beats: bool = True
    beat_delay: float = 0.0
    beat_error: arbiter_service_pb2.Error | None = None
    holds_allocates: bool = False
    answers_cancels: bool = True
    allocate_errors: list[arbiter_service_pb2.Error] = field(default_factory=list)
    holds_preemptions: bool = False
    holds_reservations: bool = False
    preempt_errors: list[arbiter_service_pb2.Error] = field(default_factory=list)
    preemption: arbiter_service_pb2.RequestPreemptionResponse = field(
        default_factory=arbiter_service_pb2.RequestPreemptionResponse
    )
    draft: arbiter_service_pb2.RequestPreemptionResponse = field(
        default_factory=arbiter_service_pb2.RequestPreemptionResponse
    )
    subscribe_errors: list[arbiter_service_pb2.Error] = field(default_factory=list)
    results: list[arbiter_service_pb2.HeartbeatResponse.Result] = field(default_factory=list)
    state: state_service_pb2.GetStateResponse = field(default_factory=state_service_pb2.GetStateResponse)
    explanations: dict[str, state_service_pb2.ExplainResponse] = field(default_factory=dict)
    events: list[state_service_pb2.Event] = field(default_factory=list)


class ScriptedServer(arbiter_service_pb2_grpc.ArbiterServiceServicer, state_service_pb2_grpc.StateServiceServicer):
    """Serves on a Unix socket; remembers everything that was asked."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:{path}"
        self.script = Script()
        self.beats: list[tuple[float, arbiter_service_pb2.HeartbeatRequest]] = []
        self.unary_beats: list[tuple[float, arbiter_service_pb2.HeartbeatRequest]] = []
        self.allocates: list[arbiter_service_pb2.AllocateRequest] = []
        self.preemptions: list[arbiter_service_pb2.RequestPreemptionRequest] = []
        #: Kinds of the messages that were taken back; "" for one that was not waiting.
        self.cancels: list[str] = []
        self.releases: list[arbiter_service_pb2.ReleaseRequest] = []
        self.reservations: list[arbiter_service_pb2.ReserveKvRequest] = []
        self.completions: list[arbiter_service_pb2.CompleteKvRequest] = []
        self.subscribes: list[arbiter_service_pb2.StreamQualityRequest] = []
        self.sessions = 0
        self._streams: list[Stream] = []
        self._held: list[tuple[Stream, arbiter_service_pb2.SessionRequest]] = []
        self._changed = threading.Condition()
        self._server: grpc.Server | None = None
        self._granted = 0
        self.revision = 0

    # What a test does.

    def start(self) -> None:
        # A server that keeps gRPC's default tells clients that ping every 10 s to go away.
        options = [("grpc.http2.min_recv_ping_interval_without_data_ms", 4000)]
        self._server = grpc.server(futures.ThreadPoolExecutor(24), options=options)
        arbiter_service_pb2_grpc.add_ArbiterServiceServicer_to_server(self, self._server)
        state_service_pb2_grpc.add_StateServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self.drop()
            self._server.stop(None).wait(GUARD_S)
            self._server = None

    def drop(self) -> None:
        """Cuts every session."""
        with self._changed:
            for stream in self._streams:
                stream.drop()

    def push(
        self,
        lease_id: str,
        quality: float,
        memory_limit_bytes: int = 1 << 20,
        reclaim: lease_pb2.Reclaim | None = None,
    ) -> int:
        """Pushes a directive to every session and returns its revision."""
        with self._changed:
            self.revision += 1
            told = lease_pb2.Directive(
                lease_id=lease_id,
                revision=self.revision,
                quality=quality,
                memory_limit_bytes=memory_limit_bytes,
                safe_quality=0.25,
                reclaim=reclaim,
            )
            told.valid_for.CopyFrom(terms.duration(self.script.valid_for))
            self._push(directives=[told])
            return self.revision

    def push_end(self, lease_id: str, reason: lease_pb2.EndReason.ValueType) -> None:
        with self._changed:
            self._push(ended=[arbiter_service_pb2.EndedLease(lease_id=lease_id, end_reason=reason)])

    def push_reclaim_cancelled(self, reclaim_id: str) -> None:
        with self._changed:
            self._push(reclaim_cancelled=[reclaim_id])

    def grant_held(self) -> None:
        """Answers what was held back."""
        with self._changed:
            self.script.holds_allocates = self.script.holds_preemptions = False
            held, self._held = self._held, []
            for stream, request in held:
                stream.tell(self._granted_to(request))

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until something the server has seen makes ``condition`` true."""
        with self._changed:
            assert self._changed.wait_for(condition, GUARD_S), "the client did not do it"

    def stop_answering(self) -> float:
        """Leaves all further heartbeats without an answer; returns when the last one that was answered arrived."""
        with self._changed:
            self.script.answers_beats = False
            return max(
                (at for at, beat in (*self.beats, *self.unary_beats) if beat.handles or beat.reports), default=0.0
            )

    def reports(self) -> list[arbiter_service_pb2.HeartbeatRequest.Report]:
        return [report for _, beat in self.beats for report in beat.reports]

    def _push(
        self,
        directives: list[lease_pb2.Directive] | None = None,
        ended: list[arbiter_service_pb2.EndedLease] | None = None,
        reclaim_cancelled: list[str] | None = None,
    ) -> None:
        message = arbiter_service_pb2.StreamQualityResponse(
            server_epoch=self.script.epoch,
            revision=self.revision,
            directives=directives,
            ended=ended,
            reclaim_cancelled=reclaim_cancelled,
        )
        for stream in self._streams:
            stream.tell(Answer(quality=message))

    # ArbiterService.

    def Session(
        self, request_iterator: Iterator[arbiter_service_pb2.SessionRequest], context: grpc.ServicerContext
    ) -> Iterator[Answer]:
        stream = Stream()
        with self._changed:
            self._streams.append(stream)
            self.sessions += 1
            self._changed.notify_all()
        context.add_callback(lambda: stream.outgoing.put(None))
        threading.Thread(target=self._read, args=(stream, request_iterator), daemon=True).start()
        yield from iter(stream.outgoing.get, None)
        with self._changed:
            self._streams.remove(stream)
        if stream.dropped:
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")

    def _read(self, stream: Stream, requests: Iterator[arbiter_service_pb2.SessionRequest]) -> None:
        try:
            for request in requests:
                if request.WhichOneof("request") == "heartbeat" and self.script.beat_delay:
                    time.sleep(self.script.beat_delay)
                with self._changed:
                    self._answer(stream, request)
                    self._changed.notify_all()
        except grpc.RpcError:
            # The session was cut or cancelled.
            stream.outgoing.put(None)

    def _answer(self, stream: Stream, request: arbiter_service_pb2.SessionRequest) -> None:
        answer = Answer(correlation_id=request.correlation_id)
        kind = request.WhichOneof("request")
        if kind == "heartbeat":
            self.beats.append((time.monotonic(), request.heartbeat))
            if not self.script.answers_beats:
                return
            if self.script.beat_error is not None and request.heartbeat.reports:
                answer.error.CopyFrom(self.script.beat_error)
            else:
                answer.heartbeat.CopyFrom(self._renew(request.heartbeat))
        elif kind in ("allocate", "request_preemption", "reserve_kv"):
            told = self._begin(stream, request)
            if told is None:
                return
            answer = told
        elif kind == "cancel":
            self._cancel(request.cancel.correlation_id)
            return
        elif kind == "release":
            self.releases.append(request.release)
            answer.release.SetInParent()
        elif kind == "complete_kv":
            self.completions.append(request.complete_kv)
            answer.complete_kv.SetInParent()
        elif kind == "subscribe":
            self.subscribes.append(request.subscribe)
            if self.script.subscribe_errors:
                answer.error.CopyFrom(self.script.subscribe_errors.pop(0))
            else:
                answer.quality.server_epoch = self.script.epoch
                answer.quality.revision = self.revision
        stream.tell(answer)

    def _begin(self, stream: Stream, request: arbiter_service_pb2.SessionRequest) -> Answer | None:
        """The answer to what may take its time, or ``None`` when it is held back."""
        refusals: list[arbiter_service_pb2.Error] = []
        if request.WhichOneof("request") == "reserve_kv":
            self.reservations.append(request.reserve_kv)
            held = self.script.holds_reservations
        elif request.WhichOneof("request") == "allocate":
            self.allocates.append(request.allocate)
            held, refusals = self.script.holds_allocates, self.script.allocate_errors
        else:
            self.preemptions.append(request.request_preemption)
            held, refusals = self.script.holds_preemptions, self.script.preempt_errors
            if request.request_preemption.dry_run:
                held, refusals = False, []
        if held:
            self._held.append((stream, request))
            return None
        if refusals:
            return Answer(correlation_id=request.correlation_id, error=refusals.pop(0))
        return self._granted_to(request)

    def _granted_to(self, request: arbiter_service_pb2.SessionRequest) -> Answer:
        if request.WhichOneof("request") == "allocate":
            return Answer(correlation_id=request.correlation_id, allocate=self._grant(request.allocate))
        if request.WhichOneof("request") == "reserve_kv":
            granted = arbiter_service_pb2.ReserveKvResponse(
                reservation_id=f"of {request.reserve_kv.request_id}", granted_tokens=request.reserve_kv.tokens
            )
            return Answer(correlation_id=request.correlation_id, reserve_kv=granted)
        dry = request.request_preemption.dry_run
        return Answer(
            correlation_id=request.correlation_id,
            request_preemption=self.script.draft if dry else self.script.preemption,
        )

    def _cancel(self, correlation_id: int) -> None:
        waiting = [each for each in self._held if each[1].correlation_id == correlation_id]
        self.cancels.append(waiting[0][1].WhichOneof("request") or "" if waiting else "")
        if waiting and self.script.answers_cancels:
            self._held.remove(waiting[0])
            waiting[0][0].tell(
                Answer(correlation_id=correlation_id, error=error(grpc.StatusCode.CANCELLED, "CANCELLED"))
            )

    def _grant(self, request: arbiter_service_pb2.AllocateRequest) -> arbiter_service_pb2.AllocateResponse:
        self._granted += 1
        self.revision += 1
        ttl = request.ttl.ToNanoseconds() / 1e9 or self.script.ttl
        lease = lease_pb2.Lease(
            lease_id=f"lease-{self._granted}",
            handle=1000 + self._granted,
            fence=self._granted,
            holder=request.holder,
            device_id="gpu0",
            memory_bytes=request.memory_bytes,
            ttl=terms.duration(ttl),
            heartbeat_interval=terms.duration(ttl / 3),
            pids_visible=True,
        )
        lease.directive.lease_id = lease.lease_id
        lease.directive.revision = self.revision
        lease.directive.quality = 1.0
        lease.directive.memory_limit_bytes = request.memory_bytes
        lease.directive.safe_quality = 0.25
        lease.directive.valid_for.CopyFrom(terms.duration(self.script.valid_for))
        return arbiter_service_pb2.AllocateResponse(
            lease=lease, directive=lease.directive, server_epoch=self.script.epoch
        )

    def _renew(self, request: arbiter_service_pb2.HeartbeatRequest) -> arbiter_service_pb2.HeartbeatResponse:
        answer = arbiter_service_pb2.HeartbeatResponse(
            sequence=request.sequence, server_epoch=self.script.epoch, results=self.script.results
        )
        answer.next_heartbeat_interval.CopyFrom(terms.duration(self.script.interval))
        known = {result.lease_id for result in self.script.results}
        for report in request.reports:
            if report.lease_id not in known:
                answer.results.add(lease_id=report.lease_id, verdict=arbiter_service_pb2.Verdict.VERDICT_RENEWED)
        return answer

    def Heartbeat(
        self, request: arbiter_service_pb2.HeartbeatRequest, context: grpc.ServicerContext
    ) -> arbiter_service_pb2.HeartbeatResponse:
        with self._changed:
            self.unary_beats.append((time.monotonic(), request))
            self._changed.notify_all()
            if not self.script.answers_beats:
                context.abort(grpc.StatusCode.UNAVAILABLE, "silent by the test")
            return self._renew(request)

    def StreamQuality(
        self, request: arbiter_service_pb2.StreamQualityRequest, context: grpc.ServicerContext
    ) -> Iterator[arbiter_service_pb2.StreamQualityResponse]:
        self.revision += 1
        yield arbiter_service_pb2.StreamQualityResponse(
            server_epoch=self.script.epoch,
            revision=self.revision,
            directives=[
                lease_pb2.Directive(
                    lease_id=lease_id,
                    revision=self.revision,
                    quality=0.5,
                    memory_limit_bytes=1 << 30,
                    reason=lease_pb2.DirectiveReason.DIRECTIVE_REASON_PRESSURE,
                )
                for lease_id in request.lease_ids
            ],
        )

    # What the client never calls: it says all this on its session.

    def Allocate(
        self, request: arbiter_service_pb2.AllocateRequest, context: grpc.ServicerContext
    ) -> arbiter_service_pb2.AllocateResponse:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "sessions only")

    def Release(
        self, request: arbiter_service_pb2.ReleaseRequest, context: grpc.ServicerContext
    ) -> arbiter_service_pb2.ReleaseResponse:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "sessions only")

    def RequestPreemption(
        self, request: arbiter_service_pb2.RequestPreemptionRequest, context: grpc.ServicerContext
    ) -> arbiter_service_pb2.RequestPreemptionResponse:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "sessions only")

    def ReserveKv(
        self, request: arbiter_service_pb2.ReserveKvRequest, context: grpc.ServicerContext
    ) -> arbiter_service_pb2.ReserveKvResponse:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "sessions only")

    def CompleteKv(
        self, request: arbiter_service_pb2.CompleteKvRequest, context: grpc.ServicerContext
    ) -> arbiter_service_pb2.CompleteKvResponse:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "sessions only")

    # StateService.

    def GetState(
        self, request: state_service_pb2.GetStateRequest, context: grpc.ServicerContext
    ) -> state_service_pb2.GetStateResponse:
        return self.script.state

    def Explain(
        self, request: state_service_pb2.ExplainRequest, context: grpc.ServicerContext
    ) -> state_service_pb2.ExplainResponse:
        kind = request.WhichOneof("subject") or ""
        subject = request.lease_id or request.request_id or request.device_id
        found = self.script.explanations.get(f"{kind}:{subject}")
        if found is None:
            reason = "DEVICE_NOT_FOUND" if kind == "device_id" else "LEASE_NOT_FOUND"
            refuse(context, grpc.StatusCode.NOT_FOUND, reason, f"nothing called {subject}", {"id": subject})
        return found

    def WatchEvents(
        self, request: state_service_pb2.WatchEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[state_service_pb2.WatchEventsResponse]:
        over = threading.Event()
        context.add_callback(over.set)
        for event in self.script.events:
            if event.sequence > request.after_sequence:
                yield state_service_pb2.WatchEventsResponse(events=[event])
        over.wait(GUARD_S)


def until(condition: Callable[[], bool]) -> None:
    """Waits until something that gives no sign has become true."""
    never = threading.Event()
    deadline = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        never.wait(0.01)


def refuse(
    context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, message: str, metadata: dict[str, str]
) -> NoReturn:
    """Fails a call the way the arbiter does: the reason and what the message mentions as plain trailing metadata."""
    context.set_trailing_metadata((("arbiter-error-reason", reason), ("arbiter-error-metadata", json.dumps(metadata))))
    context.abort(code, message)


def error(code: grpc.StatusCode, reason: str, **metadata: str) -> arbiter_service_pb2.Error:
    """A failed message of a session."""
    return arbiter_service_pb2.Error(code=code.value[0], reason=reason, message=reason.lower(), metadata=metadata)
