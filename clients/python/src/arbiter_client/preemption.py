"""Taking memory or KV tokens from others: what is asked, and what came of it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import amounts, kv_reservations, terms

if TYPE_CHECKING:
    from datetime import timedelta


class Need(TypedDict, total=False):
    """The keyword arguments of ``lease.preempt``: either ``memory`` or ``kv_tokens``; ``None`` is the same as absent.

    Attributes:
        memory: What is needed: bytes, or a text such as ``"2GiB"``; at least 1 byte.
        kv_tokens: What is needed: KV tokens, at least 1, for a lease that is a KV engine. They are lent until the
            engine has no more work; nobody loses a lease for them.
        priority: With which it is asked, as in ``Terms``; at most the lease's own, which is also the default. Without a
            lease the default is ``"normal"``.
        allow_partial: Take less when there is not enough.
        timeout: Seconds from notice to deadline for those who give, or a ``timedelta``; above 0, absent: 2 s. A donor
            that has neither given nor answered by then loses its lease, and what is missing is asked of others once, so
            the answer may take a little more than twice as long.
        dry_run: Only say who would give what: nothing changes.
    """

    memory: int | str | None
    kv_tokens: int | None
    priority: int | str | None
    allow_partial: bool
    timeout: float | timedelta | None
    dry_run: bool


class DeviceNeed(Need, total=False):
    """The keyword arguments of ``client.preempt``: those of ``lease.preempt``, and the device.

    Attributes:
        device: Device id; the arbiter refuses a request that names neither a device nor a lease.
    """

    device: str | None


@dataclass(frozen=True, slots=True)
class Donation:
    """What one lease gives: bytes, or KV tokens where these were asked for.

    Attributes:
        lease_id: The donor.
        holder: Its holder.
        planned_bytes: Bytes it was asked for.
        confirmed_bytes: Bytes that were confirmed free; 0 in a dry run.
        outcome: ``CONFIRMED``, ``PARTIAL``, ``REVOKED`` or ``CANCELLED``; empty in a dry run, and for an outcome that
            this client does not know.
        planned_tokens: KV tokens it was asked for.
        confirmed_tokens: KV tokens that were confirmed free; 0 in a dry run.
    """

    lease_id: str
    holder: str
    planned_bytes: int = 0
    confirmed_bytes: int = 0
    outcome: str = ""
    planned_tokens: int = 0
    confirmed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RejectedDonor:
    """A lease that was not asked, and the arbiter's word for why, such as ``priority_gap``."""

    lease_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Preemption:
    """What came of it.

    Attributes:
        plan_id: Names the plan in audit events; empty for a dry run.
        donations: Who gave what, in the order of asking.
        confirmed_bytes: Bytes that were confirmed free in all; nothing else may be counted on.
        rejected: Who was passed over, and why.
        confirmed_tokens: KV tokens that were confirmed free in all.
    """

    plan_id: str = ""
    donations: tuple[Donation, ...] = ()
    confirmed_bytes: int = 0
    rejected: tuple[RejectedDonor, ...] = ()
    confirmed_tokens: int = 0

    @property
    def planned_bytes(self) -> int:
        """Bytes that were asked for in all; more than the need only where whole leases are taken."""
        return sum(donation.planned_bytes for donation in self.donations)

    @property
    def planned_tokens(self) -> int:
        """KV tokens that were asked for in all."""
        return sum(donation.planned_tokens for donation in self.donations)


def message(
    need: Need, *, lease_id: str = "", device: str | None = None
) -> arbiter_service_pb2.RequestPreemptionRequest:
    """The request that says ``need``; always with a request id.

    Args:
        need: What is needed.
        lease_id: The lease that asks; empty for none.
        device: The device; absent: that of the lease.

    Raises:
        ValueError: A size, span or priority that cannot be read, or not exactly one need. Other ranges are the
            arbiter's to judge.
    """
    memory, tokens = need.get("memory"), need.get("kv_tokens")
    if (memory is None) is (tokens is None):
        raise ValueError("name either memory or kv_tokens, what is needed")
    request = arbiter_service_pb2.RequestPreemptionRequest(
        request_id=uuid.uuid4().hex,
        lease_id=lease_id,
        device_id=device or "",
        allow_partial=need.get("allow_partial", False),
        dry_run=need.get("dry_run", False),
    )
    if memory is not None:
        request.memory_bytes = amounts.parse_bytes(memory)
    if tokens is not None:
        request.kv_tokens = kv_reservations.checked("kv_tokens", tokens, least=1)
    if (priority := need.get("priority")) is not None:
        request.priority = terms.priority(priority)
    if (timeout := need.get("timeout")) is not None:
        request.timeout.CopyFrom(terms.duration(timeout))
    return request


def from_message(answer: arbiter_service_pb2.RequestPreemptionResponse, *, tokens: bool = False) -> Preemption:
    """The value of an answer, in bytes; in KV tokens where these were asked for."""
    rejected = tuple(RejectedDonor(each.lease_id, each.reason) for each in answer.rejected)
    donations = tuple(_donation(each, tokens=tokens) for each in answer.donations)
    if tokens:
        return Preemption(answer.plan_id, donations, rejected=rejected, confirmed_tokens=answer.confirmed)
    return Preemption(answer.plan_id, donations, answer.confirmed, rejected)


def _donation(each: arbiter_service_pb2.Donation, *, tokens: bool) -> Donation:
    outcome = _outcome(each.outcome)
    if tokens:
        return Donation(
            each.lease_id,
            each.holder,
            outcome=outcome,
            planned_tokens=each.planned,
            confirmed_tokens=each.confirmed,
        )
    return Donation(each.lease_id, each.holder, each.planned, each.confirmed, outcome)


def to_message(value: Preemption) -> arbiter_service_pb2.RequestPreemptionResponse:
    """The answer that reads as ``value``.

    Raises:
        ValueError: An outcome that the protocol does not have.
    """
    return arbiter_service_pb2.RequestPreemptionResponse(
        plan_id=value.plan_id,
        donations=[
            arbiter_service_pb2.Donation(
                lease_id=each.lease_id,
                holder=each.holder,
                planned=each.planned_bytes or each.planned_tokens,
                confirmed=each.confirmed_bytes or each.confirmed_tokens,
                outcome=arbiter_service_pb2.DonationOutcome.Value(_PREFIX + (each.outcome or "UNSPECIFIED")),
            )
            for each in value.donations
        ],
        confirmed=value.confirmed_bytes or value.confirmed_tokens,
        rejected=[
            arbiter_service_pb2.RejectedDonor(lease_id=each.lease_id, reason=each.reason) for each in value.rejected
        ],
    )


_PREFIX = "DONATION_OUTCOME_"


def _outcome(number: int) -> str:
    if not number or number not in arbiter_service_pb2.DonationOutcome.values():
        return ""
    name = arbiter_service_pb2.DonationOutcome.Name(arbiter_service_pb2.DonationOutcome.ValueType(number))
    return name.removeprefix(_PREFIX)
