"""Split models for tests of the core: shards that lease, report and obey, with round numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from arbiter_sidecar.arbiter.shards import GATHER_S, Evaluation
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.shards import ShardGroup, ShardRecord
from arbiter_sidecar.policy.balance import MIN_SAMPLES, Rebalance, Settings
from arbiter_sidecar.requests import AssignmentRequest, LayerRange, ShardPlace
from tests.arbiter.desk import LINEAR, Desk, DeskMaker, wish

GROUP = "llama"


@dataclass(frozen=True, slots=True)
class Stage:
    """A shard of a worked example: its layers, what one costs in microseconds, and what it can hold at most."""

    name: str
    layers: int
    cost: float
    most: int | None = None


def place(stage: Stage, position: int, group: str = GROUP, bytes_per_layer: int = 0) -> ShardPlace:
    """What a worker says about its shard."""
    return ShardPlace(
        group=group,
        name=stage.name,
        position=position,
        layers=stage.layers,
        bytes_per_layer=bytes_per_layer,
        max_layers=stage.most,
    )


class Pipeline:
    """A split model at a desk; its workers do what they are told, and as fast as their stages say."""

    def __init__(self, desk: Desk, stages: Sequence[Stage], *, measured: bool = True) -> None:
        self.desk = desk
        self.stages = {stage.name: stage for stage in stages}
        self.leases: dict[str, Lease] = {}
        for position, stage in enumerate(stages):
            self.join(stage, position)
        if measured:
            self.measure()

    def join(self, stage: Stage, position: int, namespace: str = "default", bytes_per_layer: int = 0) -> Lease:
        """A worker leases for a shard."""
        self.stages[stage.name] = stage
        request = wish(
            stage.name, 0.01, rigid=True, namespace=namespace, shard=place(stage, position, GROUP, bytes_per_layer)
        )
        lease = self.leases[stage.name] = self.desk.take(request)
        return lease

    @property
    def group(self) -> ShardGroup:
        """The model as the book has it."""
        return self.desk.books.shards.groups["default", GROUP]

    def record(self, name: str) -> ShardRecord:
        """A shard as the book has it."""
        return self.group.shards[name]

    @property
    def division(self) -> dict[str, tuple[int, int]]:
        """What everybody is told to serve."""
        return {record.name: (record.begin, record.end) for record in self.group.line}

    def measure(self, *names: str, samples: int = MIN_SAMPLES) -> None:
        """The shards report as many forward passes as are needed."""
        for name in names or tuple(self.leases):
            latency = self.record(name).layers * self.stages[name].cost
            if latency:
                self.desk.report(self.leases[name], latencies=(latency,) * samples)
            else:
                self.desk.beat(self.leases[name])

    def obey(self) -> None:
        """Everybody serves what it was told."""
        for lease in self.leases.values():
            if lease.alive:
                self.desk.apply(lease)

    def evaluate(self) -> Evaluation:
        """Asks whether layers should move."""
        found = self.desk.arbiter.evaluate_balance("default", GROUP, 0, self.desk.now)
        self.desk.collect()
        return found

    def suggestion(self) -> Rebalance:
        """What is suggested; something must be."""
        decision = self.evaluate().decision
        assert isinstance(decision, Rebalance), decision
        return decision

    def follow(self) -> None:
        """Applies what is suggested, and everybody obeys and is measured anew."""
        assert self.group.suggestion is not None
        self.assign(plan_id=self.group.suggestion.plan_id)
        self.obey()
        self.measure()

    def assign(self, *ranges: tuple[str, int, int], plan_id: str = "") -> ShardGroup:
        """Moves layers."""
        assignment = tuple(LayerRange(shard=name, begin=begin, end=end) for name, begin, end in ranges)
        asked = AssignmentRequest(namespace="default", group=GROUP, plan_id=plan_id, assignment=assignment)
        group = self.desk.arbiter.assign(asked, self.desk.now)
        self.desk.collect()
        return group

    def gather(self) -> None:
        """Lets so much time pass that failed shards have been looked at."""
        self.desk.at(self.desk.now + GATHER_S)

    def live(self, until: float, *silent: str) -> None:
        """Lets time pass; everybody beats every second but for the silent."""
        beating = [lease for name, lease in self.leases.items() if lease.alive and name not in silent]
        self.desk.live(until, *beating)


def pipeline(make_desk: DeskMaker, *stages: Stage, settings: Settings | None = None, measured: bool = True) -> Pipeline:
    """A split model at a desk of its own."""
    desk = make_desk(replace(LINEAR, balance=settings or Settings()))
    desk.box(1000.0)
    return Pipeline(desk, stages, measured=measured)
