"""Everything that can go wrong in the domain.

    ArbiterError
    ├── InvalidRequest          the call is wrong: every bad field is named
    ├── IdempotencyMismatch     the request id was used with other arguments
    ├── ExceedsCapacity         will never fit
    ├── InsufficientMemory      does not fit now
    ├── InsufficientQuality     would fit below the asked minimum quality
    ├── InsufficientTokens      the engine's KV budget has no room for it now
    ├── WaitTimeout             waited in vain
    ├── Cancelled               the caller went away while waiting
    ├── QueueFull               a bounded table is full
    ├── LeaseNotFound           no such lease
    ├── ReservationNotFound     no such KV reservation
    ├── DeviceNotFound          no such device
    ├── ShardNotFound           no such split model, or no such shard of it
    ├── InvalidAssignment       layers cannot be divided like that
    ├── StalePlan               something else is suggested by now
    ├── Fenced                  the fence is stale
    ├── NoDonor                 nobody may be preempted for it
    ├── ObserveOnly             this server only watches
    ├── DeviceStale             the device cannot be measured
    ├── ShuttingDown            the server drains
    └── SlowSubscriber          the stream takes no messages

Each class carries the name of its gRPC code and its reason; ``metadata()`` repeats whatever the message mentions. The
docstring is the default message. Nothing outside ``rpc.status`` turns these into statuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar


class ArbiterError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    #: Seconds after which a retry may help; ``None`` when waiting does not help.
    retry_after_s: float | None = None

    def __init__(self, message: str = "", **metadata: str | int | float) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self._metadata = metadata

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self.args[0])

    def metadata(self) -> Mapping[str, str]:
        """What the message mentions, as strings."""
        return {key: str(value) for key, value in self._metadata.items()}


class InvalidRequest(ArbiterError):
    """The request has bad fields."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        text = "; ".join(f"{name}: {problem}" for name, problem in violations)
        super().__init__(text, fields=",".join(name for name, _ in violations))
        self.violations = tuple(violations)


class IdempotencyMismatch(ArbiterError):
    """The request_id was used before with other arguments; use a new one."""

    code = "INVALID_ARGUMENT"
    reason = "IDEMPOTENCY_MISMATCH"


class ExceedsCapacity(ArbiterError):
    """The minimum size is larger than the device; ask for less."""

    code = "FAILED_PRECONDITION"
    reason = "EXCEEDS_CAPACITY"


class InsufficientMemory(ArbiterError):
    """The memory is not free now; wait, or ask for less."""

    code = "RESOURCE_EXHAUSTED"
    reason = "INSUFFICIENT_MEMORY"
    retry_after_s = 1.0


class InsufficientQuality(ArbiterError):
    """It would fit below the minimum quality that was asked; lower it, or wait."""

    code = "RESOURCE_EXHAUSTED"
    reason = "INSUFFICIENT_QUALITY"
    retry_after_s = 1.0


class InsufficientTokens(ArbiterError):
    """The engine's KV budget has no room for so many tokens now; wait, or try again soon."""

    code = "RESOURCE_EXHAUSTED"
    reason = "INSUFFICIENT_TOKENS"
    retry_after_s = 1.0


class WaitTimeout(ArbiterError):
    """The memory did not become free in time."""

    code = "DEADLINE_EXCEEDED"
    reason = "WAIT_TIMEOUT"


class Cancelled(ArbiterError):
    """The caller cancelled the request while it waited."""

    code = "CANCELLED"
    reason = "CANCELLED"


class QueueFull(ArbiterError):
    """Too many are waiting or open already; back off."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_FULL"
    retry_after_s = 1.0


class LeaseNotFound(ArbiterError):
    """No such lease; allocate again."""

    code = "NOT_FOUND"
    reason = "LEASE_NOT_FOUND"


class ReservationNotFound(ArbiterError):
    """No such KV reservation; it ended with its lease, expired, or never was."""

    code = "NOT_FOUND"
    reason = "RESERVATION_NOT_FOUND"


class DeviceNotFound(ArbiterError):
    """No such device; GetState lists them."""

    code = "NOT_FOUND"
    reason = "DEVICE_NOT_FOUND"


class ShardNotFound(ArbiterError):
    """No such split model, or no such shard of it; GetState lists them."""

    code = "NOT_FOUND"
    reason = "SHARD_NOT_FOUND"


class InvalidAssignment(ArbiterError):
    """The layers cannot be divided like that; every layer goes to one shard that has room for it."""

    code = "FAILED_PRECONDITION"
    reason = "INVALID_ASSIGNMENT"


class StalePlan(ArbiterError):
    """The plan is not what is suggested now; evaluate again."""

    code = "FAILED_PRECONDITION"
    reason = "STALE_PLAN"


class Fenced(ArbiterError):
    """The fence is not the lease's: it is no longer yours, stop using the memory."""

    code = "FAILED_PRECONDITION"
    reason = "FENCED"


class NoDonor(ArbiterError):
    """Nobody may be preempted for this request, or those who may have too little; wait, or ask for less."""

    code = "FAILED_PRECONDITION"
    reason = "NO_DONOR"


class ObserveOnly(ArbiterError):
    """This server only observes and takes nothing from anybody; ask with dry_run to see who would give."""

    code = "FAILED_PRECONDITION"
    reason = "OBSERVE_ONLY"


class DeviceStale(ArbiterError):
    """The device cannot be measured at present; nothing is granted on it until it can."""

    code = "UNAVAILABLE"
    reason = "DEVICE_STALE"
    retry_after_s = 1.0


class ShuttingDown(ArbiterError):
    """The server is going away; reconnect later."""

    code = "UNAVAILABLE"
    reason = "SHUTTING_DOWN"
    retry_after_s = 1.0


class SlowSubscriber(ArbiterError):
    """The stream took no messages for too long; read faster, and subscribe again."""

    code = "ABORTED"
    reason = "SLOW_SUBSCRIBER"
