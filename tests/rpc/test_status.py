"""Domain errors become gRPC statuses, one way, with everything a caller needs and nothing that could hurt it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import error_reason_pb2
from arbiter_sidecar import errors
from arbiter_sidecar.rpc import handlers, session, status
from tests.rpc.served import Served, refusal, report
from tests.runtime.fakes import GUARD_S

HOSTILE = 'a\0b\r\nx: y\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}é🦄"\\'


def _kinds(root: type[errors.ArbiterError]) -> Iterator[type[errors.ArbiterError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from _kinds(kind)


KINDS = sorted(set(_kinds(errors.ArbiterError)), key=lambda kind: kind.__name__)
assert {session.SessionMoved, status.Internal, errors.Fenced} <= set(KINDS)

Fail = Callable[[Exception], "grpc.aio.UnaryUnaryCall[pb.ReleaseRequest, pb.ReleaseResponse]"]


def made(kind: type[errors.ArbiterError]) -> errors.ArbiterError:
    if kind is errors.InvalidRequest:
        return errors.InvalidRequest([("holder", "is required"), ("memory_bytes", "is 0")])
    return kind("what happened", lease_id="lease-1", waited_ms=12)


@pytest.fixture
async def fail(tmp_path: Path) -> AsyncIterator[Fail]:
    """Makes a call that fails in the server with the given error."""
    raised: list[Exception] = []

    async def call(_: pb.ReleaseRequest, __: status.Context) -> pb.ReleaseResponse:
        raise raised.pop()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers.service("s", {"m": handlers.unary(pb.ReleaseRequest, call)}),))
    server.add_insecure_port(f"unix:{tmp_path}/s.sock")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[pb.ReleaseRequest, pb.ReleaseResponse] = channel.unary_unary(
            "/s/m", pb.ReleaseRequest.SerializeToString, pb.ReleaseResponse.FromString
        )

        def make(
            error: Exception,
        ) -> grpc.aio.UnaryUnaryCall[pb.ReleaseRequest, pb.ReleaseResponse]:
            raised.append(error)
            return method(pb.ReleaseRequest(), timeout=GUARD_S)

        yield make
    await server.stop(None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_error_arrives_whole_when_it_is_raised(fail: Fail, kind: type[errors.ArbiterError]) -> None:
    error = made(kind)
    refused = await refusal(fail(error))
    assert refused.code is grpc.StatusCode[kind.code]
    assert refused.code is not grpc.StatusCode.OK
    assert refused.message == error.message
    assert (refused.reason, refused.domain) == (kind.reason, "arbiter")
    assert refused.metadata == error.metadata()
    assert refused.plain_reason == kind.reason
    assert refused.plain_metadata == refused.metadata
    assert refused.retry_s == kind.retry_after_s
    assert (refused.code is grpc.StatusCode.INVALID_ARGUMENT and bool(refused.violations)) == (
        kind is errors.InvalidRequest
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_reason_is_in_the_contract_when_an_error_has_one(kind: type[errors.ArbiterError]) -> None:
    assert f"ERROR_REASON_{kind.reason}" in dict(error_reason_pb2.ErrorReason.items())
    assert kind.reason != "UNSPECIFIED"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_session_error_says_the_same_when_a_message_fails(kind: type[errors.ArbiterError]) -> None:
    error = made(kind)
    told = status.session_error(error)
    assert told.code == grpc.StatusCode[kind.code].value[0]
    assert (told.reason, told.message) == (kind.reason, error.message)
    assert dict(told.metadata) == error.metadata()


async def test_text_is_escaped_and_cut_when_it_is_hostile(fail: Fail) -> None:
    refused = await refusal(fail(errors.LeaseNotFound(HOSTILE, lease_id=HOSTILE, other="x" * 5000)))
    assert refused.message.isascii()
    assert refused.message.isprintable()
    assert refused.metadata["lease_id"] == refused.message
    assert refused.message.startswith(r"a\x00b\r\nx: y\x1b[2J")
    assert len(refused.metadata["other"]) <= status.MAX_TEXT
    assert refused.metadata["other"].endswith("...")


async def test_violations_are_escaped_when_they_are_hostile(fail: Fail) -> None:
    refused = await refusal(fail(errors.InvalidRequest([("holder", HOSTILE)])))
    assert refused.violations[0][1].isascii()
    assert refused.violations[0][1].isprintable()


async def test_answer_fits_into_a_header_when_everything_is_wrong(fail: Fail) -> None:
    bad = [(f"reports[{place}].used_memory_bytes", "is -1, must be " + HOSTILE * 10) for place in range(2000)]
    refused = await refusal(fail(errors.InvalidRequest(bad)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.violations[0][0] == "reports[0].used_memory_bytes"
    named = len(refused.violations) - 1
    assert named >= 3
    assert refused.violations[-1] == ("", f"and {2000 - named} more")


async def test_answer_fits_into_a_header_when_all_metadata_is_long(fail: Fail) -> None:
    error = errors.LeaseNotFound("x" * 5000, **{f"key{place}": HOSTILE * 100 for place in range(20)})
    assert (await refusal(fail(error))).code is grpc.StatusCode.NOT_FOUND


async def test_every_report_is_judged_when_all_of_a_heartbeat_are_bad(served: Served) -> None:
    lease = (await served.lease()).lease
    outcome = pb.ReportOutcome.ValueType(9)
    bad = [report(lease, applied_revision=-1, outcome=outcome, achievable_quality=2.0) for _ in range(256)]
    refused = await refusal(served.calls.Heartbeat(pb.HeartbeatRequest(reports=bad), timeout=GUARD_S))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {"reports[0].applied_revision", "reports[0].outcome", "reports[0].achievable_quality"} <= refused.fields


async def test_defect_is_logged_and_not_told_when_a_call_raises_something_else(fail: Fail) -> None:
    with capture_logs() as lines:
        refused = await refusal(fail(KeyError("secret detail")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in json.dumps([refused.message, *refused.metadata.items()])
    [line] = [line for line in lines if line["event"] == "call_failed"]
    assert "secret detail" in line["error"]


async def test_refusal_of_memory_tells_when_to_retry(served: Served) -> None:
    await served.lease(memory_bytes=20 << 30, min_quality=1.0)
    refused = await refusal(served.lease(holder="late", memory_bytes=20 << 30, min_quality=1.0, wait_timeout={}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_MEMORY")
    assert refused.retry_s is not None
    assert refused.retry_s > 0
    assert refused.metadata == {
        "requested_bytes": str(20 << 30),
        "available_bytes": str(4 << 30),
        "device_id": "gpu0",
    }
