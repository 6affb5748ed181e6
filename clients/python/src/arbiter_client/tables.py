"""The arbiter's answers as text for people: aligned columns, binary units, no more than fits on a line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

from arbiter.v1 import lease_pb2, state_service_pb2
from arbiter_client import amounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.descriptor import EnumDescriptor
    from google.protobuf.timestamp_pb2 import Timestamp

    from arbiter.v1 import arbiter_service_pb2
    from arbiter_client.preemption import Preemption, RejectedDonor

#: Where a quantity is not known. Unknown is not zero.
UNKNOWN = "-"

_BOLD = "\x1b[1m"
_PLAIN = "\x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int], colour: bool) -> str:
    """Lines of aligned columns.

    Args:
        header: Column titles.
        rows: Cells, as many as titles in each row.
        right: Columns that are aligned to the right.
        colour: Make the header bold.
    """
    rows = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    first = line(header)
    return "\n".join([f"{_BOLD}{first}{_PLAIN}" if colour else first, *map(line, rows)])


def state(response: state_service_pb2.GetStateResponse, wall: float, *, colour: bool) -> str:
    """The whole picture.

    Args:
        response: The picture.
        wall: Seconds since 1970, for what is left of each lease.
        colour: Make headers bold.
    """
    head = f"arbiter {response.version}  epoch {response.server_epoch}  policy {response.quality_policy or UNKNOWN}"
    if response.HasField("uptime"):
        head += f"  up {amounts.format_seconds(response.uptime.ToNanoseconds() / 1e9)}"
    if response.draining:
        head += "  draining"
    if response.observe_only:
        head += "  observing only: nothing is done to anybody, qualities in brackets are what would be"
    parts = [head, devices(response.devices, colour=colour), leases(response.leases, wall, colour=colour)]
    if response.kv_engines:
        parts.append(engines(response, colour=colour))
    if response.waiting:
        parts.append(waiting(response.waiting, colour=colour))
    if response.notes:
        parts.append("\n".join(f"note: {clean(note)}" for note in response.notes))
    return "\n\n".join(parts)


def devices(found: Sequence[state_service_pb2.Device], *, colour: bool) -> str:
    """One row for each device."""
    if not found:
        return "no devices"
    return table(
        ("DEVICE", "KIND", "HEALTH", "CAPACITY", "GRANTED", "MEASURED", "FOREIGN", "AVAILABLE", "PRESSURE"),
        [
            (
                device.device_id,
                _word(state_service_pb2.DeviceKind.DESCRIPTOR, device.kind),
                _word(state_service_pb2.DeviceHealth.DESCRIPTOR, device.health),
                amounts.format_bytes(device.capacity_bytes),
                amounts.format_bytes(device.granted_bytes),
                amounts.format_bytes(device.measured_bytes) if device.HasField("measured_bytes") else UNKNOWN,
                amounts.format_bytes(device.foreign_bytes),
                amounts.format_bytes(device.available_bytes),
                f"{device.pressure:.2f} {_word(state_service_pb2.PressureLevel.DESCRIPTOR, device.level)}",
            )
            for device in found
        ],
        right=frozenset({3, 4, 5, 6, 7}),
        colour=colour,
    )


def leases(found: Sequence[lease_pb2.Lease], wall: float, *, colour: bool) -> str:
    """One row for each lease; TTL is what is left of it without another heartbeat."""
    if not found:
        return "no leases"
    return table(
        ("LEASE", "HOLDER", "TYPE", "PRIORITY", "STATE", "DEVICE", "QUALITY", "GRANTED", "MEASURED", "TTL"),
        [
            (
                lease.lease_id,
                lease.holder,
                _word(lease_pb2.WorkloadType.DESCRIPTOR, lease.workload_type).removesuffix("_generation"),
                _word(lease_pb2.Priority.DESCRIPTOR, lease.priority),
                _lease_state(lease),
                lease.device_id,
                _quality(lease),
                amounts.format_bytes(lease.memory_bytes),
                amounts.format_bytes(lease.measured_memory_bytes)
                if lease.HasField("measured_memory_bytes")
                else UNKNOWN,
                _left(lease, wall),
            )
            for lease in found
        ],
        right=frozenset({6, 7, 8, 9}),
        colour=colour,
    )


def _quality(lease: lease_pb2.Lease) -> str:
    told = f"{lease.directive.quality:.2f}"
    return f"{told} ({lease.advised_quality:.2f})" if lease.HasField("advised_quality") else told


def waiting(found: Sequence[state_service_pb2.WaitingRequest], *, colour: bool) -> str:
    """One row for each request in the admission queue, in its order."""
    return table(
        ("WAITING", "HOLDER", "PRIORITY", "DEVICE", "MEMORY", "WAITED", "WHY"),
        [
            (
                request.request_id,
                request.holder,
                _word(lease_pb2.Priority.DESCRIPTOR, request.priority),
                request.device_id or UNKNOWN,
                amounts.format_bytes(request.memory_bytes),
                amounts.format_seconds(request.waited.ToNanoseconds() / 1e9),
                request.reason,
            )
            for request in found
        ],
        right=frozenset({4, 5}),
        colour=colour,
    )


def engines(response: state_service_pb2.GetStateResponse, *, colour: bool) -> str:
    """The KV tokens of each device that has engines, and one row for each engine."""
    if not response.kv_engines:
        return "no KV engines"
    used = {engine.device_id for engine in response.kv_engines}
    pools = table(
        ("DEVICE", "KV TOKENS", "CHARGED", "FREE"),
        [
            (
                device.device_id,
                str(device.kv_total_tokens),
                str(device.kv_charged_tokens),
                str(device.kv_total_tokens - device.kv_charged_tokens),
            )
            for device in response.devices
            if device.device_id in used
        ],
        right=frozenset({1, 2, 3}),
        colour=colour,
    )
    shown = table(
        (
            *("ENGINE", "HOLDER", "DEVICE", "WORK", "SHARE", "FLOOR", "CAP"),
            *("DEMAND", "RESIDENT", "RESERVED", "BUDGET", "DONATED", "BORROWED"),
        ),
        [
            (
                engine.lease_id,
                engine.holder,
                engine.device_id,
                "yes" if engine.active else "no",
                str(engine.share_weight),
                str(engine.min_tokens),
                str(engine.max_tokens) if engine.HasField("max_tokens") else UNKNOWN,
                str(engine.demand_tokens) if engine.HasField("demand_tokens") else UNKNOWN,
                str(engine.resident_tokens),
                str(engine.reserved_tokens),
                str(engine.budget_tokens),
                str(engine.donated_tokens),
                str(engine.borrowed_tokens),
            )
            for engine in response.kv_engines
        ],
        right=frozenset(range(4, 13)),
        colour=colour,
    )
    return f"{pools}\n\n{shown}"


def explanation(response: state_service_pb2.ExplainResponse) -> str:
    """The sentence, the rule, and the numbers that went into it."""
    width = max((len(finding.name) for finding in response.findings), default=0)
    lines = [f"  {clean(finding.name).ljust(width)}  {clean(finding.value)}".rstrip() for finding in response.findings]
    return "\n".join([clean(response.summary), f"rule: {clean(response.rule)}", *lines])


def preemption(result: Preemption, *, colour: bool) -> str:
    """Who gives what, and who was passed over and why."""
    parts = [donations(result, colour=colour)]
    if result.rejected:
        parts.append(rejected(result.rejected, colour=colour))
    return "\n\n".join(parts)


def donations(result: Preemption, *, colour: bool) -> str:
    """One row for each donor, and what it comes to. What only a carried out plan has is unknown in a dry run."""
    if not result.donations:
        return "nobody gives anything"
    shown = table(
        ("LEASE", "HOLDER", "GIVES", "CONFIRMED", "OUTCOME"),
        [
            (
                each.lease_id,
                each.holder,
                amount(each.planned_bytes, each.planned_tokens),
                amount(each.confirmed_bytes, each.confirmed_tokens, tokens=bool(each.planned_tokens))
                if result.plan_id
                else UNKNOWN,
                each.outcome.lower() or UNKNOWN,
            )
            for each in result.donations
        ],
        right=frozenset({2, 3}),
        colour=colour,
    )
    if not result.plan_id:
        return f"{shown}\n{amount(result.planned_bytes, result.planned_tokens)} would be taken"
    confirmed = amount(result.confirmed_bytes, result.confirmed_tokens, tokens=bool(result.planned_tokens))
    return f"{shown}\n{confirmed} came free in {clean(result.plan_id)}"


def amount(size: int, kv_tokens: int, *, tokens: bool = False) -> str:
    """Bytes; KV tokens where there are some, or where these are meant."""
    return f"{kv_tokens} tokens" if kv_tokens or tokens else amounts.format_bytes(size)


def rejected(found: Sequence[RejectedDonor], *, colour: bool) -> str:
    """One row for each lease that is not asked."""
    return table(
        ("PASSED OVER", "WHY"),
        [(each.lease_id, each.reason.replace("_", " ")) for each in found],
        right=frozenset(),
        colour=colour,
    )


def event(happened: state_service_pb2.Event) -> str:
    """One line for one audit event."""
    kind = _word(state_service_pb2.EventKind.DESCRIPTOR, happened.kind)
    about = {
        "lease": happened.lease_id,
        "request": happened.request_id,
        "device": happened.device_id,
        "holder": happened.holder,
        **dict(sorted(happened.fields.items())),
    }
    words = [clean(f"{name}={value}") for name, value in about.items() if value]
    return "  ".join([_clock(happened.time), f"#{happened.sequence}", kind, *words])


def quality(message: arbiter_service_pb2.StreamQualityResponse) -> str:
    """One line for each directive, each order that is no longer wanted, and each end."""
    lines = [
        "  ".join(
            [
                f"revision {directive.revision}",
                directive.lease_id,
                f"quality {directive.quality:.3f}",
                f"limit {amounts.format_bytes(directive.memory_limit_bytes)}",
                *([f"kv {directive.kv_token_budget} tokens"] if directive.HasField("kv_token_budget") else []),
                _word(lease_pb2.DirectiveReason.DESCRIPTOR, directive.reason),
                *_reclaim(directive),
            ]
        )
        for directive in message.directives
    ]
    lines += [f"no longer wanted  {reclaim_id}" for reclaim_id in message.reclaim_cancelled]
    lines += [
        f"ended  {ended.lease_id}  {_word(lease_pb2.EndReason.DESCRIPTOR, ended.end_reason)}" for ended in message.ended
    ]
    if message.draining:
        lines.append("the arbiter is going away")
    return "\n".join(lines)


def in_colour(out: TextIO) -> bool:
    """Whether headers on ``out`` are to be bold: it is a terminal, and nobody asked for none."""
    return out.isatty() and not os.environ.get("NO_COLOR")


def _reclaim(directive: lease_pb2.Directive) -> list[str]:
    """The order to give memory back, if there is one."""
    if not directive.HasField("reclaim"):
        return []
    order = directive.reclaim
    level = _word(lease_pb2.ReclaimLevel.DESCRIPTOR, order.level)
    grace = order.grace.ToNanoseconds() / 1e9
    what = amount(order.memory_bytes, order.kv_tokens)
    return [f"give {what} in {grace:.1f}s", level, order.reclaim_id]


def _lease_state(lease: lease_pb2.Lease) -> str:
    if lease.end_reason:
        return _word(lease_pb2.EndReason.DESCRIPTOR, lease.end_reason)
    return _word(lease_pb2.LeaseState.DESCRIPTOR, lease.state)


def _left(lease: lease_pb2.Lease, wall: float) -> str:
    if lease.HasField("expire_time"):
        return amounts.format_seconds(lease.expire_time.ToNanoseconds() / 1e9 - wall)
    return amounts.format_seconds(lease.ttl.ToNanoseconds() / 1e9)


def _clock(time: Timestamp) -> str:
    return time.ToDatetime().strftime("%H:%M:%S.%f")[:-3] + "Z"


def _word(kind: EnumDescriptor, number: int) -> str:
    """The value's name without its prefix, in lower case; the number of a value that this client does not know."""
    value = kind.values_by_number.get(number)
    if value is None:
        return str(number)
    return value.name.removeprefix(kind.values_by_number[0].name.removesuffix("UNSPECIFIED")).lower()


def clean(text: str) -> str:
    """Names come from other programs: nothing in them may steer the terminal or break the line."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
