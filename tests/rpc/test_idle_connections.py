"""A client that pings as often as our own may stay as long as it likes without saying anything."""

from __future__ import annotations

import asyncio

import pytest

from arbiter.v1 import state_service_pb2, state_service_pb2_grpc
from tests.rpc.served import Served

#: Just above the bound that the server sets; one that forgot to set it ends the connection at the fifth ping or sooner.
PING_MS = 4_500
PINGS = 8


@pytest.mark.slow
async def test_idle_stream_stays_open_however_often_the_client_pings(served: Served) -> None:
    channel = served.connect(
        ("grpc.keepalive_time_ms", PING_MS),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    stub: state_service_pb2_grpc.StateServiceAsyncStub = state_service_pb2_grpc.StateServiceStub(channel)
    watch = stub.WatchEvents(state_service_pb2.WatchEventsRequest())
    await watch.initial_metadata()
    await asyncio.sleep(PINGS * PING_MS / 1000)
    assert not watch.done()
    watch.cancel()
