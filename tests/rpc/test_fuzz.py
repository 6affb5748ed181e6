"""Whatever comes in, the answer is an answer or a typed refusal, and the books stay sound."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.descriptor import FieldDescriptor

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import balance_service_pb2, lease_pb2, state_service_pb2
from arbiter_sidecar.rpc import server
from arbiter_sidecar.types import GIB
from tests.rpc.served import Serve, Served, Setting, told
from tests.runtime.fakes import GUARD_S, FakeClock

if TYPE_CHECKING:
    from google.protobuf.message import Message

#: What may be answered to nonsense. INTERNAL and UNKNOWN would be defects.
ALLOWED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
}
INTEGERS = (0, 1, -1, 2, 3, 7, 42, 1001, 1 << 20, 4 * GIB, 24 * GIB, 1 << 31, (1 << 53) + 1, (1 << 63) - 1, -(1 << 63))
NUMBERS = (0.0, 0.5, 1.0, -0.0, 1.5, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1e308)
TEXTS = (
    "",
    "a",
    "gpu0",
    "lease-1",
    "lease-2",
    "r1",
    "default",
    "a\0b",
    "a\nb",
    "x" * 129,
    "\N{RIGHT-TO-LEFT OVERRIDE}",
)
LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
#: The wait of a request would hold the test up; it is set by the test itself.
LEFT_OUT = {"wait_timeout"}


def scalar(chance: random.Random, field: Any) -> int | float | str | bool:
    """A value of the field's type, more often strange than not."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return chance.choice(TEXTS)
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return chance.choice(NUMBERS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    least, most = LIMITS[kind]
    return min(most, max(least, chance.choice(INTEGERS)))


def fill(chance: random.Random, message: Message, share: float) -> None:
    """Sets some fields of a message to anything."""
    for field in message.DESCRIPTOR.fields:
        if field.name in LEFT_OUT or chance.random() > share:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(chance.choice((1, 3, 17))):
                getattr(message, field.name)[chance.choice(TEXTS) + str(chance.random())] = chance.choice(TEXTS)
        elif field.is_repeated:
            for _ in range(chance.choice((1, 2, 65))):
                if field.message_type is not None:
                    fill(chance, getattr(message, field.name).add(), share)
                else:
                    getattr(message, field.name).append(scalar(chance, field))
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            fill(chance, getattr(message, field.name), share)
        else:
            setattr(message, field.name, scalar(chance, field))


def sensible(chance: random.Random) -> pb.AllocateRequest:
    """A request that would be granted, before something is changed."""
    return pb.AllocateRequest(
        holder="w", workload_type=lease_pb2.WORKLOAD_TYPE_OTHER, memory_bytes=chance.choice((1, GIB))
    )


def requests(chance: random.Random) -> Iterator[tuple[str, Message]]:
    """Calls of every kind."""
    while True:
        asked = sensible(chance)
        fill(chance, asked, 0.1)
        asked.wait_timeout.SetInParent()
        yield "ArbiterService/Allocate", asked
        kinds: tuple[tuple[str, Callable[[], Message], float], ...] = (
            ("ArbiterService/Heartbeat", pb.HeartbeatRequest, 0.5),
            ("ArbiterService/Release", pb.ReleaseRequest, 0.8),
            ("ArbiterService/RequestPreemption", pb.RequestPreemptionRequest, 0.5),
            ("BalanceService/EvaluateBalance", balance_service_pb2.EvaluateBalanceRequest, 0.7),
            ("BalanceService/ApplyAssignment", balance_service_pb2.ApplyAssignmentRequest, 0.7),
            ("StateService/GetState", state_service_pb2.GetStateRequest, 0.5),
            ("StateService/Explain", state_service_pb2.ExplainRequest, 0.5),
        )
        for method, make, share in kinds:
            message = make()
            fill(chance, message, share)
            yield method, message


async def outcome(served: Served, method: str, raw: bytes) -> grpc.StatusCode:
    """How a call ended."""
    try:
        await served.raw(method)(raw, timeout=GUARD_S)
    except grpc.aio.AioRpcError as error:
        return told(error).code if len(raw) <= server.MAX_REQUEST_BYTES else error.code()
    return grpc.StatusCode.OK


@pytest.fixture
async def fuzzed(serve: Serve) -> Served:
    """A server on which nothing expires."""
    return await serve(Setting(clock=FakeClock(), pids=(1, 2, 3, 42)))


async def test_every_message_is_answered_when_its_fields_hold_anything(fuzzed: Served) -> None:
    chance = random.Random(20)
    seen: dict[grpc.StatusCode, int] = {}
    for _, (method, message) in zip(range(1200), requests(chance), strict=False):
        code = await outcome(fuzzed, method, message.SerializeToString())
        assert code in ALLOWED | {grpc.StatusCode.OK}, message
        seen[code] = seen.get(code, 0) + 1
    fuzzed.arbiter.check()
    # The mixture must reach past the first check.
    assert seen[grpc.StatusCode.OK] > 100
    assert seen[grpc.StatusCode.INVALID_ARGUMENT] > 100
    await fuzzed.state(include_ended=True)


async def test_every_call_is_answered_when_its_bytes_are_damaged(fuzzed: Served) -> None:
    chance = random.Random(21)
    for _, (method, message) in zip(range(600), requests(chance), strict=False):
        raw = bytearray(message.SerializeToString())
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(raw) + 1)
            raw[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
        if method.endswith("Allocate"):
            # Appended last, so it wins: nobody waits.
            raw += pb.AllocateRequest(wait_timeout=duration_pb2.Duration()).SerializeToString() if raw else b""
        assert await outcome(fuzzed, method, bytes(raw)) in ALLOWED | {grpc.StatusCode.OK}
    fuzzed.arbiter.check()
    assert (await fuzzed.lease(memory_bytes=1 << 20, wait_timeout={})).lease.lease_id
