"""Calls are counted under the names that dashboards know, each once, however it ends."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import state_service_pb2
from arbiter_sidecar.metrics.calls import code_name
from arbiter_sidecar.types import GIB
from tests.metrics.scraping import Numbers, Scraped
from tests.rpc.served import refusal, wish
from tests.runtime.fakes import until

SERVICE = "arbiter.v1.ArbiterService"


class Calls:
    """What has been added since the beginning: the counters are those of the process, which runs other tests too."""

    def __init__(self, scraped: Scraped, before: Numbers) -> None:
        self._scraped = scraped
        self._before = before
        self._after = before

    async def look(self) -> None:
        """Scrapes."""
        self._after = await self._scraped.scrape()

    def _more(self, name: str, **labels: str) -> float:
        return (self._after.get(name, **labels) or 0.0) - (self._before.get(name, **labels) or 0.0)

    def started(self, method: str, kind: str = "unary", service: str = SERVICE) -> float:
        """Calls that have begun."""
        labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": method}
        return self._more("grpc_server_started_total", **labels)

    def handled(self, method: str, code: str, kind: str = "unary", service: str = SERVICE) -> float:
        """Calls that have ended."""
        labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": method, "grpc_code": code}
        return self._more("grpc_server_handled_total", **labels)

    def timed(self, method: str, suffix: str, **labels: str) -> float:
        """What a histogram says."""
        named = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": method, **labels}
        return self._more(f"grpc_server_handling_seconds_{suffix}", **named)


@pytest.fixture
async def calls(scraped: Scraped) -> Calls:
    """Counts from now on."""
    return Calls(scraped, await scraped.scrape())


async def test_unary_calls_are_counted_and_timed(scraped: Scraped, calls: Calls) -> None:
    held = (await scraped.lease()).lease
    for _ in range(3):
        await scraped.beat(handles=[held.handle])
    assert (await refusal(scraped.calls.Release(pb.ReleaseRequest(lease_id="no", fence=1)))).reason == "LEASE_NOT_FOUND"
    assert (await refusal(scraped.raw("ArbiterService/Heartbeat")(b"\xff"))).code is grpc.StatusCode.INVALID_ARGUMENT
    await calls.look()
    assert (calls.started("Heartbeat"), calls.handled("Heartbeat", "OK")) == (4, 3)
    assert calls.handled("Heartbeat", "InvalidArgument") == 1
    assert (calls.started("Release"), calls.handled("Release", "NotFound"), calls.handled("Release", "OK")) == (1, 1, 0)
    assert (calls.started("Allocate"), calls.handled("Allocate", "OK")) == (1, 1)
    assert calls.timed("Heartbeat", "count") == calls.timed("Heartbeat", "bucket", le="+Inf") == 4
    assert calls.timed("Heartbeat", "bucket", le="120.0") == 4
    assert 0.0 < calls.timed("Heartbeat", "sum") < 60.0


async def test_waiting_counts_into_the_time_and_a_caller_that_goes_is_counted(scraped: Scraped, calls: Calls) -> None:
    await scraped.lease(memory_bytes=24 * GIB, min_quality=1.0)
    asked = wish(min_quality=1.0)
    asked.wait_timeout.FromMilliseconds(120)
    assert (await refusal(scraped.calls.Allocate(asked))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    asked.wait_timeout.FromSeconds(300)
    call = scraped.calls.Allocate(asked, timeout=300)
    waiting = asyncio.ensure_future(call)
    await until(lambda: len(scraped.arbiter.books.queue) == 1)
    await calls.look()
    assert (calls.started("Allocate"), calls.handled("Allocate", "OK")) == (3, 1)
    assert calls.handled("Allocate", "DeadlineExceeded") == 1
    assert calls.timed("Allocate", "sum") >= 0.12
    assert calls.timed("Allocate", "bucket", le="0.1") == 1
    call.cancel()
    await asyncio.wait([waiting])
    await until(lambda: not len(scraped.arbiter.books.queue))
    await calls.look()
    assert calls.handled("Allocate", "Canceled") == 1
    assert calls.timed("Allocate", "count") == 3


async def test_streams_are_counted_and_not_timed(scraped: Scraped, calls: Calls) -> None:
    held = (await scraped.lease()).lease
    stream = scraped.calls.StreamQuality(pb.StreamQualityRequest(lease_ids=[held.lease_id]))
    await stream.read()
    session = scraped.calls.Session()
    await session.write(pb.SessionRequest(correlation_id=1, heartbeat=pb.HeartbeatRequest(handles=[held.handle])))
    assert await session.read() is not grpc.aio.EOF
    watch = scraped.states.WatchEvents(state_service_pb2.WatchEventsRequest())
    await watch.initial_metadata()
    await calls.look()
    state = "arbiter.v1.StateService"
    assert calls.started("StreamQuality", "server_stream") == 1
    assert calls.started("Session", "bidi_stream") == 1
    assert calls.started("WatchEvents", "server_stream", state) == 1
    assert calls.handled("StreamQuality", "OK", "server_stream") == 0
    await scraped.release(held)
    while await stream.read() is not grpc.aio.EOF:
        pass
    await session.done_writing()
    assert await session.read() is grpc.aio.EOF
    watch.cancel()
    await until(lambda: scraped.runtime.events.watchers == 1)
    await calls.look()
    assert calls.handled("StreamQuality", "OK", "server_stream") == 1
    assert calls.handled("Session", "OK", "bidi_stream") == 1
    assert calls.handled("WatchEvents", "Canceled", "server_stream", state) == 1
    assert calls.started("Heartbeat") == 0
    assert not (await scraped.scrape()).all("grpc_server_handling_seconds_count", grpc_type="bidi_stream")


async def test_every_method_is_there_before_its_first_call(scraped: Scraped) -> None:
    numbers = await scraped.scrape()
    for service in (pb.DESCRIPTOR, state_service_pb2.DESCRIPTOR):
        for described in service.services_by_name.values():
            for method in described.methods:
                labels = {"grpc_service": described.full_name, "grpc_method": method.name}
                assert len(numbers.all("grpc_server_started_total", **labels)) == 1
                assert len(numbers.all("grpc_server_handled_total", grpc_code="OK", **labels)) == 1


def test_codes_are_written_as_dashboards_expect() -> None:
    # As the Go library writes them, which the dashboards were made for.
    written = {
        "OK": "OK",
        "CANCELLED": "Canceled",
        "UNKNOWN": "Unknown",
        "INVALID_ARGUMENT": "InvalidArgument",
        "DEADLINE_EXCEEDED": "DeadlineExceeded",
        "RESOURCE_EXHAUSTED": "ResourceExhausted",
        "FAILED_PRECONDITION": "FailedPrecondition",
        "OUT_OF_RANGE": "OutOfRange",
        "DATA_LOSS": "DataLoss",
    }
    assert {code: code_name(code) for code in written} == written
    assert len({code_name(code.name) for code in grpc.StatusCode}) == len(grpc.StatusCode)
