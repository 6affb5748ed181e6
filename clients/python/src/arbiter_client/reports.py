"""What the holder of a lease has to say, gathered until the next message leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import amounts, terms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from arbiter_client.directive import Directive, Reclaim

#: Latencies in one report; the arbiter takes no more, and the newest say the most.
MAX_LATENCIES = 256
#: The shortest and the longest forward pass that can be told, in seconds: what a duration can hold, and an hour.
SHORTEST_PASS_S = 1e-9
LONGEST_PASS_S = 3600.0
#: Acknowledgements of different reclaims in one report. A lease has few reclaims open at a time.
MAX_RECLAIMS = 64


class Outcome(IntEnum):
    """What became of a directive in the worker."""

    NONE = 0
    APPLIED = 1
    DEFERRED = 2
    REFUSED = 3


@dataclass(slots=True, kw_only=True)
class Report:
    """Things to say about one lease. Later values replace earlier ones; latencies and acknowledgements gather.

    Attributes:
        revision: Revision the outcome is about; 0 for none.
        epoch: Server epoch that counts the revision.
        outcome: What became of it.
        achievable_quality: With REFUSED, what can be reached, in [0, 1].
        used_memory_bytes: Device bytes the worker counts as its own.
        kv: State of a KV engine.
        shard_latencies: Seconds per forward pass, newest last.
        busy_for: Seconds of silence to come; 0 for none.
        reclaim_acks: Progress by reclaim id.
    """

    revision: int = 0
    epoch: int = 0
    outcome: Outcome = Outcome.NONE
    achievable_quality: float | None = None
    used_memory_bytes: int | None = None
    kv: arbiter_service_pb2.KvUsage | None = None
    shard_latencies: list[float] = field(default_factory=list)
    busy_for: float = 0.0
    reclaim_acks: dict[str, arbiter_service_pb2.ReclaimAck] = field(default_factory=dict)

    def add(self, newer: Report) -> None:
        """Takes over what ``newer`` says beyond or instead of this one."""
        if newer.outcome is not Outcome.NONE:
            self.revision, self.epoch = newer.revision, newer.epoch
            self.outcome, self.achievable_quality = newer.outcome, newer.achievable_quality
        if newer.used_memory_bytes is not None:
            self.used_memory_bytes = newer.used_memory_bytes
        if newer.kv is not None:
            self.kv = newer.kv
        self.shard_latencies = [*self.shard_latencies, *newer.shard_latencies][-MAX_LATENCIES:]
        self.busy_for = max(self.busy_for, newer.busy_for)
        for reclaim_id, ack in newer.reclaim_acks.items():
            # Merged, so that what is done stays done and what was promised stays promised; the newer numbers count.
            both = arbiter_service_pb2.ReclaimAck()
            if (older := self.reclaim_acks.pop(reclaim_id, None)) is not None:
                both.CopyFrom(older)
            both.MergeFrom(ack)
            self.reclaim_acks[reclaim_id] = both
        while len(self.reclaim_acks) > MAX_RECLAIMS:
            del self.reclaim_acks[next(iter(self.reclaim_acks))]

    def message(self, lease_id: str, fence: int, epoch: int) -> arbiter_service_pb2.HeartbeatRequest.Report:
        """The report for a server of ``epoch``; an outcome that belongs to another epoch is left out.

        Revisions start anew with each epoch, so the same number would mean another directive.
        """
        message = arbiter_service_pb2.HeartbeatRequest.Report(
            lease_id=lease_id,
            fence=fence,
            used_memory_bytes=self.used_memory_bytes,
            kv=self.kv,
            shard_latencies=[terms.duration(latency) for latency in self.shard_latencies],
            reclaim_acks=self.reclaim_acks.values(),
        )
        if self.outcome is not Outcome.NONE and self.epoch == epoch:
            message.applied_revision = self.revision
            message.outcome = arbiter_service_pb2.ReportOutcome.ValueType(self.outcome)
            if self.achievable_quality is not None:
                message.achievable_quality = self.achievable_quality
        if self.busy_for > 0:
            message.busy_for.CopyFrom(terms.duration(self.busy_for))
        return message


def outcome(
    directive: Directive,
    what: Outcome,
    *,
    achievable_quality: float | None = None,
    used_memory_bytes: int | None = None,
    reclaim_acks: Sequence[arbiter_service_pb2.ReclaimAck] = (),
) -> Report:
    """The report that says what became of ``directive``; when it was applied, also that its reclaim is done.

    Raises:
        ValueError: A quality outside [0, 1] or negative bytes.
    """
    if achievable_quality is not None and not 0.0 <= achievable_quality <= 1.0:
        raise ValueError(f"achievable_quality {achievable_quality} is not in [0, 1]")
    acks = {ack.reclaim_id: ack for ack in reclaim_acks}
    if what is Outcome.APPLIED:
        acks = _answered(directive, used_memory_bytes, reclaim_acks)
    return Report(
        revision=directive.revision,
        epoch=directive.epoch,
        outcome=what,
        achievable_quality=achievable_quality,
        used_memory_bytes=_size(used_memory_bytes),
        reclaim_acks=acks,
    )


def usage(
    *,
    used_memory_bytes: int | None = None,
    kv: arbiter_service_pb2.KvUsage | None = None,
    shard_latencies: Sequence[float] = (),
    busy_for: float = 0.0,
    reclaim_acks: Sequence[arbiter_service_pb2.ReclaimAck] = (),
) -> Report:
    """The report of how a worker is doing, apart from directives.

    Raises:
        ValueError: Negative bytes, a silence that is negative or not finite, or a latency that is not above 0 or longer
            than an hour: the arbiter would refuse the whole heartbeat for it.
    """
    terms.duration(busy_for)
    for latency in shard_latencies:
        if not SHORTEST_PASS_S <= latency <= LONGEST_PASS_S:
            raise ValueError(f"{latency} is not the time of a forward pass in seconds")
    return Report(
        used_memory_bytes=_size(used_memory_bytes),
        kv=kv,
        shard_latencies=list(shard_latencies)[-MAX_LATENCIES:],
        busy_for=busy_for,
        reclaim_acks={ack.reclaim_id: ack for ack in reclaim_acks},
    )


def begun(reclaim: Reclaim, will_free: int | str | None, eta: float | timedelta | None) -> Report:
    """The report that work on an order to give memory back has begun.

    Args:
        reclaim: The order.
        will_free: Bytes that are going to be freed, or a text such as ``"1GiB"``; absent: what the order says.
        eta: When it will be done, in seconds from now; absent: not said.

    Raises:
        ValueError: An amount or span that cannot be read.
    """
    ack = arbiter_service_pb2.ReclaimAck(
        reclaim_id=reclaim.reclaim_id,
        will_free_bytes=reclaim.memory_bytes if will_free is None else amounts.parse_bytes(will_free),
    )
    if eta is not None:
        ack.eta.CopyFrom(terms.duration(eta))
    return Report(reclaim_acks={ack.reclaim_id: ack})


def freed(reclaim: Reclaim, freed_bytes: int | str, freed_tokens: int, *, done: bool) -> Report:
    """The report of what has been freed for an order to give memory back.

    Raises:
        ValueError: An amount that cannot be read, or negative tokens.
    """
    if not 0 <= freed_tokens < 2**63:
        raise ValueError(f"freed_tokens {freed_tokens} is not between 0 and 2^63-1")
    ack = arbiter_service_pb2.ReclaimAck(
        reclaim_id=reclaim.reclaim_id,
        freed_bytes=amounts.parse_bytes(freed_bytes),
        freed_tokens=freed_tokens,
        done=done,
    )
    return Report(reclaim_acks={ack.reclaim_id: ack})


def _answered(
    directive: Directive, used_memory_bytes: int | None, acks: Sequence[arbiter_service_pb2.ReclaimAck]
) -> dict[str, arbiter_service_pb2.ReclaimAck]:
    """Acknowledgements that go with an applied directive: those given, and that its own order is done where that shows.

    It shows in use that is within the limit. How much was freed is left to that use, since nobody counted before.
    """
    said = {ack.reclaim_id: ack for ack in acks}
    order = directive.reclaim
    if order is None or used_memory_bytes is None or used_memory_bytes > directive.memory_limit_bytes:
        return said
    return {order.reclaim_id: arbiter_service_pb2.ReclaimAck(reclaim_id=order.reclaim_id, done=True), **said}


def _size(used_memory_bytes: int | None) -> int | None:
    if used_memory_bytes is not None and not 0 <= used_memory_bytes < 2**63:
        raise ValueError(f"used_memory_bytes {used_memory_bytes} is not between 0 and 2^63-1")
    return used_memory_bytes
