"""KV tokens lent by the less important to the more important: plans, confirmation, and the way back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.ledger.kv import KvPlan
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.requests import PreemptionRequest, ReclaimAck
from arbiter_sidecar.types import EventKind, Priority, ReclaimLevel
from tests.arbiter.desk import LINEAR, wish
from tests.arbiter.kv_stage import (
    BACKGROUND,
    CRITICAL,
    HIGH,
    LOW,
    NORMAL,
    KvDesk,
    lending,
    sharing,
    usage,
)


class Lenders:
    """Engines by name that keep all of their budgets, could free part of it, and have been there for a while."""

    def __init__(self, desk: KvDesk) -> None:
        self.desk = desk
        self.leases: dict[str, Lease] = {}
        self.running: dict[str, Priority] = {}
        self.could: dict[str, tuple[int | None, int]] = {}

    def add(self, name: str, running: Priority, size: int, freeable: int, *, own: Priority = NORMAL) -> Lease:
        """An engine that keeps ``size`` tokens, ``freeable`` of them for work that counts least."""
        self.desk.at(self.desk.now + 0.1)
        lease = self.leases[name] = self.desk.engine(priority=own)
        self.running[name] = running
        self.could[name] = size, freeable
        self.desk.say(lease, usage(size, demand=size, freeable=freeable, running=running))
        self.desk.settle(*self.leases.values())
        assert self.desk.budgets(lease) == [size]
        return lease

    def wait(self) -> None:
        """Everybody has been there for long enough to lend."""
        self.desk.at(self.desk.now + 2.0)

    def free(self, *names: str, keep: int | None = None) -> None:
        """These free what they were told to, or all but so much, and say so."""
        for name in names:
            lease = self.leases[name]
            (demand, freeable), running = self.could[name], self.running[name]
            left = self.desk.state(lease).budget if keep is None else keep
            self.desk.say(lease, usage(left, demand=demand, freeable=freeable, running=running))

    def asked(self, plan: KvPlan) -> str:
        """Who is asked for what, in the order of asking."""
        names = {lease.lease_id: name for name, lease in self.leases.items()}
        return " ".join(f"{names[lease_id]}{amount}" for lease_id, amount in self.desk.asked_of(plan).items())


@pytest.fixture
def kv() -> KvDesk:
    """A device of 1000 tokens."""
    return KvDesk(sharing())


@pytest.fixture
def lenders(kv: KvDesk) -> Lenders:
    """The worked donors, that can do without 20, 50, 30, 100 and 100 tokens, and one that asks for more."""
    found = Lenders(kv)
    for name, running, freeable in (
        ("A", BACKGROUND, 20),
        ("B", BACKGROUND, 50),
        ("C", LOW, 30),
        ("D", NORMAL, 100),
        ("E", HIGH, 100),
    ):
        found.add(name, running, 150, freeable)
    found.add("R", CRITICAL, 250, 0, own=CRITICAL)
    kv.say(found.leases["R"], usage(250, running=CRITICAL))
    found.wait()
    return found


@pytest.mark.parametrize(
    ("priority", "need", "partial", "expected"),
    [
        pytest.param(HIGH, 10, False, "A10", id="smallest-that-covers"),
        pytest.param(HIGH, 60, False, "B50 A10", id="largest-first-when-none-covers"),
        pytest.param(HIGH, 90, False, "B50 A20 C20", id="next-tier-gives-the-rest"),
        pytest.param(HIGH, 110, False, "B50 A20 C30 D10", id="one-tier-below-lends"),
        pytest.param(CRITICAL, 150, False, "B50 A20 C30 D50", id="four-tiers"),
        pytest.param(CRITICAL, 350, True, "B50 A20 C30 D100 E100", id="a-part-is-welcome"),
        pytest.param(NORMAL, 20, False, "A20", id="normal-from-background"),
        pytest.param(NORMAL, 100, False, "B50 A20 C30", id="normal-from-low"),
        pytest.param(LOW, 10, False, "A10", id="low-from-background"),
    ],
)
def test_plan_matches_the_worked_donors_when_tokens_are_asked(
    lenders: Lenders, priority: Priority, need: int, partial: bool, expected: str
) -> None:
    lenders.desk.lend(need, lenders.leases["R"], priority=priority, partial=partial)
    assert lenders.asked(lenders.desk.plan) == expected


@pytest.mark.parametrize(
    ("priority", "need", "available"),
    [
        pytest.param(CRITICAL, 301, 300, id="more-than-all"),
        pytest.param(HIGH, 201, 200, id="more-than-those-below-high"),
        pytest.param(NORMAL, 101, 100, id="more-than-those-below-normal"),
        pytest.param(LOW, 71, 70, id="more-than-background"),
        pytest.param(BACKGROUND, 1, 0, id="nobody-is-below"),
    ],
)
def test_request_is_refused_and_nothing_happens_when_too_little_could_be_lent(
    lenders: Lenders, priority: Priority, need: int, available: int
) -> None:
    desk = lenders.desk
    before = desk.picture()
    with pytest.raises(errors.NoDonor, match=f"{available} could be taken at most") as refused:
        desk.lend(need, lenders.leases["R"], priority=priority)
    assert refused.value.metadata()["available"] == str(available)
    assert desk.picture() == before


def test_newest_lends_when_two_are_alike(kv: KvDesk) -> None:
    lenders = Lenders(kv)
    lenders.add("A", BACKGROUND, 100, 30)
    lenders.add("B", BACKGROUND, 100, 30)
    lenders.add("R", HIGH, 100, 0, own=HIGH)
    lenders.wait()
    kv.lend(30, lenders.leases["R"])
    assert lenders.asked(kv.plan) == "B30"


def pair(
    kv: KvDesk, *, donor: Priority = LOW, asker: Priority = NORMAL, freeable: int = 500
) -> tuple[Lenders, Lease, Lease]:
    """A donor D that keeps all of its 500 tokens, and one that keeps its own 500 and asks for more."""
    lenders = Lenders(kv)
    low, high = kv.engine(priority=donor), kv.engine(priority=asker)
    lenders.leases = {"D": low, "R": high}
    lenders.running = {"D": donor, "R": asker}
    lenders.could = {"D": (None, freeable), "R": (None, 0)}
    for _ in range(2):
        kv.say(low, usage(500, freeable=freeable, running=donor))
        kv.say(high, usage(500, running=asker))
        kv.settle(low, high)
    assert kv.budgets(low, high) == [500, 500]
    lenders.wait()
    return lenders, low, high


def test_normal_borrows_from_low_when_nobody_is_lower(kv: KvDesk) -> None:
    lenders, low, normal = pair(kv)
    ticket = kv.lend(200, normal)
    # The donor hears at once, the borrower has nothing before the donor has freed it.
    assert kv.budgets(low, normal) == [300, 500]
    assert kv.order(low).level is ReclaimLevel.SOFT
    kv.silent(low, usage(300, running=LOW))
    assert kv.budgets(normal) == [500]
    kv.say(low, usage(430, running=LOW))
    assert kv.budgets(low, normal) == [300, 570]
    assert ticket not in kv.closed
    kv.say(low, usage(300, running=LOW))
    assert kv.came_to(ticket) is None
    assert kv.budgets(low, normal) == [300, 700]
    assert (kv.book.lent(low), kv.book.borrowed(normal)) == (200, 200)
    assert kv.books.stats.preemptions == 1
    assert lenders.asked is not None


def test_loan_returns_when_the_borrower_needs_it_no_more(kv: KvDesk) -> None:
    _, low, normal = pair(kv)
    kv.lend(200, normal)
    kv.say(low, usage(300, running=LOW))
    kv.say(normal, usage(0, active=False))
    assert not kv.book.loans
    kv.settle(low, normal)
    kv.say(normal, usage(0))
    kv.settle(low, normal)
    kv.say(low, usage(0))
    kv.settle(low, normal)
    assert kv.budgets(low, normal) == [500, 500]


@pytest.mark.parametrize("who", ["borrower", "donor"])
def test_loan_is_over_when_one_of_them_goes(kv: KvDesk, who: str) -> None:
    _, low, normal = pair(kv)
    kv.lend(200, normal)
    kv.say(low, usage(300, running=LOW))
    gone, stays = (normal, low) if who == "borrower" else (low, normal)
    kv.release(gone)
    assert not kv.book.loans
    assert kv.budgets(stays) == [1000]


def test_loan_is_over_when_the_borrower_is_silent(kv: KvDesk) -> None:
    low, normal = kv.engine(priority=LOW), kv.engine(ttl=10.0)
    for lease in (low, normal):
        kv.say(lease, usage())
    kv.settle(low, normal)
    kv.at(2.0)
    kv.lend(200, normal)
    kv.say(low)
    assert kv.budgets(low, normal) == [300, 700]
    kv.say(normal)
    kv.at(11.0)
    assert not kv.book.loans
    kv.beat(normal)
    kv.settle(low, normal)
    assert kv.budgets(low, normal) == [500, 500]


def test_borrower_that_is_silent_while_it_asks_gets_nothing_before_it_is_heard(kv: KvDesk) -> None:
    low, normal = kv.engine(priority=LOW), kv.engine(ttl=10.0)
    for lease in (low, normal):
        kv.say(lease, usage())
    kv.settle(low, normal)
    kv.at(4.0)
    ticket = kv.lend(200, normal, grace=60.0)
    kv.at(9.0)
    # Its tokens are nobody's meanwhile, and the donor frees what it was asked for all the same.
    assert kv.budgets(low, normal) == [300, 0]
    kv.say(low)
    assert kv.came_to(ticket) is None
    assert kv.budgets(normal) == [0]


def test_donor_lends_no_more_than_leaves_it_its_floor(kv: KvDesk) -> None:
    low, normal = kv.engine(priority=LOW, floor=400), kv.engine()
    for lease in (low, normal):
        kv.say(lease, usage())
    kv.settle(low, normal)
    kv.at(2.0)
    with pytest.raises(errors.NoDonor, match="100 could be taken"):
        kv.lend(101, normal)
    kv.lend(100, normal)
    kv.say(low)
    assert kv.budgets(low, normal) == [400, 600]
    # A third one makes its own share smaller: the loan shrinks, the floor stays.
    third = kv.engine()
    kv.say(third, usage())
    for lease in (low, normal):
        kv.say(lease)
    kv.settle(low, normal, third)
    assert kv.budgets(low) == [400]
    assert sum(kv.budgets(low, normal, third)) == 1000


def test_unused_tokens_are_lent_without_an_order(kv: KvDesk) -> None:
    low, normal = kv.working(1, 1)
    kv.say(low, usage(100, running=LOW))
    kv.at(2.0)
    ticket = kv.lend(400, normal)
    assert kv.state(low).order is None
    kv.say(low, usage(100, running=LOW))
    assert kv.came_to(ticket) is None
    assert kv.budgets(low, normal) == [100, 900]


def test_own_priority_decides_when_nothing_runs(kv: KvDesk) -> None:
    first, second = kv.working(1, 1)
    kv.say(first, usage(0, running=BACKGROUND))
    kv.at(2.0)
    with pytest.raises(errors.NoDonor, match="priority_gap"):
        kv.lend(100, second)
    kv.say(first, usage(1, running=BACKGROUND))
    kv.lend(100, second)


def test_engine_is_not_asked_before_it_has_been_there_for_a_second(kv: KvDesk) -> None:
    low, normal = kv.engine(priority=LOW), kv.engine()
    with pytest.raises(errors.NoDonor, match="held_briefly"):
        kv.lend(100, normal)
    kv.at(1.0)
    kv.lend(100, normal)
    assert kv.budgets(low) == [400]


def test_donor_keeps_the_rest_when_it_has_freed_a_part_in_time(kv: KvDesk) -> None:
    _, low, normal = pair(kv)
    ticket = kv.lend(200, normal, partial=True)
    kv.say(low, usage(450, running=LOW))
    kv.at(kv.now + 2.0)
    assert kv.came_to(ticket) is None
    plan = kv.closed[ticket].plan
    assert isinstance(plan, KvPlan)
    assert plan.confirmed == 50
    assert kv.budgets(low, normal) == [450, 550]
    assert kv.state(low).order is None


def test_everything_goes_back_when_a_part_is_not_welcome(kv: KvDesk) -> None:
    _, low, normal = pair(kv)
    ticket = kv.lend(200, normal)
    kv.say(low, usage(450, running=LOW))
    assert kv.budgets(normal) == [550]
    kv.at(kv.now + 2.0)
    error = kv.came_to(ticket)
    assert isinstance(error, errors.NoDonor)
    assert error.metadata() == {"confirmed": "50", "needed": "200"}
    assert not kv.book.loans
    kv.settle(normal)
    kv.say(normal, usage(500))
    assert kv.budgets(low, normal) == [500, 500]
    # The donor is left in peace for a moment.
    chosen = kv.arbiter.dry_preempt(lending(10, normal), kv.now)
    assert [reason.value for reason in chosen.reasons.values()] == ["cooling_down", "own_lease"]
    kv.at(kv.now + 2.0)
    assert kv.arbiter.dry_preempt(lending(10, normal), kv.now).donations


def test_shortfall_is_asked_of_others_once(lenders: Lenders) -> None:
    kv, asks = lenders.desk, lenders.leases["R"]
    ticket = kv.lend(60, asks, priority=HIGH)
    assert lenders.asked(kv.plan) == "B50 A10"
    lenders.free("A")
    lenders.free("B", keep=130)
    assert kv.plan.confirmed == 30
    kv.at(kv.now + 2.0)
    # What B did not free is asked of those who have not been asked.
    assert lenders.asked(kv.plan) == "B50 A10 C30"
    lenders.free("C")
    assert kv.came_to(ticket) is None
    assert kv.budgets(*lenders.leases.values()) == [140, 130, 120, 150, 150, 310]


def test_request_fails_when_the_second_round_falls_short_too(lenders: Lenders) -> None:
    kv = lenders.desk
    ticket = kv.lend(20, lenders.leases["R"], priority=HIGH)
    kv.at(kv.now + 2.0)
    assert lenders.asked(kv.plan) == "A20 B20"
    kv.at(kv.now + 2.0)
    assert isinstance(kv.came_to(ticket), errors.NoDonor)
    assert kv.budgets(*lenders.leases.values()) == [150, 150, 150, 150, 150, 250]


def test_part_is_answered_when_nobody_else_could_lend(lenders: Lenders) -> None:
    kv = lenders.desk
    ticket = kv.lend(100, lenders.leases["R"], priority=LOW, partial=True)
    assert lenders.asked(kv.plan) == "B50 A20"
    lenders.free("A", "B")
    assert kv.came_to(ticket) is None
    assert kv.budgets(lenders.leases["R"]) == [320]


def test_plan_goes_on_with_others_when_a_donor_dies(lenders: Lenders) -> None:
    kv = lenders.desk
    ticket = kv.lend(20, lenders.leases["R"], priority=HIGH)
    kv.release(lenders.leases["A"])
    # B is asked in place of A, whose tokens are everybody's now.
    assert lenders.asked(kv.plan) == "A20 B20"
    assert kv.budgets(lenders.leases["R"]) == [400]
    lenders.free("B")
    assert kv.came_to(ticket) is None
    assert kv.budgets(lenders.leases["R"]) == [420]


@pytest.mark.parametrize("how", ["caller", "lease"])
def test_donors_are_let_off_when_the_one_that_asks_goes(kv: KvDesk, how: str) -> None:
    _, low, normal = pair(kv)
    ticket = kv.lend(200, normal)
    if how == "caller":
        kv.withdraw(ticket)
        assert ticket not in kv.closed
        assert kv.budgets(low, normal) == [500, 500]
    else:
        kv.release(normal)
        assert isinstance(kv.came_to(ticket), errors.LeaseNotFound)
        assert kv.budgets(low) == [1000]
    assert kv.book.plan is None
    assert not kv.book.loans
    assert kv.state(low).order is None


def test_engine_lends_twice_in_ten_seconds_and_no_more(kv: KvDesk) -> None:
    lenders, low, normal = pair(kv)
    start = kv.now
    for _ in range(2):
        ticket = kv.lend(50, normal)
        lenders.free("D")
        assert kv.came_to(ticket) is None
        kv.at(kv.now + 2.0)
    assert kv.budgets(low) == [400]
    with pytest.raises(errors.NoDonor, match="gave_often"):
        kv.lend(50, normal)
    kv.at(start + 10.0)
    kv.lend(50, normal)
    assert kv.budgets(low) == [350]


def test_memory_and_tokens_are_taken_at_the_same_time_when_both_are_asked(kv: KvDesk) -> None:
    _, low, normal = pair(kv)
    holder = kv.take(wish("holder", 900, floor=100, priority=BACKGROUND, ttl=1000.0))
    kv.apply(holder)
    kv.at(kv.now + 2.0)
    memory = kv.preempt(10, normal, request_id="memory")
    tokens = kv.lend(100, normal, request_id="tokens")
    assert kv.device().plan is not None
    assert kv.book.plan is not None
    # A second request for tokens waits for its turn, whatever becomes of the one for memory.
    second = kv.lend(50, normal, request_id="more")
    kv.apply(holder)
    assert kv.closed[memory].error is None
    assert not {tokens, second} & set(kv.closed)
    kv.say(low, usage(400, freeable=400, running=LOW))
    assert kv.came_to(tokens) is None
    # The donor has just lent, and nobody else is there.
    assert isinstance(kv.came_to(second), errors.NoDonor)


def test_request_for_tokens_is_answered_alike_when_it_is_repeated(kv: KvDesk) -> None:
    _, low, normal = pair(kv)
    tickets = [kv.lend(100, normal, request_id="r"), kv.lend(100, normal, request_id="r")]
    with pytest.raises(errors.IdempotencyMismatch):
        kv.lend(101, normal, request_id="r")
    kv.say(low, usage(400, running=LOW))
    tickets.append(kv.lend(100, normal, request_id="r"))
    assert len({id(kv.closed[ticket].plan) for ticket in tickets}) == 1
    assert kv.budgets(low, normal) == [400, 600]


def test_callers_that_wait_go_one_by_one(kv: KvDesk) -> None:
    _, low, normal = pair(kv)
    first, second = kv.lend(100, normal), kv.lend(100, normal)
    kv.withdraw(first)
    assert kv.book.plan is not None
    kv.say(low, usage(400, running=LOW))
    assert kv.came_to(second) is None
    assert first not in kv.closed


def test_freed_tokens_are_the_borrowers_when_others_lack_some_too(kv: KvDesk) -> None:
    slow = kv.engine()
    kv.say(slow, usage(600))
    kv.settle(slow)
    donor, asks, other = kv.engine(priority=LOW), kv.engine(), kv.engine()
    for lease in (donor, asks, other):
        kv.say(lease, usage())
    kv.say(slow, usage(600))
    kv.settle(donor, asks, other)
    # Everybody's share is 250, and 600 of the tokens are not free yet.
    assert kv.budgets(slow, donor, asks, other) == [250, 134, 133, 133]
    kv.at(2.0)
    ticket = kv.lend(100, asks)
    assert kv.budgets(donor) == [34]
    kv.say(donor)
    assert kv.came_to(ticket) is None
    assert kv.budgets(slow, donor, asks, other) == [250, 34, 233, 133]
    kv.say(slow, usage(250))
    assert kv.budgets(slow, donor, asks, other) == [250, 150, 350, 250]


def test_silent_donor_is_pressed_and_its_answer_is_noted(kv: KvDesk) -> None:
    _, low, normal = pair(kv)
    start = kv.now
    kv.lend(200, normal, grace=4.0)
    order = kv.order(low)
    assert (order.press_at, order.deadline) == (start + 1.0, start + 4.0)
    kv.at(start + 1.0)
    assert order.level is ReclaimLevel.HARD
    kv.say(low, usage(500), acks=(ReclaimAck(reclaim_id=order.reclaim_id, done=False),))
    assert order.acknowledged
    kv.at(start + 4.0)
    assert kv.book.plan is None
    assert kv.state(low).order is None
    assert low.alive


def test_deadlines_move_when_the_arbiter_was_away() -> None:
    kv = KvDesk(sharing(config=replace(LINEAR, pause_guard_s=1.5)))
    low, normal = kv.engine(priority=LOW), kv.engine()
    for lease in (low, normal):
        kv.say(lease, usage(500, freeable=500, running=lease.request.priority))
    kv.settle(low, normal)
    for lease in (low, normal):
        kv.say(lease, usage(500, freeable=500, running=lease.request.priority))
    kv.at(1.0)
    ticket = kv.lend(200, normal)
    kv.at(60.0)
    assert ticket not in kv.closed
    kv.at(61.0)
    assert ticket not in kv.closed
    kv.at(62.0)
    assert isinstance(kv.came_to(ticket), errors.NoDonor)


def test_nothing_is_lent_when_the_arbiter_only_observes() -> None:
    kv = KvDesk(sharing(config=replace(LINEAR, observe_only=True)))
    low, normal = kv.engine(priority=LOW), kv.engine()
    kv.at(2.0)
    with pytest.raises(errors.ObserveOnly):
        kv.lend(100, normal)
    (donation,) = kv.arbiter.dry_preempt(lending(100, normal), kv.now).donations
    assert (donation.lease_id, donation.amount) == (low.lease_id, 100)


def test_tokens_cannot_be_asked_when_there_is_no_engine_to_lend_them_to(kv: KvDesk) -> None:
    lease = kv.take(wish(size=1))
    for asked in (lending(1, lease), PreemptionRequest(need_tokens=1, device_id="box")):
        with pytest.raises(errors.InvalidRequest):
            kv.arbiter.preempt(asked, kv.now)


def test_need_is_rounded_up_to_whole_blocks_of_all(kv: KvDesk) -> None:
    low, normal = kv.engine(priority=LOW, block=10), kv.engine(block=10)
    kv.at(2.0)
    kv.lend(11, normal)
    assert kv.budgets(low) == [480]


def test_events_tell_the_whole_story(kv: KvDesk) -> None:
    _, low, normal = pair(kv)
    ticket = kv.lend(200, normal)
    kv.say(low, usage(300, running=LOW))
    plan = kv.closed[ticket].plan
    assert isinstance(plan, KvPlan)
    (planned,), (settled,) = kv.events(EventKind.PREEMPTION_PLANNED), kv.events(EventKind.PREEMPTION_SETTLED)
    assert planned.fields == {
        "plan_id": plan.plan_id,
        "need_tokens": "200",
        "priority": "NORMAL",
        "donors": low.lease_id,
    }
    assert settled.fields == {
        "plan_id": plan.plan_id,
        "need_tokens": "200",
        "confirmed_tokens": "200",
        "outcome": "enough",
    }
    assert any(isinstance(each, effects.PlanClosed) for each in kv.effects)


def test_loan_is_over_at_once_when_the_one_that_asked_has_no_work(kv: KvDesk) -> None:
    busy, idle = kv.engine(priority=LOW), kv.engine()
    kv.say(busy, usage(0, running=LOW))
    kv.say(idle, usage(0, active=False))
    kv.settle(busy, idle)
    kv.at(2.0)
    ticket = kv.lend(200, idle)
    assert kv.budgets(busy, idle) == [800, 0]
    kv.say(busy)
    assert kv.came_to(ticket) is None
    assert not kv.book.loans
    kv.settle(busy, idle)
    assert kv.budgets(busy, idle) == [1000, 0]
