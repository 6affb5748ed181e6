"""Turns domain errors into gRPC statuses. Nothing else sets the code of a call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter_sidecar import errors

#: `google.rpc.ErrorInfo.domain` of every error.
DOMAIN = "arbiter"
#: Plain trailing metadata that carry the same, for clients without the packages that decode details.
REASON_KEY = "arbiter-error-reason"
METADATA_KEY = "arbiter-error-metadata"
#: Longest message and value that leave the server: enough for a sentence, too little to be misused. This and the next
#: two keep all trailing metadata of a failed call below 8 KiB, beyond which clients drop the answer and its code.
MAX_TEXT = 512
#: Size of all metadata of one error, as JSON.
MAX_METADATA = 800
#: Size of all bad fields of one request, with what is wrong with them.
MAX_VIOLATIONS = 2000

Context = grpc.aio.ServicerContext[Any, Any]


class Internal(errors.ArbiterError):
    """A defect of the server; its log has the story."""

    code = "INTERNAL"
    reason = "INTERNAL"


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Text that cannot break a line, a terminal or a header: escaped to ASCII and cut."""
    escaped = text.encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def code(error: errors.ArbiterError) -> grpc.StatusCode:
    """The gRPC code of a domain error."""
    return grpc.StatusCode[error.code]


def metadata_of(error: errors.ArbiterError) -> dict[str, str]:
    """What the message of an error mentions, as far as it fits into an answer."""
    kept: dict[str, str] = {}
    for key, value in error.metadata().items():
        kept[key] = printable(value)
        if len(json.dumps(kept)) > MAX_METADATA:
            del kept[key]
    return kept


def refuse(context: Context, error: errors.ArbiterError) -> None:
    """Has the call end with the error, its details, and the same in plain trailing metadata once its handler returns.

    Nothing is raised: an exception that the call keeps would keep the call in turn, and its stream would count as open
    until the next full collection. A connection has room for so many open streams only.
    """
    metadata = metadata_of(error)
    status = status_pb2.Status(code=code(error).value[0], message=printable(error.message))
    _attach(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if isinstance(error, errors.InvalidRequest):
        _attach(status, _bad_request(error.violations))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    rendered = rpc_status.to_status(status)
    plain = ((REASON_KEY, error.reason), (METADATA_KEY, json.dumps(metadata)))
    context.set_trailing_metadata((*rendered.trailing_metadata, *plain))
    context.set_code(rendered.code)
    context.set_details(rendered.details)


def session_error(error: errors.ArbiterError) -> pb.Error:
    """The error as a message of a session."""
    return pb.Error(
        code=code(error).value[0],
        reason=error.reason,
        message=printable(error.message),
        metadata=metadata_of(error),
    )


def _bad_request(violations: Sequence[tuple[str, str]]) -> error_details_pb2.BadRequest:
    """The bad fields, as many as fit into an answer, and how many more there are."""
    told, size = error_details_pb2.BadRequest(), 0
    for name, problem in violations:
        violation = error_details_pb2.BadRequest.FieldViolation(field=name, description=printable(problem))
        size += violation.ByteSize()
        if size > MAX_VIOLATIONS:
            rest = len(violations) - len(told.field_violations)
            told.field_violations.add(description=f"and {rest} more")
            break
        told.field_violations.append(violation)
    return told


def _attach(status: status_pb2.Status, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
