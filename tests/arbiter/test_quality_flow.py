"""Quality from end to end: who arrives, leaves or applies, and what everybody is told because of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest

from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy.quality import QualityPolicy
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import DirectiveReason, EventKind, Priority, ReportOutcome
from tests.arbiter.desk import IMAGE, LINEAR, VIDEO, Desk, DeskMaker, gib, qualities, wish

LOW, NORMAL, HIGH, CRITICAL = Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL
BACKGROUND = Priority.BACKGROUND
LLM_HIGH = wish("llm", 12, priority=HIGH, wait=60, ttl=300)
LLM_NORMAL = wish("llm", 12, wait=60, ttl=300)
IMAGE_NORMAL = wish("image", 12, workload=IMAGE, wait=60, ttl=300)
TRIO = (
    wish("llm", 8, priority=CRITICAL, wait=60, ttl=300),
    wish("image", 8, workload=IMAGE, wait=60, ttl=300),
    wish("video", 8, workload=VIDEO, priority=BACKGROUND, wait=60, ttl=300),
)


def reason_of(lease: Lease) -> DirectiveReason:
    """Why the newest directive says what it says."""
    return lease.directive_reason


@dataclass(frozen=True)
class Example:
    """Requests in order of arrival on 24 GiB, and what everybody is told in the end."""

    requests: tuple[AllocationRequest, ...]
    told: tuple[float, ...]
    foreign: float = 0.0
    policy: QualityPolicy = QualityPolicy.ADAPTIVE


EXAMPLES = {
    "1": Example((wish("llm", 10, priority=HIGH),), (1.0,)),
    "2": Example((wish("llm", 10, priority=HIGH), wish("image", 8, workload=IMAGE)), (1.0, 1.0)),
    "3": Example((LLM_HIGH, IMAGE_NORMAL), (0.9, 0.8)),
    "4": Example((LLM_HIGH, replace(IMAGE_NORMAL, priority=BACKGROUND)), (0.96, 0.73)),
    "5": Example((LLM_HIGH, IMAGE_NORMAL), (0.78, 0.57), foreign=4),
    "6": Example((LLM_HIGH, IMAGE_NORMAL), (0.4, 0.3), foreign=12),
    "6, soft deficit": Example((LLM_HIGH, IMAGE_NORMAL), (0.4, 0.3), foreign=13),
    "7, balanced": Example((LLM_HIGH, IMAGE_NORMAL), (0.85, 0.85), policy=QualityPolicy.BALANCED),
    "7, llm_first": Example((LLM_NORMAL, IMAGE_NORMAL), (0.94, 0.76), policy=QualityPolicy.LLM_FIRST),
    "7, diffusion_first": Example((LLM_NORMAL, IMAGE_NORMAL), (0.76, 0.94), policy=QualityPolicy.DIFFUSION_FIRST),
    "7, fixed": Example((LLM_NORMAL, IMAGE_NORMAL), (1.0, 1.0), policy=QualityPolicy.FIXED),
    "8": Example(
        # 4 GiB for each unit of quality: 14 less 4 · 0.6 at the minimum.
        (wish("llm", 14, floor=11.6, wait=60, ttl=300), wish("image", 10, workload=IMAGE, wait=60, ttl=300)),
        (0.74, 0.74),
    ),
    "9": Example((LLM_NORMAL, replace(LLM_NORMAL, holder="other", priority=LOW)), (0.9, 0.8)),
    "10": Example((LLM_NORMAL, replace(IMAGE_NORMAL, min_quality=0.9)), (0.8, 0.9)),
    "11": Example(TRIO, (0.97, 0.91, 0.65)),
    "11, with foreign use": Example(TRIO, (0.96, 0.84, 0.37), foreign=3),
}


@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_everybody_is_told_the_solved_quality_when_all_have_arrived(
    make_desk: DeskMaker, example: Example, backwards: bool
) -> None:
    desk = make_desk(replace(LINEAR, policy=example.policy))
    device = desk.card(24)
    desk.sample({}, foreign=example.foreign)
    requests = example.requests[::-1] if backwards else example.requests
    tickets = []
    for request in requests:
        tickets.append(desk.ask(request))
        desk.apply(*device.live.values())
    leases = [desk.lease(ticket) for ticket in tickets]
    assert tuple(lease.quality for lease in leases) == (example.told[::-1] if backwards else example.told)
    desk.apply(*leases)
    assert device.granted_bytes == sum(lease.limit_bytes for lease in leases)
    assert device.granted_bytes + device.foreign_bytes <= gib(24)


def test_request_waits_when_the_minimum_of_all_is_over_the_capacity(desk: Desk) -> None:
    desk.card(24)
    desk.sample({}, foreign=16)
    first = desk.lease(desk.ask(LLM_HIGH))
    desk.apply(first)
    ticket = desk.ask(IMAGE_NORMAL)
    (waiter,) = desk.books.queue
    assert re.fullmatch(r"4294967\d\d bytes are missing even with every lease at its minimum quality", waiter.reason)
    assert not waiter.reclaiming
    # The ceiling recovers by a quarter of the gap of 4 GiB, and 0.4 are enough.
    desk.sample({}, foreign=12)
    assert desk.lease(ticket).quality == 0.3


def test_last_one_rises_when_the_other_leaves(desk: Desk) -> None:
    desk.card(24)
    stays = desk.take(wish("llm", 12, pids=(1,), ttl=300))
    leaves = desk.take(wish("other", 12, priority=LOW, pids=(2,), ttl=300))
    desk.apply(stays, leaves)
    assert qualities([stays, leaves]) == [0.9, 0.8]
    desk.release(leaves)
    seen = []
    for tenth in range(200):
        desk.now = tenth / 10
        desk.sample({1: 12 * stays.quality, 2: 0.0})
        desk.at(desk.now)
        seen.append(stays.quality)
    # 0.9 until the bytes are gone and the target has been higher for five seconds; then in steps of a second.
    assert sorted(seen) == seen
    assert list(dict.fromkeys(seen)) == [0.9, 0.95, 1.0]
    assert desk.books.stats.raises == 2


def test_counters_count_each_publication_and_no_start(desk: Desk) -> None:
    desk.card(24)
    llm = desk.take(wish("llm", 12, priority=HIGH, pids=(1,), ttl=300))
    image = desk.take(wish("image", 12, workload=IMAGE, pids=(2,), ttl=300))
    stats = desk.books.stats
    assert qualities([llm, image]) == [0.9, 0.8]
    assert (stats.reductions, stats.raises) == (1, 0)
    assert (desk.told(llm), desk.told(image)) == (1, 0)
    desk.apply(llm, image)
    desk.release(llm)
    for tenth in range(300):
        desk.now = tenth / 10
        desk.sample({1: 0.0, 2: 12 * image.quality})
        desk.at(desk.now)
    # .80 to 1.00: .85, .90, .95, 1.00.
    assert (image.quality, stats.reductions, stats.raises, desk.told(image)) == (1.0, 1, 4, 4)


def test_directive_says_why_and_grows_in_revision(desk: Desk) -> None:
    desk.box(24)
    llm = desk.take(wish("llm", 12, priority=HIGH))
    assert reason_of(llm) is DirectiveReason.GRANT
    first = llm.revision
    image = desk.take(wish("image", 12, workload=IMAGE))
    assert reason_of(llm) is DirectiveReason.PRESSURE
    assert first < image.revision < llm.revision == desk.books.revision
    (event,) = desk.events(EventKind.QUALITY_CHANGED)
    assert event.fields == {
        "quality": "0.9",
        "before": "1.0",
        "memory_limit_bytes": str(llm.limit_bytes),
        "revision": str(llm.revision),
        "reason": "PRESSURE",
    }
    desk.release(image)
    desk.live(36.0, llm)
    assert reason_of(llm) is DirectiveReason.HEADROOM


def test_rise_follows_the_worked_steps_when_headroom_lasts(desk: Desk) -> None:
    device = desk.card(20)
    lease = desk.take(wish("a", 17, pids=(1,), ttl=300, min_quality=0.1))
    desk.sample({1: 17.0}, foreign=8.5)
    assert lease.quality == 0.5
    desk.apply(lease)
    # Foreign use falls to a tenth: the ceiling is back after some samples, all at the same moment here.
    for _ in range(30):
        desk.sample({1: 8.5}, foreign=1.7)
    assert device.ceiling_bytes == pytest.approx(gib(18.3), abs=1)
    seen: dict[float, float] = {}
    for tenth in range(130):
        desk.now = tenth / 10
        desk.sample({1: 17 * lease.quality}, foreign=1.7)
        desk.at(desk.now)
        seen.setdefault(lease.quality, desk.now)
    assert seen == {0.5: 0.0, 0.6: 5.0, 0.67: 6.0, 0.72: 7.0, 0.77: 8.0, 0.82: 9.0, 0.87: 10.0, 0.9: 11.0}


def test_nothing_is_told_when_nothing_changes(desk: Desk) -> None:
    desk.box(24)
    leases = [desk.take(wish("a", 12, ttl=300)), desk.take(wish("b", 12, ttl=300))]
    desk.apply(*leases)
    before = len([each for each in desk.effects if isinstance(each, effects.DirectiveChanged)])
    for moment in range(100):
        desk.at(float(moment))
        desk.beat(*leases)
    assert len([each for each in desk.effects if isinstance(each, effects.DirectiveChanged)]) == before
    assert desk.device().next_step is None


# A fall frees nothing before it is confirmed; a rise is reserved before it is told -----------------------------------


def test_bytes_of_a_fall_are_free_when_it_is_measured(desk: Desk) -> None:
    device = desk.card(24)
    llm = desk.take(wish("llm", 12, priority=HIGH, pids=(1,), ttl=300))
    desk.sample({1: 12.0})
    desk.take(wish("image", 12, workload=IMAGE, pids=(2,), ttl=300))
    assert (llm.limit_bytes, llm.charged_bytes) == (gib(10.8), gib(12))
    desk.sample({1: 10.8, 2: 0.0})
    assert llm.charged_bytes == gib(10.8)
    assert device.accounted_bytes == gib(10.8) + gib(9.6)
    assert llm.applied_revision == 0


def test_bytes_of_a_fall_are_not_free_when_it_is_only_claimed(desk: Desk) -> None:
    device = desk.card(24)
    llm = desk.take(wish("llm", 12, priority=HIGH, pids=(1,), ttl=300))
    desk.sample({1: 12.0})
    desk.take(wish("image", 12, workload=IMAGE, pids=(2,), ttl=300))
    desk.apply(llm)
    (event,) = desk.events(EventKind.DIRECTIVE_APPLIED)
    assert event.fields["freed_bytes"] == str(gib(12) - gib(10.8))
    assert llm.charged_bytes == gib(10.8)
    # It says so, but the memory is still there.
    assert device.accounted_bytes == gib(12) + gib(9.6)
    desk.sample({1: 10.8, 2: 0.0})
    assert device.accounted_bytes == gib(10.8) + gib(9.6)


def test_bytes_of_a_fall_are_free_when_it_is_reported_and_nothing_can_be_measured(desk: Desk) -> None:
    device = desk.box(24)
    llm = desk.take(wish("llm", 12, priority=HIGH, ttl=300))
    desk.take(wish("image", 12, workload=IMAGE, ttl=300))
    assert device.accounted_bytes == gib(12) + gib(9.6)
    desk.apply(llm)
    assert device.accounted_bytes == gib(10.8) + gib(9.6)


def test_fall_is_not_confirmed_by_a_holder_that_was_small_all_the_time(desk: Desk) -> None:
    desk.card(24)
    llm = desk.take(wish("llm", 12, priority=HIGH, pids=(1,), ttl=300))
    desk.sample({1: 3.0})
    desk.take(wish("image", 12, workload=IMAGE, pids=(2,), ttl=300))
    desk.sample({1: 3.0, 2: 0.0})
    assert (llm.limit_bytes, llm.charged_bytes) == (gib(10.8), gib(12))


def test_fall_is_not_confirmed_by_part_of_it(desk: Desk) -> None:
    desk.card(24)
    llm = desk.take(wish("llm", 12, priority=HIGH, pids=(1,), ttl=300))
    desk.sample({1: 12.0})
    desk.take(wish("image", 12, workload=IMAGE, pids=(2,), ttl=300))
    desk.sample({1: 11.0, 2: 0.0})
    assert llm.charged_bytes == gib(12)


def test_fall_is_not_confirmed_by_an_older_revision(desk: Desk) -> None:
    desk.box(24)
    llm = desk.take(wish("llm", 12, priority=HIGH, ttl=300))
    first = llm.revision
    desk.take(wish("image", 12, workload=IMAGE, ttl=300))
    desk.report(llm, revision=first)
    assert (llm.applied_revision, llm.charged_bytes) == (first, gib(12))
    desk.report(llm, revision=llm.revision + 1)
    assert (llm.applied_revision, llm.charged_bytes) == (first, gib(12))
    desk.report(llm, ReportOutcome.DEFERRED)
    assert (llm.applied_revision, llm.charged_bytes) == (first, gib(12))
    desk.report(llm)
    assert (llm.applied_revision, llm.charged_bytes) == (llm.revision, gib(10.8))


def test_rise_waits_when_the_bytes_are_still_held_by_another(desk: Desk) -> None:
    device = desk.card(24)
    rises, greedy, leaves = (desk.take(wish(f"w{pid}", 8, pids=(pid,), ttl=300)) for pid in (1, 2, 3))
    desk.apply(rises, greedy, leaves)
    assert qualities([rises, greedy]) == [0.85, 0.85]
    desk.release(leaves)
    desk.live(10.0, held={1: 6.8, 2: 17.0, 3: 0.0})
    # The solver would give both their best, but the second holds far more than it was told.
    assert qualities([rises, greedy]) == [0.85, 0.85]
    assert device.starved
    assert device.next_step is None
    desk.sample({1: 6.8, 2: 6.8})
    # It was due long ago, so it does not dwell once more.
    assert qualities([rises, greedy]) == [0.9, 0.9]


def test_rise_is_charged_with_its_directive(desk: Desk) -> None:
    device = desk.box(24)
    first, second = desk.take(wish("a", 12)), desk.take(wish("b", 12))
    desk.apply(first, second)
    desk.release(second)
    while first.quality < 1.0:
        desk.live(desk.now + 0.5, first)
        assert first.charged_bytes == first.limit_bytes
    assert desk.now == 37.0
    assert device.accounted_bytes == gib(12)


def test_starved_rise_is_told_at_once_when_another_confirms(desk: Desk) -> None:
    device = desk.card(24)
    rises, slow, leaves = (desk.take(wish(f"w{pid}", 8, pids=(pid,), ttl=300)) for pid in (1, 2, 3))
    desk.apply(rises, leaves)
    desk.release(leaves)
    for tenth in range(1, 60):
        desk.now = tenth / 10
        desk.sample({1: 6.8, 2: 6.8, 3: 0.0}, available=1.3)
        desk.at(desk.now)
    # The slow one has 8 GiB still, so it may be told more for nothing; it could yet take 1.2 of the machine's 1.3.
    assert qualities([rises, slow]) == [0.85, 0.9]
    assert device.starved
    desk.apply(slow)
    assert qualities([rises, slow]) == [0.9, 0.9]


# The end of a lease lowers nobody ------------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("leaver", range(3))
def test_nobody_is_lowered_when_somebody_leaves(desk: Desk, leaver: int, applied: bool) -> None:
    desk.card(24)
    leases = [
        desk.take(wish(f"w{pid}", 8, priority=priority, pids=(pid,), ttl=300))
        for pid, priority in enumerate((BACKGROUND, NORMAL, CRITICAL))
    ]
    desk.sample(dict.fromkeys(range(3), 8.0))
    if applied:
        desk.apply(*leases)
    before = qualities(leases)
    desk.release(leases[leaver])
    for tenth in range(100):
        desk.now = tenth / 10
        desk.sample(dict.fromkeys(range(3), 8.0))
        desk.at(desk.now)
        assert all(now >= then for now, then in zip(qualities(leases), before, strict=True))


# Refusals ------------------------------------------------------------------------------------------------------------


def test_target_is_planned_anew_when_it_is_refused(desk: Desk) -> None:
    device = desk.box(24)
    llm = desk.take(wish("llm", 12, ttl=300))
    image = desk.take(wish("image", 12, ttl=300))
    assert qualities([llm, image]) == [0.85, 0.85]
    desk.report(llm, ReportOutcome.REFUSED, achievable=0.95)
    assert qualities([llm, image]) == [0.95, 0.75]
    assert llm.directive_reason is DirectiveReason.WORKER_REPORT
    (event,) = desk.events(EventKind.DIRECTIVE_REFUSED)
    assert event.fields["achievable_quality"] == "0.95"
    desk.apply(llm, image)
    assert device.granted_bytes == pytest.approx(gib(20.4), abs=2)


def test_refused_target_is_asked_again_when_the_hold_is_over(desk: Desk) -> None:
    desk.box(24)
    llm, image = desk.take(wish("llm", 12, ttl=300)), desk.take(wish("image", 12, ttl=300))
    desk.report(llm, ReportOutcome.REFUSED, achievable=0.95)
    desk.at(29.9)
    assert llm.quality == 0.95
    desk.at(30.0)
    assert llm.refused_floor is None
    assert llm.quality == 0.85
    for moment in range(31, 40):
        desk.apply(llm, image)
        desk.at(float(moment))
    assert qualities([llm, image]) == [0.85, 0.85]


def test_next_rise_is_that_of_the_first_who_may(desk: Desk) -> None:
    device = desk.card(24)
    first, second = desk.take(wish("a", 8, ttl=300)), desk.take(wish("b", 8, ttl=300))
    desk.sample({}, foreign=12.0)
    assert qualities([first, second]) == [0.52, 0.52]
    for _ in range(20):
        desk.sample({}, foreign=0.0)
    desk.now = 3.0
    desk.report(second, ReportOutcome.REFUSED, achievable=0.6)
    assert (first.published.next_step, second.published.next_step) == (5.0, 8.0)
    assert device.next_step == desk.arbiter.next_deadline() == 5.0


def test_hold_is_counted_from_the_newest_refusal(desk: Desk) -> None:
    desk.box(24)
    llm = desk.take(wish("llm", 12, ttl=300))
    desk.take(wish("image", 12, ttl=300))
    desk.report(llm, ReportOutcome.REFUSED, achievable=0.9)
    desk.at(10.0)
    desk.report(llm, ReportOutcome.REFUSED, achievable=0.95)
    desk.at(30.0)
    assert llm.refused_floor == 0.95
    desk.at(40.0)
    assert llm.refused_floor is None


def test_hold_ends_with_the_lease(desk: Desk) -> None:
    desk.card(24)
    llm = desk.take(wish("llm", 12, pids=(1,), ttl=300))
    desk.take(wish("image", 12, pids=(2,), ttl=300))
    desk.report(llm, ReportOutcome.REFUSED, achievable=0.95)
    desk.release(llm)
    desk.sample({1: 12.0, 2: 10.0})
    desk.at(30.0)
    assert llm.refused_floor == 0.95


@pytest.mark.parametrize("achievable", [None, 0.2, 0.85])
def test_refusal_changes_nothing_when_it_names_no_higher_quality(desk: Desk, achievable: float | None) -> None:
    desk.box(24)
    llm, image = desk.take(wish("llm", 12, ttl=300)), desk.take(wish("image", 12, ttl=300))
    desk.report(llm, ReportOutcome.REFUSED, achievable=achievable)
    assert qualities([llm, image]) == [0.85, 0.85]
    assert llm.charged_bytes == gib(12)


def test_refusal_of_an_older_directive_changes_nothing(desk: Desk) -> None:
    desk.box(24)
    llm = desk.take(wish("llm", 12, ttl=300))
    older = llm.revision
    image = desk.take(wish("image", 12, ttl=300))
    desk.report(llm, ReportOutcome.REFUSED, revision=older, achievable=1.0)
    assert qualities([llm, image]) == [0.85, 0.85]


def test_refusal_is_no_way_to_grow(desk: Desk) -> None:
    desk.box(24)
    first, second = desk.take(wish("a", 12, ttl=300)), desk.take(wish("b", 12, ttl=300))
    desk.apply(first)
    before = first.charged_bytes
    assert desk.report(second, ReportOutcome.REFUSED, achievable=1.0).verdict
    third = desk.ask(wish("c", 3, wait=60, ttl=300))
    assert desk.lease(third)
    assert first.quality < 0.85
    desk.report(first, ReportOutcome.REFUSED, achievable=1.0)
    assert first.charged_bytes == before
    desk.report(first, ReportOutcome.REFUSED, achievable=0.85)
    assert (first.refused_floor, first.quality, first.charged_bytes) == (0.85, 0.85, before)


def test_refuser_gets_back_no_more_than_it_asked_when_pressure_has_gone(desk: Desk) -> None:
    desk.card(24)
    lease = desk.take(wish("a", 16, ttl=300))
    desk.sample({}, foreign=10.0)
    assert lease.quality == 0.65
    desk.apply(lease)
    desk.sample({}, foreign=13.0)
    assert lease.quality == 0.46
    for _ in range(20):
        desk.sample({}, foreign=0.0)
    desk.report(lease, ReportOutcome.REFUSED, achievable=0.6)
    # The rest of the way up is dwelt upon like every rise.
    assert (lease.quality, lease.charged_bytes) == (0.6, gib(10.4))
    desk.at(4.9)
    assert lease.quality == 0.6
    desk.sample({}, foreign=0.0)
    desk.at(5.0)
    assert lease.quality == 0.7
