"""The book of split models: which worker serves which layers, how fast, and whether it can be relied on.

The layers of a group are counted once, when its shards enter. From the first plan on, and while a failed shard still
holds some, only plans move them: whoever enters then holds what the book says, and a new name holds none.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import Decision, Health, Rebalance, Shard, ShardState, Span
from arbiter_sidecar.requests import ShardPlace

if TYPE_CHECKING:
    from arbiter_sidecar.ledger.leases import Lease

#: Names of a group that are gone and hold no layers are remembered with their costs, so many at most.
MAX_DEPARTED = 256

#: What nearly every heartbeat finds.
_WELL = Health()

#: A group is found by its namespace and its name.
GroupKey = tuple[str, str]


class ShardRecord:
    """One shard of a split model. It outlives its lease as long as it holds layers.

    Attributes:
        group: The model.
        name: Its name.
        position: Its place in the pipeline.
        own_limit: The most layers it can serve by its own word; ``None``: no limit of its own.
        bytes_per_layer: What one more layer costs.
        lease: Who serves it; ``None`` when that has ended.
        layers: Layers it runs with now, as far as is known; its samples are for so many.
        begin: First layer it is told to serve.
        end: One past the last.
        plan_id: The plan that said so; empty for what it entered with.
        revision: The directive that said so.
        pending: It has not confirmed that yet.
        health: Whether it can be relied on.
        cost_us: Microseconds per layer, by the newest samples there were; ``None``: never measured.
    """

    __slots__ = (
        "_samples",
        "begin",
        "bytes_per_layer",
        "cost_us",
        "end",
        "group",
        "health",
        "layers",
        "lease",
        "name",
        "own_limit",
        "pending",
        "plan_id",
        "position",
        "revision",
    )

    def __init__(self, group: ShardGroup, name: str) -> None:
        self.group = group
        self.name = name
        self.position = 0
        self.own_limit: int | None = None
        self.bytes_per_layer = 0
        self.lease: Lease | None = None
        self.layers = 0
        self.begin = 0
        self.end = 0
        self.plan_id = ""
        self.revision = 0
        self.pending = False
        self.health = Health()
        self.cost_us: float | None = None
        self._samples: deque[tuple[float, float]] = deque(maxlen=balance.WINDOW)

    @property
    def assigned(self) -> int:
        """How many layers it is told to serve."""
        return self.end - self.begin

    @property
    def room(self) -> int | None:
        """How many layers it can hold: by its own word, and by the unused memory of its lease; ``None``: unknown.

        What it holds already fits, whatever its memory is lowered to: layers are moved by plans, not by pressure.
        """
        by_memory = self._room_by_memory()
        if by_memory is None or self.own_limit is None:
            return self.own_limit if by_memory is None else by_memory
        return min(by_memory, self.own_limit)

    def _room_by_memory(self) -> int | None:
        lease = self.lease
        if lease is None:
            return None
        known = [used for used in (lease.measured_bytes, lease.reported_bytes) if used is not None]
        if not known:
            return None
        more = balance.layer_room(lease.limit_bytes - max(known), self.bytes_per_layer)
        return None if more is None else self.assigned + more

    def hear(self, latencies_us: tuple[float, ...], now: float) -> None:
        """Takes in how long forward passes took; without layers there is nothing to learn from them."""
        if self.layers:
            self._samples.extend((now, balance.sample_cost(latency, self.layers)) for latency in latencies_us)
            self._reckon(now)

    def fresh_samples(self, now: float) -> int:
        """How many samples are recent enough to count."""
        if self._samples and self._samples[0][0] < now - balance.FRESH_S:
            self._reckon(now)
        return len(self._samples)

    def _reckon(self, now: float) -> None:
        """Forgets old samples and takes the cost from those that are left, or leaves it as it was last known."""
        while self._samples and self._samples[0][0] < now - balance.FRESH_S:
            self._samples.popleft()
        mean = balance.trimmed_mean([cost for _, cost in self._samples])
        if mean is not None:
            self.cost_us = mean

    def settle(self) -> None:
        """It runs with the layers that it was told to: what was measured before says nothing about them."""
        self.pending = False
        self.layers = self.assigned
        self._samples.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A division of the layers that would pay, and stands until something of its grounds changes.

    Attributes:
        plan_id: Its name, with which it can be applied.
        assignment: Layers of every shard, in pipeline order.
        moved: Layers that change their shard.
        gains: Cause and numbers; ``None`` for a first placement.
    """

    plan_id: str
    assignment: tuple[Span, ...]
    moved: int
    gains: Rebalance | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """Layers are being moved: these shards, by name in pipeline order, have not confirmed yet."""

    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPlan:
    """A plan that not everybody has confirmed yet.

    Attributes:
        plan_id: Its name.
        began_at: When its directives went out, monotonic seconds.
        moved: Layers that change their shard.
    """

    plan_id: str
    began_at: float
    moved: int


