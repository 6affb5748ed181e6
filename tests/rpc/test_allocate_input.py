"""Bad input of Allocate is refused with every bad field by name, and leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import state_service_pb2
from arbiter_sidecar.rpc import server
from arbiter_sidecar.types import GIB
from tests.rpc.served import IMAGE, Refusal, Serve, Served, Setting, refusal, wish
from tests.runtime.fakes import GUARD_S, FakeClock

Changes = Mapping[str, Any]

MOST = (1 << 63) - 1
#: Names that break a line, a terminal, a C program, a disk, or the reader's trust.
HOSTILE = {
    "nul": "a\0b",
    "newline": 'a\n{"event": "serving"}',
    "escape": "\x1b[2Jgone",
    "right_to_left": "invoice\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe",
    "line_separator": "a\N{LINE SEPARATOR}b",
    "zero_width": "a\N{ZERO WIDTH SPACE}b",
    "long": "x" * 10_000,
}


def span(seconds: int = 0, nanos: int = 0) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=seconds, nanos=nanos)


NUMBERS: list[tuple[str, Changes]] = [
    ("memory_bytes", {"memory_bytes": 0}),
    ("memory_bytes", {"memory_bytes": -1}),
    ("memory_bytes", {"memory_bytes": (1 << 53) + 1}),
    ("memory_bytes", {"memory_bytes": MOST}),
    ("memory_bytes", {"memory_bytes": -MOST - 1}),
    ("min_memory_bytes", {"min_memory_bytes": -1}),
    ("min_memory_bytes", {"min_memory_bytes": MOST}),
    ("min_memory_bytes", {"min_memory_bytes": 4 * GIB + 1}),
    ("pids", {"pids": [0]}),
    ("pids", {"pids": [-5]}),
    ("pids", {"pids": list(range(1, 66))}),
    ("kv.share_weight", {"kv": pb.KvShare(share_weight=-1)}),
    ("kv.share_weight", {"kv": pb.KvShare(share_weight=1_000_001)}),
    ("kv.min_tokens", {"kv": pb.KvShare(min_tokens=-1)}),
    ("kv.max_tokens", {"kv": pb.KvShare(min_tokens=2, max_tokens=1)}),
    ("kv.block_tokens", {"kv": pb.KvShare(block_tokens=-16)}),
    ("shard.position", {"shard": pb.Shard(group="g", name="n", position=-1)}),
    ("shard.layers", {"shard": pb.Shard(group="g", name="n", layers=-1)}),
    ("shard.bytes_per_layer", {"shard": pb.Shard(group="g", name="n", bytes_per_layer=MOST)}),
    ("shard.max_layers", {"shard": pb.Shard(group="g", name="n", max_layers=-1)}),
]
QUALITIES: list[tuple[str, Changes]] = [
    *(
        (name, {name: value})
        for name in ("min_quality", "max_quality")
        for value in (math.nan, math.inf, -math.inf, -0.01, 1.01, 1e308)
    ),
    ("min_quality", {"min_quality": 0.6, "max_quality": 0.5}),
]
ENUMS: list[tuple[str, Changes]] = [
    ("workload_type", {"workload_type": 0}),
    ("workload_type", {"workload_type": 99}),
    ("workload_type", {"workload_type": -1}),
    ("priority", {"priority": 6}),
    ("priority", {"priority": (1 << 31) - 1}),
]
SPANS: list[tuple[str, Changes]] = [
    ("ttl", {"ttl": span()}),
    ("ttl", {"ttl": span(-1)}),
    ("ttl", {"ttl": span(0, -1)}),
    ("ttl", {"ttl": span(1, -1)}),
    ("ttl", {"ttl": span(1, 1_000_000_000)}),
    ("ttl", {"ttl": span(MOST)}),
    ("ttl", {"ttl": span(-MOST - 1, -(1 << 31))}),
    ("wait_timeout", {"wait_timeout": span(-1)}),
    ("wait_timeout", {"wait_timeout": span(MOST, 999_999_999)}),
    ("startup_window", {"startup_window": span(-1)}),
    ("startup_window", {"startup_window": span(901), "pids": [42]}),
    ("startup_window", {"startup_window": span(10)}),
    ("startup_window", {"startup_window": span(10), "pids": [4711]}),
]
TEXTS: list[tuple[str, Changes]] = [
    ("holder", {"holder": ""}),
    *((name, {name: text}) for name in ("holder", "request_id", "namespace", "device_id") for text in HOSTILE.values()),
    ("holder", {"holder": "x" * 129}),
    ("request_id", {"request_id": "x" * 129}),
    ("namespace", {"namespace": "x" * 65}),
    ("shard.group", {"shard": pb.Shard(group="", name="n")}),
    ("shard.name", {"shard": pb.Shard(group="g", name="a\0")}),
    ("labels", {"labels": {f"key{number}": "" for number in range(17)}}),
    ("labels", {"labels": {"": "value"}}),
    ("labels", {"labels": {"x" * 65: "value"}}),
    ("labels", {"labels": {"key": "x" * 257}}),
    ("labels", {"labels": {"key": "a\nb"}}),
    ("labels", {"labels": {"a\0b": ""}}),
]


@pytest.fixture
async def busy(serve: Serve) -> Served:
    """A server with a lease, on which no time passes."""
    served = await serve(Setting(clock=FakeClock(), pids=(42,)))
    await served.lease(holder="first", memory_bytes=20 * GIB, min_quality=1.0)
    return served


async def untouched(served: Served, request: pb.AllocateRequest) -> Refusal:
    """The refusal of a call, which must leave everything as it was."""
    before = await served.state(include_ended=True)
    refused = await refusal(served.calls.Allocate(request, timeout=GUARD_S))
    assert await served.state(include_ended=True) == before
    return refused


@pytest.mark.parametrize(("field", "changes"), [*NUMBERS, *QUALITIES, *ENUMS, *SPANS, *TEXTS])
async def test_field_is_named_when_it_is_bad(busy: Served, field: str, changes: Changes) -> None:
    refused = await untouched(busy, wish(**changes))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.domain, refused.reason) == ("arbiter", "INVALID_REQUEST")
    assert refused.fields == {field}
    assert refused.metadata["fields"].split(",")[0] == field
    assert refused.message.isprintable()


async def test_every_field_is_named_when_everything_is_bad(busy: Served) -> None:
    texts = ("holder", "request_id", "namespace", "device_id")
    bad: dict[str, Any] = {
        **dict.fromkeys(texts, HOSTILE["newline"]),
        "workload_type": 99,
        "priority": -1,
        "memory_bytes": MOST,
        "min_memory_bytes": -1,
        "min_quality": math.nan,
        "max_quality": math.inf,
        "pids": [0],
        "ttl": span(),
        "wait_timeout": span(-1),
        "startup_window": span(MOST),
        "labels": {"a\0b": "x" * 257},
        "kv": pb.KvShare(share_weight=-1, min_tokens=-1, max_tokens=-2, block_tokens=-1),
        "shard": pb.Shard(position=-1, layers=-1, bytes_per_layer=-1, max_layers=-1),
    }
    refused = await untouched(busy, pb.AllocateRequest(**bad))
    kv = {f"kv.{name}" for name in ("share_weight", "min_tokens", "max_tokens", "block_tokens")}
    shard = {f"shard.{name}" for name in ("group", "name", "position", "layers", "bytes_per_layer", "max_layers")}
    assert refused.fields == (set(bad) - {"kv", "shard"}) | kv | shard


async def test_required_fields_are_named_when_everything_is_missing(busy: Served) -> None:
    refused = await untouched(busy, pb.AllocateRequest())
    assert refused.fields == {"holder", "workload_type", "memory_bytes"}
    assert dict(refused.violations)["holder"] == "is required"


async def test_dry_run_is_checked_when_it_has_bad_fields(busy: Served) -> None:
    refused = await untouched(busy, wish(dry_run=True, memory_bytes=-1))
    assert refused.fields == {"memory_bytes"}


async def test_limits_are_allowed_when_they_are_just_reached(busy: Served) -> None:
    request = wish(
        holder="x" * 128,
        request_id="é" * 128,
        namespace="n" * 64,
        memory_bytes=1,
        min_memory_bytes=0,
        min_quality=0.0,
        max_quality=0.0,
        pids=[42] * 64,
        priority=5,
        ttl=span(0, 1),
        wait_timeout=span(),
        startup_window=span(900),
        labels={f"{number:064}": "v" * 256 for number in range(16)},
    )
    answer = await busy.calls.Allocate(request, timeout=GUARD_S)
    assert answer.lease.ttl == span(3)
    assert list(answer.lease.pids) == [42]
    assert dict(answer.lease.labels) == dict(request.labels)
    assert answer.lease.priority == 5


async def test_priority_is_normal_when_unspecified(served: Served) -> None:
    assert (await served.lease(priority=0)).lease.priority == 3


async def test_memory_is_too_much_when_it_is_the_largest_allowed(busy: Served) -> None:
    refused = await untouched(busy, wish(memory_bytes=1 << 53))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "EXCEEDS_CAPACITY"
    assert int(refused.metadata["capacity_bytes"]) == 24 * GIB


async def test_device_is_named_when_it_is_unknown(busy: Served) -> None:
    refused = await untouched(busy, wish(device_id="gpu1"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "DEVICE_NOT_FOUND")
    assert refused.metadata == {"device_id": "gpu1"}


@pytest.mark.parametrize(
    "garbage",
    [b"\xff", b"\x12", b"\x12\x7fshort", b"\x0a\x03\xed\xa0\x80", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256))],
    ids=["tag", "no_length", "short", "unpaired_surrogate", "http", "all_bytes"],
)
@pytest.mark.parametrize(
    "method",
    ["ArbiterService/Allocate", "ArbiterService/Heartbeat", "ArbiterService/Release", "StateService/Explain"],
)
async def test_bytes_are_refused_when_they_are_no_message(busy: Served, method: str, garbage: bytes) -> None:
    before = await busy.state()
    refused = await refusal(busy.raw(method)(garbage, timeout=GUARD_S))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert await busy.state() == before


@pytest.mark.parametrize("method", ["ArbiterService/StreamQuality", "StateService/WatchEvents"])
async def test_bytes_are_refused_when_they_open_no_stream(busy: Served, method: str) -> None:
    stream = busy.raw_stream(method)(b"\xff", timeout=GUARD_S)
    refused = await refusal(stream.read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_request_is_refused_when_it_is_larger_than_the_limit(busy: Served) -> None:
    before = await busy.state()
    request = wish(labels={"key": "x" * server.MAX_REQUEST_BYTES})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await busy.calls.Allocate(request, timeout=GUARD_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await busy.state() == before


async def test_unknown_fields_are_ignored_when_a_newer_client_sends_them(served: Served) -> None:
    raw = wish().SerializeToString() + b"\xf8\x3f\x01"
    answer = await served.raw("ArbiterService/Allocate")(raw, timeout=GUARD_S)
    assert pb.AllocateResponse.FromString(answer).lease.holder == "worker"


async def test_names_of_all_scripts_are_kept_when_they_can_be_printed(served: Served) -> None:
    holder = 'Bär "quoted" \\n 图像 🦄 %s {x}'
    answer = await served.lease(holder=holder, workload_type=IMAGE)
    assert answer.lease.holder == holder
    found: state_service_pb2.GetStateResponse = await served.state()
    assert found.leases[0].holder == holder
