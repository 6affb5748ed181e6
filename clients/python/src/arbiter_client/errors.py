"""Everything that can go wrong between a worker and the arbiter.

    ArbiterClientError
    ├── InvalidRequest          the call is wrong: every bad field is named
    ├── IdempotencyMismatch     the request id was used with other arguments
    ├── ExceedsCapacity         will never fit
    ├── InsufficientMemory      does not fit now
    ├── InsufficientQuality     would fit below the asked minimum quality
    ├── QueueFull               a bounded table is full
    ├── Displaced               dropped in favour of a newer request
    ├── InsufficientTokens      the engine's KV budget has no room for it now
    ├── WaitTimeout             waited in vain
    ├── LeaseNotFound           no such lease
    ├── ReservationNotFound     no such KV reservation
    ├── DeviceNotFound          no such device
    ├── ShardNotFound           no such split model, or no such shard of it
    ├── InvalidAssignment       layers cannot be divided like that
    ├── StalePlan               something else is suggested by now
    ├── Fenced                  the fence is stale
    ├── Preempted               taken for a more important request
    ├── NoDonor                 nobody may be preempted for this
    ├── ObserveOnly             the server only watches
    ├── ShuttingDown            the server drains
    ├── Learning                the server has just started
    ├── DeviceStale             the device cannot be measured
    ├── Denied                  the policy forbids it
    ├── SessionMoved            a newer session of the same worker took over
    ├── SlowSubscriber          the stream was not read fast enough
    ├── NotServed               this server does not do that
    ├── Internal                a defect of the server
    ├── Cancelled               cancelled while it waited
    ├── ArbiterUnreachable      nobody answers at the address
    └── LeaseLost               the lease is no longer ours

One class per reason of the protocol and two that only a client can raise. The docstring is the default message.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

import grpc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arbiter.v1 import arbiter_service_pb2

#: Trailing metadata in which the server names the reason and what the message mentions.
REASON_KEY = "arbiter-error-reason"
METADATA_KEY = "arbiter-error-metadata"

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class ArbiterClientError(Exception):
    """The arbiter failed the call for a reason that this client does not know.

    Attributes:
        code: gRPC status code.
        reason: Reason as the server names it, such as ``INSUFFICIENT_MEMORY``; empty when it named none.
        metadata: What the message mentions, as strings.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str = "",
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split("\n\n")[0].split()))
        self.code = self.default_code if code is None else code
        self.reason = self.default_reason if reason is None else reason
        self.metadata: Mapping[str, str] = dict(metadata or {})

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self.args[0])


class InvalidRequest(ArbiterClientError):
    """One or more fields are missing or out of range; nothing changed."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_REQUEST"


class IdempotencyMismatch(ArbiterClientError):
    """The request id was used before with other arguments; use a new one."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "IDEMPOTENCY_MISMATCH"


class ExceedsCapacity(ArbiterClientError):
    """The minimum size is larger than every eligible device; ask for less."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "EXCEEDS_CAPACITY"


class InsufficientMemory(ArbiterClientError):
    """The memory is not free now; wait, or ask for less."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "INSUFFICIENT_MEMORY"


class InsufficientQuality(ArbiterClientError):
    """It would fit below the minimum quality that was asked; lower it, or wait."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "INSUFFICIENT_QUALITY"


class QueueFull(ArbiterClientError):
    """Too many are waiting or open already; back off."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "QUEUE_FULL"


class Displaced(ArbiterClientError):
    """The request was dropped from a full queue in favour of a newer one."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "DISPLACED"


class InsufficientTokens(ArbiterClientError):
    """The engine's KV budget has no room for so many tokens now; wait, or try again soon."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "INSUFFICIENT_TOKENS"


class WaitTimeout(ArbiterClientError):
    """The memory did not become free in time."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "WAIT_TIMEOUT"


class LeaseNotFound(ArbiterClientError):
    """No such lease; allocate again."""

    default_code = grpc.StatusCode.NOT_FOUND
    default_reason = "LEASE_NOT_FOUND"


class ReservationNotFound(ArbiterClientError):
    """No such KV reservation; it ended with its lease, expired, or never was."""

    default_code = grpc.StatusCode.NOT_FOUND
    default_reason = "RESERVATION_NOT_FOUND"


class DeviceNotFound(ArbiterClientError):
    """No such device; ``arbiter state`` lists them."""

    default_code = grpc.StatusCode.NOT_FOUND
    default_reason = "DEVICE_NOT_FOUND"


class ShardNotFound(ArbiterClientError):
    """No such split model, or no such shard of it; ``arbiter balance`` lists them."""

    default_code = grpc.StatusCode.NOT_FOUND
    default_reason = "SHARD_NOT_FOUND"


class InvalidAssignment(ArbiterClientError):
    """The layers cannot be divided like that; every layer goes to one shard that has room for it."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "INVALID_ASSIGNMENT"


class StalePlan(ArbiterClientError):
    """The plan is not what is suggested now; evaluate again."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "STALE_PLAN"


class Fenced(ArbiterClientError):
    """The fence is stale: the lease is no longer yours, stop using the memory."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FENCED"


