"""Split models: hears how fast their shards are, says how layers should move, and moves them when it is told to.

The arbiter gives advice; it moves nothing by itself. A plan goes out with the directives of all shards at once, and is
carried out when each has confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.ledger.shards import Moving, OpenPlan, ShardGroup, ShardRecord, Suggestion
from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import Decision, Infeasible, Rebalance, ShardState, Span, TooFewSamples, TooSoon
from arbiter_sidecar.requests import AssignmentRequest
from arbiter_sidecar.types import DirectiveReason, EventKind

if TYPE_CHECKING:
    from arbiter_sidecar.arbiter.books import Books
    from arbiter_sidecar.ledger.leases import Lease

#: Part of the time to live between two heartbeats, as leases tell their holders.
INTERVAL_SHARE = 1 / 3
#: A heartbeat counts as missed when it is so much of an interval late; the same lateness that makes a lease suspect.
LATE_SHARE = 0.5


#: Shards often fail together, with their machine or their pipeline; one evaluation after so many seconds is for all.
GATHER_S = 0.2


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the layers of a model that nobody holds yet should go."""

    assignment: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found, and the group as it is now; its suggestion is the one that stands."""

    decision: Decision | Moving | Placement
    group: ShardGroup


# What workers bring about ---------------------------------------------------------------------------------------------


def enter(books: Books, lease: Lease, now: float) -> None:
    """A new lease; when it is one of a shard, that shard is served by it from now on."""
    place = lease.request.shard
    if place is None:
        return
    entered = books.shards.enter(lease, place)
    group = entered.record.group
    group.look_at = group.look_at or now + books.config.balance.interval_s
    if entered.displaced is not None:
        # Two must not serve the same layers: the older one is told that it has none.
        books.announce(entered.displaced, DirectiveReason.SHARD_ASSIGNMENT)
    for record in entered.shifted:
        _tell(books, record)
    books.later(_missed_at(lease, entered.record), "shard", lease)


def confirm(books: Books, lease: Lease) -> None:
    """After a report: a shard that has applied the directive with its layers runs with them."""
    record = lease.shard
    if record is not None and record.pending and lease.applied_revision >= record.revision:
        record.settle()
        books.shards.touch(record.group)


def watch(books: Books, lease: Lease, now: float) -> None:
    """Looks whether a heartbeat was missed, and whether the group should be evaluated again by itself."""
    record = lease.shard
    if record is None:
        return
    due = _missed_at(lease, record)
    if due <= now:
        books.shards.observe(lease, answered=False)
        due = max(_missed_at(lease, record), now + lease.ttl_s * INTERVAL_SHARE)
    books.later(due, "shard", lease)
    if record.group.look_at <= now:
        evaluate(books, record.group, now)


def _missed_at(lease: Lease, record: ShardRecord) -> float:
    """When the next missing heartbeat counts as missed; not while the holder has announced silence."""
    intervals = record.health.misses + 1 + LATE_SHARE
    return max(lease.last_beat, lease.quiet_until) + intervals * lease.ttl_s * INTERVAL_SHARE


def follow(books: Books, now: float) -> None:
    """Draws the consequences of what has happened to shards."""
    for change in books.shards.take_changes():
        record = change.record
        books.happened(
            EventKind.SHARD_STATE_CHANGED,
            change.lease,
            group=record.group.name,
            shard=record.name,
            state=change.after.name,
            before=change.before.name,
            layers=record.assigned,
        )
    for group in books.shards.take_touched():
        if group.living and not group.moving:
            if group.plan is not None:
                _close(books, group, group.plan, now)
            if group.due:
                books.shards.schedule(group, now + GATHER_S)
        books.pending.append(effects.ShardsChanged(group))


def catch_up(books: Books, now: float) -> None:
    """Evaluates one group of which shards have failed, or live again."""
    group = books.shards.take_due(now)
    if group is not None:
        evaluate(books, group, now)


# Advice ---------------------------------------------------------------------------------------------------------------


def find(books: Books, namespace: str, name: str) -> ShardGroup:
    """The group. Raises ShardNotFound."""
    group = books.shards.groups.get((namespace, name))
    if group is None:
        raise errors.ShardNotFound(f"no living shard of a group {name!r}", group=name, namespace=namespace)
    return group


def evaluate(books: Books, group: ShardGroup, now: float) -> Evaluation:
    """Whether layers should move. A suggestion is kept, and said once as long as it stays the same."""
    group.look_at = now + books.config.balance.interval_s
    moving = group.moving
    if moving:
        return Evaluation(Moving(missing=moving), group)
    decision = balance.evaluate(
        group.picture(now),
        now=now,
        evaluated_at=group.evaluated_at,
        state_changed=group.due,
        settings=books.config.balance,
    )
    if isinstance(decision, TooSoon):
        return Evaluation(decision, group)
    group.due = False
    group.decision = decision
    if not isinstance(decision, TooFewSamples):
        group.evaluated_at = now
    if isinstance(decision, Rebalance):
        _suggest(books, group, decision.assignment, decision.moved, decision)
    else:
        group.suggestion = None
    group.version += 1
    books.pending.append(effects.ShardsChanged(group))
    return Evaluation(decision, group)


def place(books: Books, group: ShardGroup, layers: int, now: float) -> Evaluation:
    """Where a model of so many layers should go at first. Suggested as ever, and done by nobody but who applies it.

    Raises:
        InvalidRequest: Its shards hold layers already.
    """
    if group.layers:
        raise errors.InvalidRequest([("layers", f"the shards hold {group.layers} already; leave it out")])
    moving = group.moving
    if moving:
        return Evaluation(Moving(missing=moving), group)
    found = balance.place(group.picture(now), layers, objective=books.config.balance.objective)
    if isinstance(found, Infeasible):
        return Evaluation(found, group)
    _suggest(books, group, found, layers, None)
    books.shards.touch(group)
    return Evaluation(Placement(found), group)


def _suggest(
    books: Books, group: ShardGroup, assignment: tuple[Span, ...], moved: int, gains: Rebalance | None
) -> None:
    known = group.suggestion
    same = known is not None and known.assignment == assignment
    plan_id = known.plan_id if known is not None and same else _plan_id(books)
    group.suggestion = Suggestion(plan_id=plan_id, assignment=assignment, moved=moved, gains=gains)
    if same:
        return
    cause = "placement" if gains is None else gains.cause.value
    _say(books, EventKind.BALANCE_SUGGESTED, group, plan_id, {"cause": cause, "moved": moved, **_numbers(gains)})


def _numbers(gains: Rebalance | None) -> dict[str, object]:
    """What a suggestion is expected to gain, for the audit event; nothing where that cannot be said."""
    if gains is None or gains.throughput_gain is None or gains.latency_gain is None:
        return {}
    return {
        "throughput_gain": round(gains.throughput_gain, 4),
        "latency_gain": round(gains.latency_gain, 4),
        "imbalance": round(gains.imbalance or 0.0, 4),
    }


def _plan_id(books: Books) -> str:
    books.shards.plans += 1
    return f"balance-{books.epoch}-{books.shards.plans}"


# Moving layers --------------------------------------------------------------------------------------------------------


def apply(books: Books, asked: AssignmentRequest, now: float) -> ShardGroup:
    """Sends a plan out: the suggestion that is named, or an assignment by hand. Once more is fine.

    Raises:
        ShardNotFound: The group, or a shard that is named, is unknown.
        StalePlan: The plan is not the one that is suggested now.
        InvalidRequest: Neither a plan nor an assignment is named.
        InvalidAssignment: The assignment does not give every layer to one shard that can take it.
    """
    group = find(books, asked.namespace, asked.group)
    spans = {each.shard: Span(each.shard, each.begin, each.end) for each in asked.assignment}
    if not (asked.plan_id or spans):
        raise errors.InvalidRequest([("assignment", "is required without a plan_id")])
    suggestion = group.suggestion
    if asked.plan_id and asked.plan_id == group.plan_id and _as_it_is(group, spans):
        return group
    if asked.plan_id and (suggestion is None or suggestion.plan_id != asked.plan_id):
        present = "none" if suggestion is None else suggestion.plan_id
        raise errors.StalePlan(
            f"plan {asked.plan_id!r} is not what is suggested for group {group.name!r} now, which is {present}",
            plan_id=asked.plan_id,
            suggested=present,
        )
    if not spans and suggestion is not None:
        spans = {span.name: span for span in suggestion.assignment}
    _check(group, spans)
    _send(books, group, spans, asked.plan_id or _plan_id(books), now)
    return group


def _as_it_is(group: ShardGroup, spans: dict[str, Span]) -> bool:
    """Whether this is what the shards were told already; nothing is, of course."""
    return all(
        name in group.shards and (span.begin, span.end) == (group.shards[name].begin, group.shards[name].end)
        for name, span in spans.items()
    )


def _check(group: ShardGroup, spans: dict[str, Span]) -> None:
    """Raises ShardNotFound or InvalidAssignment where the assignment cannot be carried out."""
    for name in spans:
        if name not in group.shards:
            raise errors.ShardNotFound(f"group {group.name!r} has no shard {name!r}", group=group.name, shard=name)
    end = 0
    for record in group.line:
        span = spans.get(record.name)
        problem = _problem(record, span)
        if problem:
            raise errors.InvalidAssignment(f"shard {record.name!r} {problem}", group=group.name, shard=record.name)
        if span is None or not span.layers:
            continue
        if span.begin != end:
            what = f"layers {end} to {span.begin} are given to nobody" if span.begin > end else "layers are given twice"
            raise errors.InvalidAssignment(
                f"shard {record.name!r} begins at layer {span.begin}, and those before it end at {end}: {what}; "
                "layers are consecutive in pipeline order",
                group=group.name,
                shard=record.name,
            )
        end = span.end
    if end != (group.layers or end) or not end:
        raise errors.InvalidAssignment(
            f"{end} layers are assigned, the model has {group.layers}", group=group.name, layers=group.layers
        )


def _problem(record: ShardRecord, span: Span | None) -> str:
    """Why a shard cannot take what it is to get; empty when it can."""
    reliable = record.lease is not None and record.health.state is not ShardState.FAILED
    if span is None:
        return "is not named; a shard that is to have no layers gets an empty range" if reliable else ""
    if span.layers and not reliable:
        return "has failed and can take no layers"
    if span.layers > record.assigned and record.health.state is ShardState.DEGRADED:
        return "has missed a heartbeat and can take no further layers"
    room = record.room
    if room is not None and span.layers > max(room, record.assigned):
        return f"has room for {room} layers, not for {span.layers}"
    return ""


def _send(books: Books, group: ShardGroup, spans: dict[str, Span], plan_id: str, now: float) -> None:
    """Tells every shard its layers, also those that keep theirs: all of them switch together."""
    before = {record.name: record.assigned for record in group.line}
    end = 0
    for record in group.line:
        span = spans.get(record.name)
        record.begin, record.end = (end, end) if span is None or not span.layers else (span.begin, span.end)
        end = record.end
        record.plan_id = plan_id
        record.pending = True
        _tell(books, record)
        if record.lease is None:
            record.settle()
    moved = sum(max(0, record.assigned - before[record.name]) for record in group.line)
    group.plan = OpenPlan(plan_id=plan_id, began_at=now, moved=moved)
    group.plan_id, group.settled = plan_id, True
    group.suggestion = group.decision = None
    group.evaluated_at = now
    _say(books, EventKind.BALANCE_BEGUN, group, plan_id, {"moved": moved, "layers": group.layers})
    books.shards.touch(group)


def _tell(books: Books, record: ShardRecord) -> None:
    if record.lease is not None:
        books.announce(record.lease, DirectiveReason.SHARD_ASSIGNMENT)
        record.revision = record.lease.revision


def _close(books: Books, group: ShardGroup, plan: OpenPlan, now: float) -> None:
    """Everybody runs with the new layers: from now on their speed counts."""
    group.plan = None
    group.evaluated_at = now
    group.trim()
    came_to = {"moved": plan.moved, "took_s": round(now - plan.began_at, 3)}
    _say(books, EventKind.BALANCE_APPLIED, group, plan.plan_id, came_to)


def _say(books: Books, kind: EventKind, group: ShardGroup, plan_id: str, numbers: Mapping[str, object]) -> None:
    books.stats.events += 1
    fields = {"group": group.name, "plan_id": plan_id, **{name: str(value) for name, value in numbers.items()}}
    books.pending.append(effects.Happened(kind=kind, namespace=group.namespace, fields=fields))