class ShardGroup:
    """A model that is split over workers.

    Attributes:
        namespace: Its namespace.
        name: Its name.
        shards: By name.
        line: In pipeline order.
        living: How many of them have a living lease.
        settled: A plan has been applied: nobody brings layers along any more.
        plan_id: The plan that was applied last; empty before the first.
        plan: That plan while not everybody has confirmed it.
        suggestion: What would be better, and still stands.
        decision: What the last evaluation found; ``None`` before the first one, and after layers have moved.
        evaluated_at: When that was, or a plan was carried out since; monotonic seconds.
        look_at: When it is next evaluated by itself.
        due: A shard has failed or lives again since the last evaluation.
        version: Grows with every change that people may want to see.
    """

    __slots__ = (
        "decision",
        "due",
        "evaluated_at",
        "line",
        "living",
        "look_at",
        "name",
        "namespace",
        "plan",
        "plan_id",
        "settled",
        "shards",
        "suggestion",
        "version",
    )

    def __init__(self, key: GroupKey) -> None:
        self.namespace, self.name = key
        self.shards: dict[str, ShardRecord] = {}
        self.line: list[ShardRecord] = []
        self.living = 0
        self.settled = False
        self.plan_id = ""
        self.plan: OpenPlan | None = None
        self.suggestion: Suggestion | None = None
        self.decision: Decision | None = None
        self.evaluated_at: float | None = None
        self.look_at = 0.0
        self.due = False
        self.version = 0

    @property
    def key(self) -> GroupKey:
        """By which it is found."""
        return (self.namespace, self.name)

    @property
    def layers(self) -> int:
        """All layers of the model."""
        return self.line[-1].end if self.line else 0

    @property
    def moving(self) -> tuple[str, ...]:
        """Who has not confirmed its layers yet; nobody waits for failed ones."""
        return tuple(
            record.name
            for record in self.line
            if record.pending and record.lease is not None and record.health.state is not ShardState.FAILED
        )

    def picture(self, now: float) -> list[Shard]:
        """What the policy sees of it."""
        return [
            Shard(
                name=record.name,
                position=record.position,
                layers=record.assigned,
                cost_us=record.cost_us,
                max_layers=record.room,
                fresh_samples=record.fresh_samples(now),
                state=record.health.state,
            )
            for record in self.line
        ]

    def place(self, record: ShardRecord, layers: int) -> list[ShardRecord]:
        """Puts a shard with so many layers into the pipeline; returns the others whose layers are counted anew."""
        if record.name in self.shards:
            self.line.remove(record)
        self.shards[record.name] = record
        record.begin, record.end = 0, layers
        insort(self.line, record, key=lambda each: (each.position, each.name))
        moved, begin = [], 0
        for each in self.line:
            if each.begin != begin:
                each.begin, each.end = begin, begin + each.assigned
                if each is not record:
                    moved.append(each)
            begin = each.end
        return moved

    def trim(self) -> None:
        """Forgets names beyond the bound that are gone and hold no layers."""
        departed = [record for record in self.line if record.lease is None and not record.assigned]
        for record in departed[: max(0, len(departed) - MAX_DEPARTED)]:
            self.line.remove(record)
            del self.shards[record.name]


class Entered(NamedTuple):
    """What the entry of a shard has brought about.

    Attributes:
        record: The shard.
        displaced: An older lease that served it until now; ``None`` for none.
        shifted: Shards whose layers are counted anew because of it.
    """

    record: ShardRecord
    displaced: Lease | None
    shifted: list[ShardRecord]


class StateChange(NamedTuple):
    """A shard can be relied on more, or less.

    Attributes:
        record: The shard.
        lease: Its lease; the one that has ended, when that is why.
        before: Its state until now.
        after: Its state from now on.
    """

    record: ShardRecord
    lease: Lease
    before: ShardState
    after: ShardState


