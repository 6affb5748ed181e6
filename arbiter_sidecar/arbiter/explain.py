"""Why: the rule that decided, and the numbers that went into it, in the order they are used."""

from __future__ import annotations

from dataclasses import dataclass, replace

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import publishing
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Donation, Plan
from arbiter_sidecar.ledger.waiting import Waiter
from arbiter_sidecar.policy import publication, quality
from arbiter_sidecar.policy.quality import Solution


@dataclass(frozen=True, slots=True)
class Explanation:
    """A reason.

    Attributes:
        summary: One sentence.
        rule: Name of the rule that decided.
        findings: Names and values.
    """

    summary: str
    rule: str
    findings: tuple[tuple[str, str], ...]


def device(books: Books, device_id: str, now: float) -> Explanation:
    """The numbers of a device.

    Raises:
        DeviceNotFound: There is none of this id.
    """
    found = next((each for each in books.devices.values() if each.device_id == device_id), None)
    if found is None:
        raise errors.DeviceNotFound(device_id=device_id)
    solution = publishing.solve(books, found, found.candidate, now)
    summary = (
        f"{found.granted_bytes} of {found.facts.capacity_bytes} bytes are granted to {len(found.live)} leases, "
        f"{max(0, found.available_bytes)} are free"
    )
    return Explanation(summary, "capacity", tuple(_device_findings(books, found, solution, now)))


def lease(books: Books, lease_id: str, now: float) -> Explanation:
    """Why a lease has its quality, or why it ended.

    Raises:
        LeaseNotFound: There is none of this id, and none is remembered.
    """
    found = books.leases.get(lease_id)
    if found is None:
        grave = books.leases.grave(lease_id)
        if grave is None:
            raise errors.LeaseNotFound(f"no lease {lease_id!r}", lease_id=lease_id)
        return Explanation(f"the lease has ended: {grave.end_reason.name}; its bytes are gone", "ended", ())
    if not found.alive:
        return _ended(books, found, now)
    order = found.reclaim
    said = _quality(books, found, now) if order is None else _reclaimed(books, found, order, now)
    return replace(said, findings=(*said.findings, *_shard_findings(found)))


def request(books: Books, request_id: str, now: float) -> Explanation:
    """Why a request waits, what it got, or why it was refused.

    Raises:
        LeaseNotFound: No such request waits, holds a lease or is remembered.
    """
    for position, waiter in enumerate(books.queue):
        if waiter.name == request_id:
            return _waiting(books, waiter, position, now)
    for held in books.leases:
        if held.request.request_id == request_id:
            return lease(books, held.lease_id, now)
    if request_id in books.failures:
        asked, error = books.failures[request_id]
        findings = (("holder", asked.holder), ("memory_bytes", str(asked.memory_bytes)), *error.metadata().items())
        return Explanation(error.message, error.reason.lower(), findings)
    raise errors.LeaseNotFound(
        f"no request {request_id!r} waits, holds a lease or failed lately", request_id=request_id
    )


def _shard_findings(found: Lease) -> list[tuple[str, str]]:
    """What a shard of a split model serves, and why; nothing for other leases."""
    record = found.shard
    if record is None:
        return [("shard", "another lease serves it by now")] if found.request.shard is not None else []
    group = record.group
    return [
        ("group", group.name),
        ("shard", record.name),
        ("shard_state", record.health.state.name),
        ("layers", f"{record.begin} to {record.end - 1} of {group.layers}" if record.assigned else "none"),
        ("layers_by", record.plan_id or "what it entered with"),
        ("layers_confirmed", "no" if record.pending else "yes"),
        ("layer_us", "never measured" if record.cost_us is None else f"{record.cost_us:.3f}"),
        ("suggested", "nothing" if group.suggestion is None else group.suggestion.plan_id),
    ]


def _device_findings(books: Books, found: DeviceBook, solution: Solution, now: float) -> list[tuple[str, str]]:
    facts = found.facts
    return [
        ("device_id", found.device_id),
        ("policy", books.config.policy.value),
        ("total_bytes", str(facts.total_bytes)),
        ("capacity_bytes", str(facts.capacity_bytes)),
        ("target_bytes", str(quality.target_bytes(facts.capacity_bytes, books.config.soft_target))),
        ("foreign_bytes", str(found.foreign_bytes)),
        ("ceiling_bytes", str(found.ceiling_bytes)),
        ("elsewhere_bytes", str(found.elsewhere_bytes(now))),
        ("granted_bytes", str(found.granted_bytes)),
        ("draining_bytes", str(found.residue_bytes)),
        ("available_bytes", str(found.available_bytes)),
        ("demand_bytes", str(found.demand_bytes)),
        ("reduction_bytes", str(solution.reduction_bytes)),
        ("elastic_bytes", str(solution.elastic_bytes)),
        ("soft_deficit_bytes", str(solution.soft_deficit_bytes)),
        ("hard_deficit_bytes", str(solution.hard_deficit_bytes)),
        ("water_level", f"{solution.water_level:.4f}"),
        ("earmarked_bytes", str(found.earmarked_bytes)),
        *(_plan_findings(found.plan) if found.plan is not None else ()),
    ]


