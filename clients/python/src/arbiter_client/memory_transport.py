"""The way to the in-memory arbiter of ``testing``: sessions and calls without a socket."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from arbiter_client import errors

if TYPE_CHECKING:
    from arbiter.v1 import arbiter_service_pb2, state_service_pb2
    from arbiter_client import transport
    from arbiter_client.testing import InMemoryArbiter

#: Responses that may wait for a client; one that lets more pile up is cut off.
MAX_UNDELIVERED = 4096


class Link:
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


class Transport:
    """The seam, with an arbiter in memory behind it."""

    address = "in-memory"

    def __init__(self, arbiter: InMemoryArbiter) -> None:
        self._arbiter = arbiter

    @property
    def calls(self) -> transport.Calls:
        """The calls beside the session."""
        return Calls(self._arbiter)

    def open(self, on_response: transport.OnResponse, on_end: transport.OnEnd) -> Link:
        """Begins a session."""
        return self._arbiter.connect(on_response, on_end)

    def close(self) -> None:
        """There is nothing to let go of."""


class Calls:
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
