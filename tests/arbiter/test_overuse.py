"""Whoever uses clearly more than it leased is told less, then asked to give the excess back, then revoked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar.arbiter import explain
from arbiter_sidecar.arbiter.books import ArbiterConfig, OveruseConfig, PreemptionConfig
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.types import MIB, DirectiveReason, EndReason, EventKind, LeaseState, Priority
from tests.arbiter.desk import LINEAR, Desk, DeskMaker, gib, state_of, taking, wish

STRICT = replace(LINEAR, overuse=OveruseConfig())


@pytest.fixture
def strict(make_desk: DeskMaker) -> Desk:
    """A desk with the default rules, of which only what is measured is of interest here."""
    return make_desk(STRICT)


def greedy(desk: Desk, size: float = 8.0, *, floor: float = 4.0) -> Lease:
    """A lease on a card with room, whose one process is measured at its limit."""
    desk.card(24)
    lease = desk.take(wish("greedy", size, floor=floor, pids=(1,), ttl=300))
    desk.apply(lease)
    desk.sample({1: size})
    return lease


def found(desk: Desk, lease: Lease) -> bool:
    """Whether it was found to use too much."""
    return len(desk.events(EventKind.OVERUSE_FOUND, lease.lease_id)) == 1


def test_little_more_is_nobodys_fault(strict: Desk) -> None:
    lease = greedy(strict)
    strict.live(20.0, lease, held={1: 8.5})
    assert not found(strict, lease)
    assert lease.quality == 1.0
    assert strict.device("gpu").accounted_bytes == gib(8.5)


def test_it_is_told_less_by_what_it_uses_more(strict: Desk) -> None:
    lease = greedy(strict)
    strict.live(2.0, lease, held={1: 9.0})
    assert not found(strict, lease)
    strict.live(2.2, lease, held={1: 9.0})
    assert found(strict, lease)
    # Nine instead of eight: seven is what it is told, an eighth of its quality range above the floor at 4.
    assert lease.limit_bytes <= gib(7.0)
    assert lease.directive_reason is DirectiveReason.OVERUSE
    assert lease.reclaim is None
    said = explain.lease(strict.books, lease.lease_id, strict.now)
    assert said.rule == "overuse"
    assert "no more than 0.8" in said.summary


def test_moment_above_does_not_count(strict: Desk) -> None:
    lease = greedy(strict)
    for second in range(10):
        strict.live(second + 0.9, lease, held={1: 12.0})
        strict.live(second + 1.0, lease, held={1: 8.0})
    assert not found(strict, lease)


def test_it_is_asked_to_give_back_and_then_revoked(strict: Desk) -> None:
    lease = greedy(strict)
    strict.live(12.0, lease, held={1: 12.0})
    assert state_of(lease) is LeaseState.ACTIVE
    strict.live(12.3, lease, held={1: 12.0})
    assert lease.reclaim is not None
    assert lease.reclaim.planned_bytes == gib(12) - lease.charged_bytes
    assert lease.directive_reason is DirectiveReason.OVERUSE
    assert state_of(lease) is LeaseState.RECLAIMING
    assert explain.lease(strict.books, lease.lease_id, strict.now).rule == "overuse"
    strict.ack(lease, done=False)
    strict.live(14.0, lease, held={1: 12.0})
    assert lease.alive
    strict.live(14.3, lease, held={1: 12.0})
    assert lease.end_reason is EndReason.REVOKED
    assert strict.device("gpu").residue_bytes == gib(12)
    (account,) = strict.arbiter.accounts(strict.now)
    assert (account.overuses, account.reclaims, account.floor_breaches) == (1, 1, 0)


def test_it_is_left_alone_and_rises_again_when_it_gives_back(strict: Desk) -> None:
    lease = greedy(strict)
    strict.live(12.3, lease, held={1: 12.0})
    assert lease.reclaim is not None
    told = strict.told(lease)
    strict.live(13.0, lease, held={1: 4.0})
    assert lease.reclaim is None
    assert strict.told(lease) == told + 1
    strict.apply(lease)
    strict.live(40.0, lease, held={1: 4.0})
    assert lease.quality == 1.0
    assert len(strict.events(EventKind.OVERUSE_ENDED, lease.lease_id)) == 1
    assert lease.alive


def test_it_stays_low_as_long_as_it_uses_more_when_nobody_is_revoked(make_desk: DeskMaker) -> None:
    desk = make_desk(replace(LINEAR, overuse=OveruseConfig(revoke=False)))
    lease = greedy(desk)
    desk.live(60.0, lease, held={1: 12.0})
    assert lease.alive
    assert lease.quality == lease.elastic.min_quality


def test_rigid_lease_cannot_be_told_less_but_is_asked(strict: Desk) -> None:
    strict.card(24)
    lease = strict.take(wish("rigid", 8, rigid=True, pids=(1,), ttl=300))
    strict.apply(lease)
    told = strict.told(lease)
    strict.live(5.0, lease, held={1: 12.0})
    assert found(strict, lease)
    assert strict.told(lease) == told
    strict.live(13.0, lease, held={1: 12.0})
    assert lease.reclaim is not None


def test_nobody_is_revoked_on_old_figures(make_desk: DeskMaker) -> None:
    strict = make_desk(replace(STRICT, preemption=PreemptionConfig(grace_s=3.0)))
    lease = greedy(strict)
    strict.live(12.3, lease, held={1: 12.0})
    assert lease.reclaim is not None
    # The order runs out when the last sample is more than two seconds old.
    strict.live(20.0, lease)
    assert lease.alive
    strict.live(30.0, lease, held={1: 12.0})
    assert lease.end_reason is EndReason.REVOKED


def test_errand_of_one_that_has_behaved_or_gone_since_does_nothing(strict: Desk) -> None:
    lease = greedy(strict)
    strict.live(3.0, lease, held={1: 12.0})
    strict.live(4.0, lease, held={1: 6.0})
    strict.live(8.0, lease, held={1: 12.0})
    assert len(strict.events(EventKind.OVERUSE_FOUND, lease.lease_id)) == 2
    # The errand of the first time comes now; the second has all its patience.
    strict.live(13.0, lease, held={1: 12.0})
    assert lease.reclaim is None
    strict.release(lease)
    strict.live(20.0, held={1: 12.0})
    assert lease.end_reason is EndReason.RELEASED


def test_preemption_comes_first_and_overuse_goes_on_after_it(strict: Desk) -> None:
    lease = greedy(strict)
    other = strict.take(wish("other", 2, rigid=True, priority=Priority.CRITICAL, pids=(2,), ttl=300))
    strict.apply(other)
    strict.live(1.0, lease, other, held={1: 8.0, 2: 2.0})
    strict.preempt(0.5, other, grace=20.0)
    strict.live(4.0, lease, other, held={1: 12.0, 2: 2.0})
    assert found(strict, lease)
    assert lease.reclaim is not None
    asked = lease.reclaim
    strict.live(15.0, lease, other, held={1: 12.0, 2: 2.0})
    assert lease.reclaim is asked
    assert lease.overuse is not None
    assert lease.overuse.order is None


def test_one_that_is_asked_for_its_excess_is_not_relied_on_by_others(strict: Desk) -> None:
    lease = greedy(strict)
    other = strict.take(wish("other", 2, rigid=True, priority=Priority.CRITICAL, pids=(2,), ttl=300))
    strict.apply(other)
    strict.live(12.3, lease, other, held={1: 12.0, 2: 2.0})
    dry = strict.arbiter.dry_preempt(taking(0.5, other), strict.now)
    assert [reason.value for reason in dry.reasons.values()] == ["unhealthy", "own_lease"]


def test_pause_of_the_arbiter_moves_the_next_step(make_desk: DeskMaker) -> None:
    desk = make_desk(ArbiterConfig(overuse=OveruseConfig(), pause_guard_s=0.75))
    lease = greedy(desk)
    desk.live(12.0, lease, held={1: 12.0})
    desk.now += 5.0
    desk.sample({1: 12.0})
    desk.live(17.0, lease, held={1: 12.0})
    assert lease.reclaim is None
    desk.live(17.4, lease, held={1: 12.0})
    assert lease.reclaim is not None
    desk.now += 5.0
    desk.sample({1: 12.0})
    desk.live(desk.now + 1.5, lease, held={1: 12.0})
    assert lease.alive


def test_slack_is_what_is_documented() -> None:
    assert OveruseConfig().slack_bytes == 512 * MIB