class ShardBook:
    """All split models.

    Attributes:
        groups: By namespace and name; those with a living shard.
        plans: How many plans were ever suggested or made.
    """

    __slots__ = ("_changes", "_due", "_touched", "groups", "plans")

    def __init__(self) -> None:
        self.groups: dict[GroupKey, ShardGroup] = {}
        self.plans = 0
        self._changes: list[StateChange] = []
        self._touched: dict[GroupKey, ShardGroup] = {}
        self._due: dict[GroupKey, float] = {}

    @property
    def news(self) -> bool:
        """Whether anything has happened that was not looked at yet."""
        return bool(self._changes or self._touched)

    def touch(self, group: ShardGroup) -> None:
        """Something of a group has changed."""
        group.version += 1
        self._touched[group.key] = group

    def schedule(self, group: ShardGroup, at: float) -> None:
        """Has a group evaluated then, or when it was to be already. Later calls never name an earlier time."""
        self._due.setdefault(group.key, at)

    @property
    def next_due(self) -> float | None:
        """When the next group is to be evaluated because its shards have failed or live again."""
        return next(iter(self._due.values()), None)

    def take_due(self, now: float) -> ShardGroup | None:
        """A group that is to be evaluated by now; each is handed out once."""
        for key, at in self._due.items():
            if at <= now:
                del self._due[key]
                return self.groups[key]
            break
        return None

    def take_changes(self) -> list[StateChange]:
        """The changes of state since the last time."""
        changes, self._changes = self._changes, []
        return changes

    def take_touched(self) -> list[ShardGroup]:
        """The groups that have changed since the last time; a group without a living shard is not there any more."""
        touched, self._touched = self._touched, {}
        return list(touched.values())

    def enter(self, lease: Lease, place: ShardPlace) -> Entered:
        """A new lease serves a shard from now on."""
        key = (lease.request.namespace, place.group)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = ShardGroup(key)
        record = group.shards.get(place.name)
        displaced = None
        if record is None:
            record = ShardRecord(group, place.name)
            closed = group.settled or any(each.lease is None and each.assigned for each in group.line)
            layers = record.layers = 0 if closed else place.layers
        else:
            displaced, layers = record.lease, record.assigned
            record.settle()
            # It has to load what the book says, which need not be what it has; and a failed one has to prove itself.
            record.pending, record.health = True, Health(record.health.state)
        if displaced is not None:
            displaced.shard = None
            group.living -= 1
        record.position, record.own_limit = place.position, place.max_layers
        record.bytes_per_layer, record.lease, record.revision = place.bytes_per_layer, lease, lease.revision
        lease.shard = record
        group.living += 1
        group.suggestion = None
        shifted = group.place(record, layers)
        self.touch(group)
        return Entered(record, displaced, shifted)

    def leave(self, lease: Lease) -> None:
        """The lease of a shard has ended: its layers must move. The last one takes its group along."""
        record = lease.shard
        if record is None:
            return
        group, lease.shard = record.group, None
        before = record.health.state
        record.settle()
        record.lease = None
        record.health = Health(ShardState.FAILED, balance.FAILED_AFTER)
        group.living -= 1
        group.suggestion = None
        self._note(StateChange(record, lease, before, ShardState.FAILED))
        if group.living == 0:
            del self.groups[group.key]
            self._due.pop(group.key, None)
        group.trim()

    def observe(self, lease: Lease, *, answered: bool) -> None:
        """A heartbeat of a shard has come, or was missed."""
        record = lease.shard
        assert record is not None
        before = record.health
        if answered and before == _WELL:
            return
        record.health = balance.observe(before, answered)
        self._note(StateChange(record, lease, before.state, record.health.state))

    def _note(self, change: StateChange) -> None:
        if change.before is change.after:
            return
        group = change.record.group
        if ShardState.FAILED in (change.before, change.after):
            group.due, group.suggestion = True, None
        self._changes.append(change)
        self.touch(group)

    def check(self) -> None:
        """Raises ``AssertionError`` where the book contradicts itself."""
        for key, group in self.groups.items():
            assert group.key == key
            assert group.living == sum(record.lease is not None for record in group.line) > 0
            assert sorted(group.shards) == sorted(record.name for record in group.line)
            end = 0
            for record in group.line:
                assert record.begin == end <= record.end, "layers are consecutive in pipeline order"
                end = record.end
                assert record.lease is None or record.lease.shard is record
                assert record.lease is not None or record.health.state is ShardState.FAILED
            if group.suggestion is not None:
                suggested = sum(span.layers for span in group.suggestion.assignment)
                assert suggested == (group.layers or group.suggestion.moved)
