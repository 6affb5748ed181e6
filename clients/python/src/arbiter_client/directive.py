"""What the arbiter tells the holder of a lease, as a plain value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arbiter.v1 import lease_pb2


class DirectiveReason(IntEnum):
    """Why a directive says what it says. A number that this client does not know reads as UNSPECIFIED."""

    UNSPECIFIED = 0
    GRANT = 1
    PRESSURE = 2
    HEADROOM = 3
    PREEMPTION = 4
    CONFIG = 5
    WORKER_REPORT = 6
    KV_BUDGET = 7
    SHARD_ASSIGNMENT = 8
    OVERUSE = 9


class ReclaimLevel(IntEnum):
    """How urgent a reclaim is: SOFT finishes what is running first, HARD frees now."""

    UNSPECIFIED = 0
    SOFT = 1
    HARD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """An order to give memory back within a grace period.

    Every directive of the lease carries it until it is done or no longer wanted, so a worker that looks at the newest
    one only misses no order. ``Directive.memory_limit_bytes`` is already what must be left. An order for the ``whole``
    lease leaves the limit as it was: answer it by releasing the lease.

    Attributes:
        reclaim_id: Goes into the acknowledgements.
        memory_bytes: Bytes to free below the present use; 0 when only tokens are asked.
        kv_tokens: KV tokens to free; 0 when only bytes are asked.
        grace: Seconds that were left when the order was sent; the lease is revoked after them.
        level: Urgency.
        whole: The lease ends at the deadline whatever was freed by then; finish and release it.
    """

    reclaim_id: str
    memory_bytes: int
    kv_tokens: int
    grace: float
    level: ReclaimLevel
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardAssignment:
    """Layers to serve: the half-open range [layer_begin, layer_end).

    Attributes:
        layer_begin: First layer, counted from 0.
        layer_end: One past the last layer.
        plan_id: The balancing plan; empty for the first placement.
    """

    layer_begin: int
    layer_end: int
    plan_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """What the holder of a lease must do now: always the whole truth for its lease, never a change to an earlier one.

    Attributes:
        lease_id: The lease.
        revision: Grows with every directive within one server epoch.
        quality: Target in [0, 1]; 1 is the worker at its full size.
        memory_limit_bytes: Device bytes the holder may use.
        kv_token_budget: KV tokens the engine may keep; ``None`` for a lease without ``kv``.
        reclaim: An open order to give memory back, or ``None``.
        shard: Layers to serve, or ``None`` for a lease without ``shard``.
        reason: Why it changed.
        safe_quality: Quality to fall back to after ``valid_for`` seconds of silence.
        valid_for: Seconds this holds without any sign of life from the arbiter; 0 for ever.
        epoch: Server epoch that counts the revision.
    """

    lease_id: str
    revision: int
    quality: float
    memory_limit_bytes: int
    kv_token_budget: int | None = None
    reclaim: Reclaim | None = None
    shard: ShardAssignment | None = None
    reason: DirectiveReason = DirectiveReason.UNSPECIFIED
    safe_quality: float = 0.0
    valid_for: float = 0.0
    epoch: int = 0

    def replaces(self, other: Directive) -> bool:
        """Whether this one is to be obeyed instead of ``other``: a higher revision, or any of another epoch."""
        return self.epoch != other.epoch or self.revision > other.revision


def from_message(message: lease_pb2.Directive, epoch: int) -> Directive:
    """The value of a message that came from a server of ``epoch``."""
    return Directive(
        lease_id=message.lease_id,
        revision=message.revision,
        quality=message.quality,
        memory_limit_bytes=message.memory_limit_bytes,
        kv_token_budget=message.kv_token_budget if message.HasField("kv_token_budget") else None,
        reclaim=_reclaim(message.reclaim) if message.HasField("reclaim") else None,
        shard=_shard(message.shard) if message.HasField("shard") else None,
        reason=DirectiveReason(message.reason) if message.reason in _REASONS else DirectiveReason.UNSPECIFIED,
        safe_quality=message.safe_quality,
        valid_for=message.valid_for.ToNanoseconds() / 1e9,
        epoch=epoch,
    )


_REASONS = frozenset(map(int, DirectiveReason))
_LEVELS = frozenset(map(int, ReclaimLevel))


def _reclaim(message: lease_pb2.Reclaim) -> Reclaim:
    return Reclaim(
        reclaim_id=message.reclaim_id,
        memory_bytes=message.memory_bytes,
        kv_tokens=message.kv_tokens,
        grace=message.grace.ToNanoseconds() / 1e9,
        # An unknown urgency is taken for the greatest: obeying too fast harms nobody else.
        level=ReclaimLevel(message.level) if message.level in _LEVELS else ReclaimLevel.HARD,
        whole=message.whole,
    )


def _shard(message: lease_pb2.ShardAssignment) -> ShardAssignment:
    return ShardAssignment(layer_begin=message.layer_begin, layer_end=message.layer_end, plan_id=message.plan_id)
