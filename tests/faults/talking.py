"""One session with a real server: the test writes what it wants and reads what comes."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc
from tests.faults.conftest import GUARD_S

#: Another connection than everybody else's.
OWN = ("grpc.use_local_subchannel_pool", 1)
#: A client that takes little in advance: what it does not read soon fills up.
NARROW = (OWN, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384))


class Talk:
    """One session over a connection."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._said: queue.Queue[pb.SessionRequest | None] = queue.Queue()
        self._numbers = itertools.count(1)
        said: Iterator[pb.SessionRequest] = iter(self._said.get, None)
        self.call = arbiter_service_pb2_grpc.ArbiterServiceStub(channel).Session(said, timeout=4 * GUARD_S)

    def send(self, request: pb.SessionRequest) -> int:
        """Says something without waiting for the answer; its number."""
        request.correlation_id = next(self._numbers)
        self._said.put(request)
        return request.correlation_id

    def ask(self, request: pb.SessionRequest) -> pb.SessionResponse:
        """Says something and waits for its answer; what is pushed before it is passed over."""
        number = self.send(request)
        return next(response for response in self.call if response.correlation_id == number)

    def beat(self, worker: str, incarnation: int, sequence: int, *handles: int) -> pb.SessionResponse:
        """A heartbeat and its answer."""
        heartbeat = pb.HeartbeatRequest(worker=worker, incarnation=incarnation, sequence=sequence, handles=handles)
        return self.ask(pb.SessionRequest(heartbeat=heartbeat))

    def end(self) -> None:
        """Says nothing more, and hears nothing."""
        self._said.put(None)
        self.call.cancel()


@contextmanager
def talking(address: str, *options: tuple[str, int]) -> Iterator[Talk]:
    """A session over a connection of its own until the block ends."""
    with grpc.insecure_channel(address, options=options or (OWN,)) as channel:
        talk = Talk(channel)
        try:
            yield talk
        finally:
            talk.end()
