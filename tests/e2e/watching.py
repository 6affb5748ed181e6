"""Reads the audit events of a server as they come."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from arbiter.v1 import state_service_pb2 as pb
from arbiter.v1 import state_service_pb2_grpc

#: A guard against hanging, never a promise: everything waited for here takes at most a tenth of it.
GUARD_S = 30.0


class Events:
    """The events since the watch began, each with the moment it was heard."""

    def __init__(self) -> None:
        self._heard: queue.Queue[tuple[pb.Event, float]] = queue.Queue()

    def put(self, event: pb.Event) -> None:
        """Remembers an event."""
        self._heard.put((event, time.monotonic()))

    def until(self, kind: pb.EventKind.ValueType, lease_id: str = "") -> tuple[pb.Event, float]:
        """The next event of this kind, passing over others; with the moment it was heard."""
        deadline = time.monotonic() + GUARD_S
        while True:
            event, heard = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            if event.kind == kind and lease_id in ("", event.lease_id):
                return event, heard


@contextmanager
def events_of(channel: grpc.Channel) -> Iterator[Events]:
    """Watches until the block ends."""
    stream = state_service_pb2_grpc.StateServiceStub(channel).WatchEvents(pb.WatchEventsRequest())
    stream.initial_metadata()
    events = Events()

    def read() -> None:
        try:
            for message in stream:
                for event in message.events:
                    events.put(event)
        except grpc.RpcError as error:
            # Cancelled by us, or ended with its server; whoever still waits for an event says that it did not come.
            if stream.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
                raise AssertionError(f"the watch of events failed: {stream.details()}") from error

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield events
    finally:
        stream.cancel()
        reader.join(GUARD_S)