class Preempted(ArbiterClientError):
    """The lease was taken for a more important request."""

    default_code = grpc.StatusCode.ABORTED
    default_reason = "PREEMPTED"


class NoDonor(ArbiterClientError):
    """Nobody may be preempted for this request."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "NO_DONOR"


class ObserveOnly(ArbiterClientError):
    """The server only observes and takes nothing from anybody; a dry run says who would give."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "OBSERVE_ONLY"


class ShuttingDown(ArbiterClientError):
    """The server is going away; reconnect later."""

    default_code = grpc.StatusCode.UNAVAILABLE
    default_reason = "SHUTTING_DOWN"


class Learning(ArbiterClientError):
    """The server has just started and does not yet know what is in use; retry."""

    default_code = grpc.StatusCode.UNAVAILABLE
    default_reason = "LEARNING"


class DeviceStale(ArbiterClientError):
    """The device cannot be measured at present; nothing is granted on it until it can."""

    default_code = grpc.StatusCode.UNAVAILABLE
    default_reason = "DEVICE_STALE"


class Denied(ArbiterClientError):
    """The policy does not allow it."""

    default_code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "DENIED"


class SessionMoved(ArbiterClientError):
    """Another session of the same worker with a higher incarnation took over."""

    default_code = grpc.StatusCode.ABORTED
    default_reason = "SESSION_MOVED"


class SlowSubscriber(ArbiterClientError):
    """The stream was too slow to take its messages."""

    default_code = grpc.StatusCode.ABORTED
    default_reason = "SLOW_SUBSCRIBER"


class NotServed(ArbiterClientError):
    """This server does not serve the call or the field yet."""

    default_code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "NOT_SERVED"


class Internal(ArbiterClientError):
    """The server has a defect; its log has the story."""

    default_code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


class Cancelled(ArbiterClientError):
    """The request was cancelled while it waited."""

    default_code = grpc.StatusCode.CANCELLED
    default_reason = "CANCELLED"


class ArbiterUnreachable(ArbiterClientError):
    """Nobody answers at the address."""

    default_code = grpc.StatusCode.UNAVAILABLE

    @classmethod
    def at(cls, address: str, detail: str = "") -> ArbiterUnreachable:
        """The error that names what was tried and the next command to run."""
        because = f" ({detail})" if detail else ""
        return cls(
            f"no arbiter answers at {address}{because}; start one with: arbiter-sidecar serve",
            metadata={"address": address},
        )


class LeaseLost(ArbiterClientError):
    """The lease is no longer ours; stop using the memory.

    Attributes:
        lease_id: The lease.
        end_reason: Why, such as ``EXPIRED``, ``PREEMPTED``, ``REVOKED`` or ``RELEASED``.
    """

    default_code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, lease_id: str, end_reason: str) -> None:
        super().__init__(
            f"lease {lease_id} is over ({end_reason}); stop using its memory",
            metadata={"lease_id": lease_id, "end_reason": end_reason},
        )
        self.lease_id = lease_id
        self.end_reason = end_reason


#: The class of every reason of the protocol, by its name without the prefix ERROR_REASON_.
BY_REASON: Mapping[str, type[ArbiterClientError]] = {
    "UNSPECIFIED": ArbiterClientError,
    **{
        kind.default_reason: kind
        for kind in (
            InvalidRequest,
            IdempotencyMismatch,
            ExceedsCapacity,
            InsufficientMemory,
            InsufficientQuality,
            QueueFull,
            Displaced,
            InsufficientTokens,
            WaitTimeout,
            LeaseNotFound,
            ReservationNotFound,
            DeviceNotFound,
            ShardNotFound,
            InvalidAssignment,
            StalePlan,
            Fenced,
            Preempted,
            NoDonor,
            ObserveOnly,
            ShuttingDown,
            Learning,
            DeviceStale,
            Denied,
            SessionMoved,
            SlowSubscriber,
            NotServed,
            Internal,
            Cancelled,
        )
    },
}


def from_rpc_error(error: grpc.RpcError, address: str = "") -> ArbiterClientError:
    """The client's error for a failed call, by the reason that the server named; never by its text.

    Args:
        error: What gRPC raised.
        address: The address that was tried, for the message when nobody answered there.
    """
    if not isinstance(error, grpc.Call):
        return ArbiterClientError(str(error))
    code = error.code() or grpc.StatusCode.UNKNOWN
    trailing = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    reason = trailing.get(REASON_KEY, "")
    detail = error.details() or ""
    if not reason and code is grpc.StatusCode.UNAVAILABLE:
        return ArbiterUnreachable.at(address or "the address", detail)
    return _make(code, reason, detail, _metadata(trailing.get(METADATA_KEY, "")))


def from_session_error(error: arbiter_service_pb2.Error) -> ArbiterClientError:
    """The client's error for one failed message of a session."""
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return _make(code, error.reason, error.message, dict(error.metadata))


def _make(code: grpc.StatusCode, reason: str, detail: str, metadata: Mapping[str, str]) -> ArbiterClientError:
    kind = BY_REASON.get(reason, ArbiterClientError)
    return kind(detail, code=code, reason=reason, metadata=metadata)


def _metadata(text: str) -> Mapping[str, str]:
    """The JSON object that the server sent; empty for anything else, since the reason stands without it."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}
