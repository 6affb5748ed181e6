"""The wire contract, the domain's words and errors, and the client's exceptions say the same."""

from __future__ import annotations

import enum
import inspect
import re

import grpc
import pytest

import arbiter_client.errors
from arbiter.v1 import arbiter_service_pb2, error_reason_pb2, lease_pb2, state_service_pb2
from arbiter_sidecar import errors, types
from tests.contracts import checkout

_MODULES = (lease_pb2, arbiter_service_pb2, state_service_pb2)
_ENUMS = sorted(
    (value for _, value in inspect.getmembers(types, inspect.isclass) if issubclass(value, enum.IntEnum)),
    key=lambda value: value.__name__,
)
_ENUMS = [value for value in _ENUMS if value is not enum.IntEnum]
_REASONS = {
    name.removeprefix("ERROR_REASON_"): number for name, number in error_reason_pb2.ErrorReason.items() if number
}


def _wire(name: str) -> dict[str, int]:
    """Numbers by name of an enumeration of the contract."""
    for module in _MODULES:
        found = module.DESCRIPTOR.enum_types_by_name.get(name)
        if found is not None:
            return {value.name: value.number for value in found.values}
    raise LookupError(name)


def _documented_codes() -> dict[str, str]:
    """The gRPC code that the comment of each reason begins with."""
    text = (checkout.ROOT / "proto/arbiter/v1/error_reason.proto").read_text(encoding="utf-8")
    found = re.findall(r"((?:^ +//.*\n)+) +ERROR_REASON_(\w+) = [1-9]", text, re.MULTILINE)
    return {reason: comment.strip().removeprefix("// ").partition(":")[0] for comment, reason in found}


def _domain_errors() -> list[type[errors.ArbiterError]]:
    found: list[type[errors.ArbiterError]] = []
    for _, value in inspect.getmembers(errors, inspect.isclass):
        if issubclass(value, errors.ArbiterError):
            found.append(value)
    return found


@pytest.mark.parametrize("enumeration", _ENUMS, ids=lambda value: value.__name__)
def test_enumeration_matches_the_wire(enumeration: type[enum.IntEnum]) -> None:
    words = re.sub(r"(?<!^)(?=[A-Z])", "_", enumeration.__name__).upper()
    wire = {name.removeprefix(f"{words}_"): number for name, number in _wire(enumeration.__name__).items() if number}
    assert {member.name: member.value for member in enumeration if member.value} == wire


def test_every_reason_says_its_code_in_the_contract() -> None:
    documented = _documented_codes()
    assert documented.keys() == _REASONS.keys()
    assert {code for code in documented.values() if not hasattr(grpc.StatusCode, code)} == set()


@pytest.mark.parametrize("error", _domain_errors(), ids=lambda error: error.__name__)
def test_domain_error_has_code_reason_and_client_exception(error: type[errors.ArbiterError]) -> None:
    assert _documented_codes()[error.reason] == error.code
    assert error.__doc__
    exception = arbiter_client.errors.BY_REASON[error.reason]
    if error is not errors.ArbiterError:
        assert exception.__name__ == error.__name__


def test_every_reason_has_a_client_exception() -> None:
    by_reason = arbiter_client.errors.BY_REASON
    assert set(by_reason) - {"UNSPECIFIED"} == set(_REASONS)
    assert all(issubclass(exception, arbiter_client.errors.ArbiterClientError) for exception in by_reason.values())
    assert len(set(by_reason.values())) == len(by_reason)
