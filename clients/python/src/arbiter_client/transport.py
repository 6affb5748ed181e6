"""The seam between the client and whatever carries its messages: gRPC, or the in-memory arbiter of ``testing``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from arbiter.v1 import arbiter_service_pb2, state_service_pb2
    from arbiter_client.errors import ArbiterClientError

    OnResponse = Callable[[arbiter_service_pb2.SessionResponse], None]
    OnEnd = Callable[[ArbiterClientError | None], None]

Message_co = TypeVar("Message_co", covariant=True)


class Link(Protocol):
    """One open session. Its callbacks run on a thread of the transport and never on the caller's."""

    def send(self, request: arbiter_service_pb2.SessionRequest) -> bool:
        """Queues a message without blocking; False when the link takes no more, and ``on_end`` will say so."""

    def close(self) -> None:
        """Ends the session; ``on_end`` is still called once, unless it was before."""


class Calls(Protocol):
    """The calls that look at the arbiter. Each blocks its thread for at most ``timeout`` seconds.

    Raises:
        ArbiterClientError: In every method, the class that fits the reason.
    """

    def get_state(
        self, request: state_service_pb2.GetStateRequest, timeout: float
    ) -> state_service_pb2.GetStateResponse:
        """The picture."""

    def explain(self, request: state_service_pb2.ExplainRequest, timeout: float) -> state_service_pb2.ExplainResponse:
        """The reason."""

    def watch_events(
        self, request: state_service_pb2.WatchEventsRequest
    ) -> Stream[state_service_pb2.WatchEventsResponse]:
        """The events; without a timeout."""

    def stream_quality(
        self, request: arbiter_service_pb2.StreamQualityRequest
    ) -> Stream[arbiter_service_pb2.StreamQualityResponse]:
        """The directives of any leases, for people who watch; without a timeout."""


class Stream(Protocol[Message_co]):
    """Messages as they come, read on one thread and cancelled from any."""

    def next(self) -> Message_co | None:
        """The next message, or ``None`` when the stream is over or was cancelled.

        Raises:
            ArbiterClientError: The stream failed.
        """

    def cancel(self) -> None:
        """Ends the stream and wakes the reader."""


class Transport(Protocol):
    """Opens sessions and makes calls."""

    @property
    def address(self) -> str:
        """What messages for people call the arbiter."""

    @property
    def calls(self) -> Calls:
        """The calls beside the session."""

    def open(self, on_response: OnResponse, on_end: OnEnd) -> Link:
        """Begins a session at once; a failure to connect arrives through ``on_end``."""

    def close(self) -> None:
        """Lets go of every connection."""
