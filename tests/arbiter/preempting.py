"""A card with five who may have to give and one who asks, and what became of a plan."""

from __future__ import annotations

from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Plan
from arbiter_sidecar.types import GIB, Priority
from tests.arbiter.desk import Desk, gib, wish

BACKGROUND, LOW, NORMAL, HIGH, CRITICAL = Priority

#: What each keeps whatever is taken from it, GiB.
FLOOR = 10.0
#: Room for all of them at their best together with what the requester may gain.
CARD = 700.0


class Stage:
    """Leases by name on a card on which every holder holds what it says it does.

    Attributes:
        desk: The arbiter.
        held: GiB that the holders really hold, by name.
        leases: Their leases.
    """

    def __init__(self, desk: Desk, *, size: float = CARD) -> None:
        self.desk = desk
        self.held: dict[str, float] = {}
        self.leases: dict[str, Lease] = {}
        desk.card(size)

    def hold(
        self,
        name: str,
        priority: Priority,
        size: float,
        *,
        floor: float = FLOOR,
        preemptible: bool = True,
        ttl: float = 1000.0,
    ) -> Lease:
        """A lease that uses all it was granted."""
        pid = len(self.leases) + 1
        request = wish(name, size, priority=priority, floor=floor, pids=(pid,), ttl=ttl, preemptible=preemptible)
        lease = self.leases[name] = self.desk.take(request)
        self.desk.apply(lease)
        self.held[name] = lease.limit_bytes / GIB
        return lease

    def measure(self, foreign: float = 0.0) -> None:
        """A sample that shows what is really held."""
        names = list(self.leases)
        self.desk.sample({names.index(name) + 1: size for name, size in self.held.items()}, foreign=foreign)

    def measure_gone(self, *names: str, foreign: float = 0.0) -> None:
        """Samples over as long as it takes to believe that these hold nothing any more."""
        for name in names:
            self.held[name] = 0.0
        for _ in range(4):
            self.desk.at(self.desk.now + 0.15)
            self.measure(foreign)

    def give(self, *names: str) -> None:
        """These go down to their limits and say so."""
        for name in names:
            lease = self.leases[name]
            self.held[name] = lease.limit_bytes / GIB
            self.measure()
            if lease.reclaim is not None:
                self.desk.ack(lease)

    def at(self, now: float, foreign: float = 0.0) -> None:
        """Lets time pass with a fresh sample on the way, so that the card stays known."""
        while self.desk.now + 1.0 < now:
            self.desk.at(self.desk.now + 1.0)
            self.measure(foreign)
        self.desk.at(now)
        self.measure(foreign)

    @property
    def plan(self) -> Plan:
        """The plan that is under way."""
        plan = self.desk.device("gpu").plan
        assert plan is not None
        return plan

    @property
    def open(self) -> bool:
        """Whether one is."""
        return self.desk.device("gpu").plan is not None

    @property
    def earmarked(self) -> float:
        """What is kept for its requester, GiB."""
        return self.desk.device("gpu").earmarked_bytes / GIB

    @property
    def free(self) -> float:
        """What anybody could be granted, GiB."""
        return self.desk.device("gpu").available_bytes / GIB

    def name_of(self, lease_id: str) -> str:
        """Who holds a lease."""
        return next(name for name, lease in self.leases.items() if lease.lease_id == lease_id)

    def orders(self) -> str:
        """Who is asked for what, in the order of asking; whole leases with an exclamation mark."""
        return " ".join(
            f"{self.name_of(lease_id)}{each.planned_bytes / GIB:g}{'!' if each.whole else ''}"
            for lease_id, each in self.plan.donations.items()
        )

    def let_off(self, name: str) -> bool:
        """Whether a holder was told that it need not give any more."""
        return any(
            isinstance(each, effects.ReclaimCancelled) and each.lease is self.leases[name] for each in self.desk.effects
        )


def worked(desk: Desk) -> Stage:
    """Five donors that can shed 20, 50, 30, 100 and 100 GiB, the first the oldest, and nobody old enough to end."""
    stage = Stage(desk)
    for moment, (name, priority, shed) in enumerate(
        (("A", BACKGROUND, 20), ("B", BACKGROUND, 50), ("C", LOW, 30), ("D", NORMAL, 100), ("E", HIGH, 100))
    ):
        desk.at(float(moment))
        stage.hold(name, priority, FLOOR + shed)
    stage.measure()
    return stage


def requester(stage: Stage, priority: Priority, *, size: float = 10.0) -> Lease:
    """One more lease, rigid, that will ask; everybody has been held for long enough to shrink by then."""
    lease = stage.hold("R", priority, size, floor=size)
    stage.at(stage.desk.now + 2.0)
    assert lease.limit_bytes == gib(size)
    return lease
