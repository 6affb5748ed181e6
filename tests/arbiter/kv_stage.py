"""A device with KV engines, what they say, and what came of their reservations and loans."""

from __future__ import annotations

from dataclasses import replace

from arbiter_sidecar.arbiter import ArbiterConfig, effects
from arbiter_sidecar.arbiter.books import KvConfig
from arbiter_sidecar.errors import ArbiterError
from arbiter_sidecar.ledger.kv import KvBook, KvOrder, KvPlan, KvState, Reservation
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.requests import (
    Beat,
    KvShare,
    KvUsage,
    PreemptionRequest,
    ReclaimAck,
    Report,
    ReservationRequest,
)
from arbiter_sidecar.types import LeaseId, Priority, ReclaimLevel, ReportOutcome, Ticket, Verdict
from tests.arbiter.desk import LINEAR, Desk, wish

BACKGROUND, LOW, NORMAL, HIGH, CRITICAL = Priority


def sharing(tokens: int = 1000, permille: int = 1000, config: ArbiterConfig = LINEAR) -> ArbiterConfig:
    """A configuration with so many KV tokens on each device, of which one engine gets so many thousandths at most."""
    return replace(config, kv=KvConfig(tokens=tokens, engine_cap_permille=permille))


def usage(
    resident: int = 0,
    *,
    active: bool = True,
    demand: int | None = None,
    freeable: int = 0,
    running: Priority = NORMAL,
) -> KvUsage:
    """What an engine says about itself; by default that it has work and could use everything."""
    return KvUsage(
        active=active,
        resident_tokens=resident,
        demand_tokens=demand,
        lowest_running_priority=running,
        freeable_tokens=freeable,
    )


def lending(
    need: int,
    lease: Lease,
    *,
    priority: Priority | None = None,
    partial: bool = False,
    grace: float | None = None,
    request_id: str = "",
) -> PreemptionRequest:
    """A wish to be lent tokens."""
    return PreemptionRequest(
        need_tokens=need,
        lease_id=lease.lease_id,
        priority=priority,
        allow_partial=partial,
        grace_s=grace,
        request_id=request_id,
    )


class KvDesk(Desk):
    """A desk with one device on which nothing is measured, at which KV engines ask for tokens."""

    def __init__(self, config: ArbiterConfig, *, epoch: int = 1, now: float = 0.0) -> None:
        super().__init__(config, epoch=epoch, now=now)
        self.answers: dict[Ticket, effects.Reserved | effects.ReservationRefused] = {}
        self._answered = 0
        self.box(1000.0)

    @property
    def book(self) -> KvBook:
        """The KV tokens of the device."""
        return self.device().kv

    @property
    def plan(self) -> KvPlan:
        """The request for tokens that is under way."""
        assert self.book.plan is not None
        return self.book.plan

    @staticmethod
    def state(lease: Lease) -> KvState:
        """What is known of an engine."""
        assert lease.kv is not None
        return lease.kv

    @staticmethod
    def order(lease: Lease) -> KvOrder:
        """The order to free tokens that an engine has."""
        assert lease.kv is not None
        assert lease.kv.order is not None
        return lease.kv.order

    def pressing(self, lease: Lease) -> bool:
        """Whether an engine is pressed to free tokens; a call, so that type checkers do not take it to stay so."""
        return self.order(lease).level is ReclaimLevel.HARD

    def collect(self) -> None:
        """Takes the effects of the last command; nobody hears twice about a reservation."""
        super().collect()
        for effect in self.effects[self._answered :]:
            if isinstance(effect, effects.Reserved | effects.ReservationRefused):
                assert effect.ticket not in self.answers
                self.answers[effect.ticket] = effect
        self._answered = len(self.effects)

    def engine(
        self,
        weight: int = 1,
        *,
        floor: int = 0,
        cap: int | None = None,
        block: int = 1,
        priority: Priority = NORMAL,
        ttl: float = 1000.0,
        preemptible: bool = True,
    ) -> Lease:
        """A new engine that has not said anything yet."""
        share = KvShare(share_weight=weight, min_tokens=floor, max_tokens=cap, block_tokens=block)
        return self.take(wish(size=1, rigid=True, kv=share, priority=priority, ttl=ttl, preemptible=preemptible))

    def say(
        self,
        lease: Lease,
        said: KvUsage | None = None,
        *,
        revision: int | None = None,
        acks: tuple[ReclaimAck, ...] = (),
    ) -> None:
        """A heartbeat of an engine, by default that it does what it was told last."""
        report = Report(
            lease_id=lease.lease_id,
            fence=lease.fence,
            applied_revision=lease.revision if revision is None else revision,
            outcome=ReportOutcome.APPLIED,
            kv=said,
            reclaim_acks=acks,
        )
        (result,) = self.arbiter.heartbeat(Beat(reports=(report,)), self.now).results
        self.collect()
        assert result.verdict is Verdict.RENEWED

    def silent(self, lease: Lease, said: KvUsage | None = None) -> None:
        """A heartbeat of an engine that has not applied anything new."""
        self.say(lease, said, revision=0)

    def settle(self, *leases: Lease) -> None:
        """These apply what they were told, until they are told nothing new."""
        for _ in range(2 * len(leases) + 2):
            for lease in leases:
                self.say(lease)

    def budgets(self, *leases: Lease) -> list[int]:
        """What they were told."""
        return [self.state(lease).budget for lease in leases]

    def working(self, *weights: int, resident: int = 0) -> list[Lease]:
        """Engines with work, each with its share."""
        leases = [self.engine(weight) for weight in weights]
        for lease in leases:
            self.say(lease, usage())
        self.settle(*leases)
        for lease in leases:
            self.say(lease, usage(resident))
        return leases

    def reserve(self, lease: Lease, tokens: int, *, wait: float = 0.0, request_id: str = "") -> Ticket:
        """Asks for a reservation."""
        asked = ReservationRequest(
            lease_id=lease.lease_id, fence=lease.fence, tokens=tokens, request_id=request_id, wait_s=wait
        )
        ticket = self.arbiter.reserve(asked, self.now)
        self.collect()
        return ticket

    def reserved(self, ticket: Ticket) -> Reservation:
        """The reservation of a ticket."""
        answer = self.answers[ticket]
        assert isinstance(answer, effects.Reserved), answer
        return answer.reservation

    def reservation_error(self, ticket: Ticket) -> ArbiterError:
        """Why a ticket has none."""
        answer = self.answers[ticket]
        assert isinstance(answer, effects.ReservationRefused), answer
        return answer.error

    def complete(self, reservation_id: str) -> None:
        """Returns a reservation."""
        self.arbiter.complete(reservation_id, self.now)
        self.collect()

    def abandon(self, ticket: Ticket) -> None:
        """The caller of a reservation goes away."""
        self.arbiter.abandon(ticket, self.now)
        self.collect()

    def lend(
        self,
        need: int,
        lease: Lease,
        *,
        priority: Priority | None = None,
        partial: bool = False,
        grace: float | None = None,
        request_id: str = "",
    ) -> Ticket:
        """Asks for tokens of others."""
        asked = lending(need, lease, priority=priority, partial=partial, grace=grace, request_id=request_id)
        ticket = self.arbiter.preempt(asked, self.now)
        self.collect()
        return ticket

    def came_to(self, ticket: Ticket) -> ArbiterError | None:
        """Why a request for tokens failed; ``None`` when it did not."""
        return self.closed[ticket].error

    def asked_of(self, plan: KvPlan) -> dict[LeaseId, int]:
        """Who is asked for how many tokens, in the order of asking."""
        return {each.lease.lease_id: each.planned for each in plan.donations.values()}
