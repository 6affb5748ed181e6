"""Whatever workers, callers and time do: layers are neither lost nor doubled, and advice can be followed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar import errors
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy.balance import ShardState
from tests.arbiter.desk import LINEAR, Desk
from tests.arbiter.split import GROUP, Pipeline, Stage
from tests.thorough import examples

NAMES = ("a", "b", "c", "d", "e")


class Chaos:
    """A split model to which anything may happen. The desk proves the books after each step."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        desk = Desk(LINEAR)
        desk.box(1000.0)
        self.model = Pipeline(desk, [Stage(name, 4, cost) for name, cost in zip("abc", (1.0, 2.0, 8.0), strict=True)])
        self.older: list[Lease] = []

    @property
    def there(self) -> bool:
        """Whether the model still is."""
        return ("default", GROUP) in self.model.desk.books.shards.groups

    def step(self) -> None:
        """One thing happens."""
        deeds = [
            self.join,
            self.leave,
            self.beat,
            self.beat,
            self.wait,
            self.evaluate,
            self.follow,
            self.obey,
            self.by_hand,
        ]
        self.source.choice(deeds)()

    def join(self) -> None:
        """A worker comes, under a new name or an old one."""
        name = self.source.choice(NAMES)
        if name in self.model.leases:
            self.older.append(self.model.leases[name])
        self.model.join(Stage(name, self.source.randint(0, 4), self.source.choice((1.0, 3.0))), NAMES.index(name))

    def leave(self) -> None:
        """A worker goes, perhaps one that was displaced."""
        lease = self.source.choice([*self.model.leases.values(), *self.older])
        if lease.alive and self.source.random() < 0.4:
            self.model.desk.release(lease)

    def beat(self) -> None:
        """Some heartbeats come, with latencies."""
        for name, lease in self.model.leases.items():
            if lease.alive and self.source.random() < 0.9:
                cost = self.model.stages[name].cost * (lease.shard.layers if lease.shard is not None else 1)
                self.model.desk.report(lease, revision=0, latencies=(cost,) * 100 if cost else ())

    def wait(self) -> None:
        """Time passes."""
        self.model.desk.at(self.model.desk.now + self.source.choice((0.2, 3.0, 6.0, 61.0)))

    def evaluate(self) -> None:
        """Somebody asks."""
        if self.there:
            self.model.evaluate()

    def follow(self) -> None:
        """Somebody applies what is suggested. Only a missed heartbeat since may stand against it."""
        if not self.there or self.model.group.suggestion is None:
            return
        late = any(record.health.state is ShardState.DEGRADED for record in self.model.group.line)
        try:
            self.model.assign(plan_id=self.model.group.suggestion.plan_id)
        except errors.InvalidAssignment:
            assert late

    def by_hand(self) -> None:
        """Somebody assigns layers at random."""
        if not self.there:
            return
        cuts = sorted(self.source.randint(0, self.model.group.layers) for _ in self.model.group.line[1:])
        edges = [0, *cuts, self.model.group.layers]
        line = self.model.group.line
        ranges = [(each.name, begin, end) for each, begin, end in zip(line, edges, edges[1:], strict=False)]
        before = self.model.division
        try:
            self.model.assign(*ranges)
        except errors.InvalidAssignment:
            assert self.model.division == before

    def obey(self) -> None:
        """Some workers serve what they were told."""
        for lease in self.model.leases.values():
            if lease.alive and self.source.random() < 0.8:
                self.model.desk.report(lease)


@examples(120)
@given(st.integers(min_value=0, max_value=2**32))
def test_layers_are_conserved_whatever_happens(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(40):
        group = chaos.model.group if chaos.there else None
        settled, layers = (group.settled, group.layers) if group is not None else (False, 0)
        chaos.step()
        if chaos.there and chaos.model.group is group and settled:
            assert group.layers == layers, "from the first plan on layers only move"
        if chaos.there:
            for record in chaos.model.group.line:
                assert record.pending or record.layers == record.assigned