def _quality(books: Books, found: Lease, now: float) -> Explanation:
    book = books.device_of(found)
    solution = publishing.solve(books, book, book.candidate, now)
    place = book.staying.index(found)
    shape = found.elastic
    exact = solution.targets[place]
    target = publication.quantise(exact, minimum=shape.min_quality, maximum=shape.max_quality)
    if solution.reduction_bytes == 0:
        rule, why = "best", "everybody fits at their best"
    elif exact <= shape.min_quality:
        rule, why = "floor", "it stands at its minimum"
    else:
        rule, why = "water_filling", f"{solution.reduction_bytes} bytes are taken from all by weight"
    if target > found.quality:
        why += f"; it was told less and rises to {target:.2f} in steps once that has held long enough"
    if found.advised is not None:
        why = f"it would be told {found.advised:.2f}, but this server only observes"
    if found.overuse is not None:
        rule = "overuse"
        why += f"; it is told no more than {found.overuse.highest_quality:.2f} while it uses more than it leased"
    if (over := found.accounted_bytes - found.charged_bytes) > 0:
        why += f"; it uses {over} bytes more than it is charged, which are kept from others"
    findings = [
        ("priority", found.request.priority.name),
        ("weight", f"{shape.weight:g}"),
        ("min_quality", f"{shape.min_quality:g}"),
        ("max_quality", f"{shape.max_quality:g}"),
        ("full_bytes", str(shape.full_bytes)),
        ("floor_bytes", str(shape.floor_bytes)),
        ("exact_target", f"{exact:.6f}"),
        ("published", f"{found.quality:.2f}"),
        (
            "next_rise_in_s",
            "" if found.published.next_step is None else f"{max(0.0, found.published.next_step - now):.1f}",
        ),
        ("refused_floor", "" if found.refused_floor is None else f"{found.refused_floor:g}"),
        ("charged_bytes", str(found.charged_bytes)),
        ("measured_bytes", "unknown" if found.measured_bytes is None else str(found.measured_bytes)),
        ("revision", str(found.revision)),
        ("applied_revision", str(found.applied_revision)),
        *_device_findings(books, book, solution, now),
    ]
    return Explanation(f"quality {found.quality:.2f}: {why}", rule, tuple(findings))


def _reclaimed(books: Books, found: Lease, asked: Donation, now: float) -> Explanation:
    plan = books.device_of(found).plan
    overuse = found.overuse is not None and found.overuse.order is asked
    whole = "as a whole" if asked.whole else f"by {asked.planned_bytes} bytes"
    return Explanation(
        f"it is asked to give way {whole} within {max(0.0, asked.deadline - now):.1f} s",
        "overuse" if overuse else "reclaim",
        (
            ("reclaim_id", asked.reclaim_id),
            ("level", asked.level.name),
            ("acknowledged", str(asked.acknowledged).lower()),
            ("confirmed_bytes", str(asked.confirmed_bytes)),
            ("quality", f"{found.quality:.2f}"),
            ("limit_bytes", str(found.limit_bytes)),
            *(_plan_findings(plan) if plan is not None and not overuse else ()),
        ),
    )


def _plan_findings(plan: Plan) -> list[tuple[str, str]]:
    """A preemption, with what became of every candidate: who gives, and why the others do not."""
    asked_by = "the machine" if plan.machine else plan.priority.name
    return [
        ("plan_id", plan.plan_id),
        ("plan_asked_by", asked_by),
        ("plan_need_bytes", str(plan.need_bytes)),
        ("plan_confirmed_bytes", str(plan.confirmed_bytes)),
        *((f"donor {lease_id}", str(donation.planned_bytes)) for lease_id, donation in plan.donations.items()),
        *((f"passed over {lease_id}", reason) for lease_id, reason in plan.rejected.items()),
    ]


def _ended(books: Books, found: Lease, now: float) -> Explanation:
    book = books.device_of(found)
    traced = book.traceable(found)
    if traced:
        why = f"{found.residue_bytes} bytes were measured last and are free when nothing is measured any more"
    else:
        left = max(0.0, book.lock_delay_ends(found) - now)
        why = f"its memory cannot be traced, {found.residue_bytes} bytes stay reserved for another {left:.0f} s"
    return Explanation(
        f"the lease has ended: {found.end_reason.name}; {why}",
        "residue" if traced else "lock_delay",
        (
            ("ended_s_ago", f"{now - found.ended_at:.1f}"),
            ("residue_bytes", str(found.residue_bytes)),
            ("zero_samples", str(found.zero_samples)),
        ),
    )


def _waiting(books: Books, waiter: Waiter, position: int, now: float) -> Explanation:
    asked = waiter.request
    findings = [
        ("position", str(position)),
        ("waited_s", f"{now - waiter.since:.1f}"),
        ("gives_up_in_s", f"{max(0.0, waiter.deadline - now):.1f}"),
        ("memory_bytes", str(asked.memory_bytes)),
        ("floor_bytes", str(books.shape(asked).floor_bytes)),
    ]
    if waiter.device_id is not None:
        book = books.devices[waiter.device_id]
        solution = publishing.solve(books, book, asked, now)
        findings += _device_findings(books, book, solution, now)
    return Explanation(f"it waits: {waiter.reason or 'earlier requests come first'}", "ranked_line", tuple(findings))
