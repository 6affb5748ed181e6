"""KV token budgets through the whole core: the worked numbers, who is told what when, and engines that do not drain."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.ledger.kv import derived_tokens
from arbiter_sidecar.requests import KvShare, ReclaimAck
from arbiter_sidecar.types import GIB, EventKind, ReclaimLevel
from tests.arbiter.desk import LINEAR, Desk, wish
from tests.arbiter.kv_stage import KvDesk, sharing, usage


@dataclass(frozen=True, slots=True)
class Kind:
    """An engine of a worked example."""

    weight: int = 1
    floor: int = 0
    cap: int | None = None
    demand: int | None = None
    active: bool = True
    silent: bool = False
    block: int = 1


def weights(*values: int) -> list[Kind]:
    """Engines with work, of these weights."""
    return [Kind(value) for value in values]


@pytest.mark.parametrize(
    ("total", "permille", "kinds", "expected"),
    [
        pytest.param(1000, 900, weights(1, 1), [500, 500], id="equal-weights"),
        pytest.param(1000, 900, weights(1, 3), [250, 750], id="one-to-three"),
        pytest.param(1000, 900, weights(1, 1, 1), [334, 333, 333], id="thirds"),
        pytest.param(8192, 900, weights(1, 2), [2731, 5461], id="one-to-two"),
        pytest.param(900, 900, [Kind(), Kind(), Kind(active=False)], [450, 450, 0], id="idle-share-goes-to-both"),
        pytest.param(1000, 900, [Kind(), Kind(active=False)], [900, 0], id="idle-share-up-to-the-cap"),
        pytest.param(1000, 1000, [Kind(), Kind(active=False)], [1000, 0], id="idle-share-without-a-cap"),
        pytest.param(1000, 900, weights(99, 1), [900, 100], id="excess-over-the-cap-is-not-lost"),
        pytest.param(10, 900, [Kind(), Kind(100, active=False)], [9, 0], id="a-heavy-idle-one-starves-nobody"),
        pytest.param(2, 900, weights(1, 1, 1), [1, 1, 0], id="fewer-tokens-than-engines"),
        pytest.param(1000, 300, weights(1, 1, 2), [300, 300, 300], id="all-at-the-cap"),
        pytest.param(1001, 900, [Kind(5), Kind(3), Kind(2, active=False)], [626, 375, 0], id="largest-remainder"),
        pytest.param(1000, 900, [Kind(floor=300), Kind(), Kind(8)], [300, 78, 622], id="a-floor"),
        pytest.param(1000, 900, [Kind(demand=100), Kind(), Kind()], [100, 450, 450], id="little-demand"),
        pytest.param(1000, 900, [Kind(cap=200), Kind(), Kind()], [200, 400, 400], id="a-cap-of-its-own"),
        pytest.param(1000, 900, [Kind(), Kind(), Kind(2, silent=True)], [250, 250, 0], id="one-is-silent-and-not-gone"),
        pytest.param(1000, 900, [Kind(active=False), Kind(3, active=False)], [250, 750], id="nobody-is-active"),
        pytest.param(1, 900, weights(1, 1), [1, 0], id="a-single-token"),
        pytest.param(62 * 16, 1000, [Kind(block=16)] * 3, [21 * 16, 21 * 16, 20 * 16], id="whole-blocks"),
        pytest.param(62 * 16, 1000, [Kind(block=16), Kind(block=1)], [31 * 16, 31 * 16], id="blocks-of-all-engines"),
        pytest.param(1000, 1000, [Kind(block=16), Kind(block=48)], [500, 500], id="blocks-too-coarse-for-the-device"),
    ],
)
def test_budgets_match_the_worked_numbers_when_everybody_has_applied(
    total: int, permille: int, kinds: list[Kind], expected: list[int]
) -> None:
    desk = KvDesk(sharing(total, permille))
    leases = [
        desk.engine(each.weight, floor=each.floor, cap=each.cap, block=each.block, ttl=20.0 if each.silent else 1000.0)
        for each in kinds
    ]
    for lease, kind in zip(leases, kinds, strict=True):
        desk.say(lease, usage(active=kind.active, demand=kind.demand))
    desk.settle(*leases)
    desk.at(15.0)
    desk.settle(*(lease for lease, kind in zip(leases, kinds, strict=True) if not kind.silent))
    assert desk.budgets(*leases) == expected


def test_floors_are_refused_when_they_do_not_fit_together() -> None:
    desk = KvDesk(sharing(100))
    desk.engine(floor=80)
    with pytest.raises(errors.ExceedsCapacity, match="80 are promised already"):
        desk.engine(floor=40)
    desk.engine(floor=20)


def test_reservation_returns_whole_when_less_was_used() -> None:
    desk = KvDesk(sharing())
    (lease,) = desk.working(1)
    reservation = desk.reserved(desk.reserve(lease, 100))
    assert desk.state(lease).reserved == 100
    desk.say(lease, usage(60))
    desk.complete(reservation.reservation_id)
    assert desk.state(lease).reserved == 0
    desk.say(lease, usage(0, active=False))
    assert not desk.state(lease).active


def test_tokens_are_derived_from_the_capacity_when_none_are_configured() -> None:
    desk = Desk(LINEAR)
    assert desk.box(64, "large").kv.total == 64 * 512 // 2 * 16
    assert desk.box(0.25, "small").kv.total == 256 * 16
    assert derived_tokens(80 * GIB) == 327_680


def test_lower_budget_is_told_at_once_and_higher_when_tokens_are_free() -> None:
    desk = KvDesk(sharing())
    first, second = desk.engine(), desk.engine()
    desk.say(first, usage(800))
    desk.settle(first)
    assert desk.budgets(first, second) == [1000, 0]
    desk.say(second, usage())
    assert desk.budgets(first, second) == [500, 0]
    assert desk.state(first).charged == 1000
    # What it keeps is not free, although it has heard of it.
    desk.say(first, usage(800))
    assert desk.budgets(first, second) == [500, 200]
    desk.silent(first, usage(600))
    assert desk.budgets(first, second) == [500, 400]
    desk.silent(first, usage(100))
    assert desk.budgets(first, second) == [500, 500]


def test_report_frees_nothing_when_the_lower_budget_has_not_been_applied() -> None:
    desk = KvDesk(sharing())
    first, second = desk.engine(), desk.engine()
    desk.say(first, usage())
    before = first.revision
    desk.say(second, usage())
    desk.say(first, usage(), revision=before)
    assert desk.budgets(first, second) == [500, 0]


def test_free_tokens_are_split_by_weight_when_they_are_not_enough_for_all() -> None:
    desk = KvDesk(sharing())
    first, light, heavy = desk.engine(), desk.engine(1), desk.engine(3)
    desk.say(first, usage(1000))
    desk.settle(first)
    for lease in (light, heavy):
        desk.say(lease, usage())
    assert desk.budgets(first, light, heavy) == [200, 0, 0]
    desk.say(first, usage(960))
    assert desk.budgets(first, light, heavy) == [200, 10, 30]


def test_budget_rises_without_tokens_of_others_when_its_own_were_not_given_back_yet() -> None:
    desk = KvDesk(sharing())
    first, second = desk.engine(), desk.engine()
    desk.say(first, usage(800))
    desk.settle(first)
    desk.say(second, usage())
    desk.release(second)
    assert desk.budgets(first) == [1000]


def test_tokens_are_shared_in_the_same_command_when_an_engine_goes() -> None:
    desk = KvDesk(sharing())
    first, second = desk.working(1, 1)
    assert desk.budgets(first, second) == [500, 500]
    desk.release(second)
    assert desk.budgets(first) == [1000]


def test_tokens_are_shared_in_the_same_command_when_an_engine_is_silent_for_too_long() -> None:
    desk = KvDesk(sharing())
    first, second = desk.engine(), desk.engine(ttl=10.0)
    for lease in (first, second):
        desk.say(lease, usage())
    desk.settle(first, second)
    desk.at(9.9)
    # Silent for long: it is told less, but what it may keep is not free before it is gone.
    assert desk.budgets(first, second) == [500, 0]
    desk.at(10.0)
    assert desk.budgets(first) == [1000]


def test_share_comes_back_when_a_silent_engine_is_heard_again() -> None:
    desk = KvDesk(sharing())
    first, second = desk.engine(), desk.engine(ttl=10.0)
    for lease in (first, second):
        desk.say(lease, usage())
    desk.settle(first, second)
    desk.at(9.0)
    assert desk.budgets(second) == [0]
    desk.beat(second)
    assert desk.budgets(first, second) == [500, 500]


def test_budgets_stay_when_demand_hardly_changes() -> None:
    desk = KvDesk(sharing())
    first, second = desk.working(1, 1)
    desk.say(first, usage(demand=100))
    desk.settle(first, second)
    assert desk.budgets(first, second) == [100, 900]
    told = desk.told(second)
    desk.say(first, usage(demand=105))
    assert desk.told(second) == told
    desk.say(first, usage(demand=106))
    assert desk.budgets(second) == [894]


def test_lease_without_kv_has_no_budget() -> None:
    desk = KvDesk(sharing())
    lease = desk.take(wish(size=1))
    desk.say(lease, usage(100))
    assert lease.kv is None
    assert not desk.book.engines


def test_change_is_an_event_with_its_numbers() -> None:
    desk = KvDesk(sharing())
    lease = desk.engine()
    desk.say(lease, usage(10, demand=300))
    event = desk.events(EventKind.KV_BUDGET_CHANGED, lease.lease_id)[-1]
    assert event.fields == {
        "tokens": "300",
        "before": "1000",
        "resident": "10",
        "demand": "300",
        "revision": str(lease.revision),
    }


# Draining -------------------------------------------------------------------------------------------------------------


def drained_late(desk: KvDesk, keeps: int = 800) -> tuple[KvDesk, float]:
    """An engine, lease-1, that keeps more than its budget of 500 from now on."""
    first, second = desk.engine(), desk.engine()
    desk.say(first, usage(keeps))
    desk.settle(first)
    desk.say(second, usage())
    desk.say(first, usage(keeps))
    return desk, desk.now


def test_engine_may_finish_what_it_has_begun_when_its_budget_falls() -> None:
    desk, start = drained_late(KvDesk(sharing()))
    first = desk.books.leases.get("lease-1")
    assert first is not None
    desk.at(start + 4.9)
    assert desk.state(first).order is None
    desk.say(first, usage(500))
    desk.at(start + 20.0)
    assert desk.state(first).order is None


def test_engine_is_ordered_to_free_and_pressed_when_it_does_not_drain() -> None:
    desk, start = drained_late(KvDesk(sharing()))
    first = desk.books.leases.get("lease-1")
    assert first is not None
    desk.at(start + 5.0)
    order = desk.order(first)
    assert (order.level, order.deadline) == (ReclaimLevel.SOFT, start + 7.0)
    assert desk.events(EventKind.RECLAIM_REQUESTED, first.lease_id)[-1].fields["kv_tokens"] == "300"
    desk.at(start + 5.5)
    assert order.level is ReclaimLevel.HARD
    assert len(desk.events(EventKind.RECLAIM_ESCALATED)) == 1
    desk.at(start + 60.0)
    # Nobody ends for tokens.
    assert first.alive
    assert len(desk.events(EventKind.RECLAIM_ESCALATED)) == 1
    revision = first.revision
    desk.say(first, usage(500))
    assert desk.state(first).order is None
    assert first.revision > revision


def test_engine_is_pressed_at_the_deadline_only_when_it_has_answered() -> None:
    desk, start = drained_late(KvDesk(sharing()))
    first = desk.books.leases.get("lease-1")
    assert first is not None
    desk.at(start + 5.0)
    order = desk.order(first)
    acks = (ReclaimAck(reclaim_id=order.reclaim_id, done=False),)
    desk.say(first, usage(700), acks=acks)
    desk.say(first, usage(700), acks=acks)
    assert len(desk.events(EventKind.RECLAIM_ACKNOWLEDGED)) == 1
    desk.at(start + 6.9)
    assert not desk.pressing(first)
    desk.at(start + 7.0)
    assert desk.pressing(first)


def test_drain_begins_anew_when_an_engine_has_been_within_its_budget_meanwhile() -> None:
    desk, start = drained_late(KvDesk(sharing()))
    first = desk.books.leases.get("lease-1")
    assert first is not None
    desk.at(start + 3.0)
    desk.say(first, usage(500))
    desk.at(start + 4.0)
    desk.say(first, usage(600))
    desk.at(start + 8.9)
    assert desk.state(first).order is None
    desk.at(start + 9.0)
    assert desk.order(first).level is ReclaimLevel.SOFT


def test_order_ends_when_the_budget_rises_above_what_is_kept() -> None:
    desk, start = drained_late(KvDesk(sharing()))
    first, second = desk.books.leases.get("lease-1"), desk.books.leases.get("lease-2")
    assert first is not None
    assert second is not None
    desk.at(start + 5.0)
    assert desk.order(first).level is ReclaimLevel.SOFT
    desk.release(second)
    assert desk.budgets(first) == [1000]
    assert desk.state(first).order is None
    desk.at(start + 60.0)
    assert not desk.events(EventKind.RECLAIM_ESCALATED)


def test_engine_that_keeps_too_much_is_ordered_when_nobody_told_it_less() -> None:
    desk = KvDesk(sharing())
    first, second = desk.working(1, 1)
    desk.say(first, usage(501))
    desk.at(5.0)
    assert desk.order(first).level is ReclaimLevel.SOFT
    desk.release(first)
    desk.at(60.0)
    assert desk.budgets(second) == [1000]


def test_engine_has_its_time_when_the_arbiter_was_away() -> None:
    desk, start = drained_late(KvDesk(sharing(config=replace(LINEAR, pause_guard_s=1.0))))
    first = desk.books.leases.get("lease-1")
    assert first is not None
    # Away for seven seconds from now on.
    desk.at(start + 7.0)
    assert desk.state(first).order is None
    for tenth in range(1, 50):
        desk.at(start + 7.0 + tenth / 10)
    assert desk.state(first).order is None
    desk.at(start + 12.0)
    assert not desk.pressing(first)
    # Away once more, for eight seconds.
    desk.at(start + 20.0)
    assert not desk.pressing(first)
    desk.at(start + 20.6)
    assert desk.pressing(first)


def test_wish_for_a_floor_waits_for_nobody_when_it_fits_another_device() -> None:
    desk = KvDesk(sharing(100))
    desk.engine(floor=80)
    desk.box(100, "other")
    lease = desk.take(wish(size=1, kv=KvShare(min_tokens=40)))
    assert lease.device_id == "other"


def test_engines_have_all_they_could_have_when_the_arbiter_only_observes() -> None:
    kv = KvDesk(sharing(config=replace(LINEAR, observe_only=True)))
    engines = free, capped, _ = kv.engine(), kv.engine(cap=300), kv.engine(cap=100)
    for lease in engines:
        kv.say(lease, usage(900))
    assert kv.budgets(*engines) == [1000, 300, 100]
    assert [kv.state(lease).advised for lease in engines] == [600, 300, 100]
    kv.say(capped, usage(0, active=False))
    assert kv.budgets(*engines) == [1000, 300, 100]
    assert [kv.state(lease).advised for lease in engines] == [900, 0, 100]
    told = [each.fields["tokens"] for each in kv.events(EventKind.KV_BUDGET_ADVISED, free.lease_id)]
    assert told[-2:] == ["600", "900"]
