"""Every reason of the protocol has a class, and the class is found by the reason alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from arbiter.v1 import error_reason_pb2, state_service_pb2
from arbiter_client import errors
from arbiter_client.grpc_transport import GrpcTransport
from tests.client import scripted_server

if TYPE_CHECKING:
    from tests.client.scripted_server import ScriptedServer

NAMES = [value.name.removeprefix("ERROR_REASON_") for value in error_reason_pb2.ErrorReason.DESCRIPTOR.values]


def test_by_reason_covers_the_protocol_exactly() -> None:
    assert sorted(errors.BY_REASON) == sorted(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "UNSPECIFIED"])
def test_a_class_is_named_after_its_reason(name: str) -> None:
    kind = errors.BY_REASON[name]
    assert kind.__name__ == "".join(part.capitalize() for part in name.split("_"))
    assert kind.default_reason == name
    raised = kind()
    assert (raised.reason, raised.code) == (name, kind.default_code)
    assert raised.message.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_from_session_error_finds_the_class(name: str) -> None:
    message = scripted_server.error(grpc.StatusCode.ABORTED, name, waited_ms="7")
    found = errors.from_session_error(message)
    assert type(found) is errors.BY_REASON[name]
    assert found.code is grpc.StatusCode.ABORTED
    assert found.metadata == {"waited_ms": "7"}


def test_from_session_error_keeps_a_reason_that_is_new() -> None:
    found = errors.from_session_error(scripted_server.error(grpc.StatusCode.ABORTED, "FROM_THE_FUTURE"))
    assert type(found) is errors.ArbiterClientError
    assert found.reason == "FROM_THE_FUTURE"


def test_from_session_error_reads_an_unknown_code_as_unknown() -> None:
    message = scripted_server.error(grpc.StatusCode.ABORTED, "INTERNAL")
    message.code = 4711
    assert errors.from_session_error(message).code is grpc.StatusCode.UNKNOWN


def test_from_rpc_error_reads_the_trailing_metadata(server: ScriptedServer) -> None:
    source = GrpcTransport(server.address)
    with pytest.raises(errors.DeviceNotFound, match="nothing called gpu9") as raised:
        source.calls.explain(state_service_pb2.ExplainRequest(device_id="gpu9"), 10)
    source.close()
    assert raised.value.metadata == {"id": "gpu9"}
    assert raised.value.code is grpc.StatusCode.NOT_FOUND


def test_from_rpc_error_names_address_and_next_command_when_nobody_answers() -> None:
    source = GrpcTransport("unix:/nonexistent/arbiter.sock")
    with pytest.raises(errors.ArbiterUnreachable) as raised:
        source.calls.get_state(state_service_pb2.GetStateRequest(), 10)
    source.close()
    assert "unix:/nonexistent/arbiter.sock" in raised.value.message
    assert "arbiter-sidecar serve" in raised.value.message


def test_from_rpc_error_survives_an_error_without_a_status() -> None:
    assert type(errors.from_rpc_error(grpc.RpcError("odd"))) is errors.ArbiterClientError


def test_lease_lost_says_which_and_why() -> None:
    lost = errors.LeaseLost("l1", "EXPIRED")
    assert (lost.lease_id, lost.end_reason) == ("l1", "EXPIRED")
    assert "l1" in lost.message
