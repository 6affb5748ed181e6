"""Explanations: the rule that decided, with the numbers that went into it."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import Explanation, explain
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.types import DeviceId, Priority, ReportOutcome
from tests.arbiter.desk import Desk, gib, wish


def numbers(explanation: Explanation) -> dict[str, str]:
    """The findings by name; every name appears once."""
    found = dict(explanation.findings)
    assert len(found) == len(explanation.findings)
    return found


def of(desk: Desk, lease: Lease) -> Explanation:
    """Why a lease has its quality."""
    return explain.lease(desk.books, lease.lease_id, desk.now)


def test_device_is_explained_by_its_numbers(desk: Desk) -> None:
    desk.card(24)
    desk.take(wish("a", 12, pids=(1,), ttl=300))
    desk.take(wish("b", 12, pids=(2,), ttl=300))
    desk.sample({1: 12.0, 2: 3.0}, foreign=1.0)
    told = explain.device(desk.books, "gpu", desk.now)
    assert told.rule == "capacity"
    granted = desk.device("gpu").granted_bytes
    assert told.summary.startswith(f"{granted} of {gib(24)} bytes are granted to 2 leases, ")
    found = numbers(told)
    assert found["capacity_bytes"] == str(gib(24))
    assert found["foreign_bytes"] == found["elsewhere_bytes"] == str(gib(1))
    assert found["demand_bytes"] == str(gib(24))
    assert found["policy"] == "adaptive"
    assert int(found["reduction_bytes"]) == gib(4.6)
    assert (found["soft_deficit_bytes"], found["hard_deficit_bytes"]) == ("0", "0")


def test_unknown_names_are_refused(desk: Desk) -> None:
    with pytest.raises(errors.DeviceNotFound):
        explain.device(desk.books, "gpu", desk.now)
    with pytest.raises(errors.LeaseNotFound):
        explain.lease(desk.books, "lease-1", desk.now)
    with pytest.raises(errors.LeaseNotFound):
        explain.request(desk.books, "r", desk.now)


def test_best_quality_is_explained_by_room(desk: Desk) -> None:
    desk.card(24)
    lease = desk.take(wish("a", 12, pids=(1,)))
    told = of(desk, lease)
    assert (told.rule, told.summary) == ("best", "quality 1.00: everybody fits at their best")
    found = numbers(told)
    assert (found["measured_bytes"], found["refused_floor"], found["next_rise_in_s"]) == ("unknown", "", "")
    desk.sample({1: 3.0})
    assert numbers(of(desk, lease))["measured_bytes"] == str(gib(3))


def test_lowered_quality_is_explained_by_weight(desk: Desk) -> None:
    desk.box(24)
    llm = desk.take(wish("a", 12, priority=Priority.HIGH))
    desk.take(wish("b", 12))
    told = of(desk, llm)
    assert told.rule == "water_filling"
    assert told.summary == f"quality 0.90: {gib(3.6)} bytes are taken from all by weight"
    found = numbers(told)
    assert (found["weight"], found["exact_target"], found["published"]) == ("8", "0.900000", "0.90")
    assert (found["revision"], found["applied_revision"]) == (str(llm.revision), "0")


def test_lowest_quality_is_explained_by_the_minimum(desk: Desk) -> None:
    desk.card(24)
    lease = desk.take(wish("a", 20, min_quality=0.5))
    desk.sample({}, foreign=14.0)
    told = of(desk, lease)
    assert (told.rule, told.summary) == ("floor", "quality 0.50: it stands at its minimum")


def test_lease_that_must_go_is_explained_by_its_order(desk: Desk) -> None:
    desk.card(24)
    lease = desk.take(wish("a", 20, min_quality=0.5))
    desk.sample({}, foreign=20.0)
    told = of(desk, lease)
    assert (told.rule, told.summary) == ("reclaim", "it is asked to give way as a whole within 2.0 s")
    assert numbers(told)["plan_asked_by"] == "the machine"


def test_rise_to_come_is_explained_by_dwelling(desk: Desk) -> None:
    desk.card(24)
    lease = desk.take(wish("a", 20, pids=(1,)))
    desk.sample({1: 20.0}, foreign=4.0)
    for _ in range(30):
        desk.sample({1: 16.0}, foreign=0.0)
    desk.now = 1.0
    told = of(desk, lease)
    assert told.rule == "best"
    assert told.summary.endswith("it was told less and rises to 1.00 in steps once that has held long enough")
    assert numbers(told)["next_rise_in_s"] == "4.0"


def test_refused_target_is_explained_by_its_floor(desk: Desk) -> None:
    desk.box(24)
    lease = desk.take(wish("a", 12))
    desk.take(wish("b", 12))
    desk.report(lease, ReportOutcome.REFUSED, achievable=0.95)
    assert numbers(of(desk, lease))["refused_floor"] == "0.95"


def test_ended_lease_is_explained_by_what_is_left(desk: Desk) -> None:
    desk.card(24)
    desk.box(24)
    traced = desk.take(wish("a", 12, pids=(1,), device="gpu"))
    hidden = desk.take(wish("b", 12, device="box"))
    desk.release(traced)
    desk.release(hidden)
    desk.now = 0.1
    desk.sample({1: 5.0})
    desk.now = 10.0
    told = of(desk, traced)
    assert told.rule == "residue"
    assert told.summary.startswith(f"the lease has ended: RELEASED; {gib(5)} bytes were measured last and are free")
    assert numbers(told) == {"ended_s_ago": "10.0", "residue_bytes": str(gib(5)), "zero_samples": "0"}
    told = of(desk, hidden)
    assert told.rule == "lock_delay"
    assert told.summary.endswith(f"its memory cannot be traced, {gib(12)} bytes stay reserved for another 20 s")
    desk.at(30.0)
    assert of(desk, hidden) == Explanation("the lease has ended: RELEASED; its bytes are gone", "ended", ())


def test_waiting_request_is_explained_by_its_place_and_the_device(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 16, rigid=True, ttl=300))
    desk.ask(wish("b", 6, rigid=True, wait=60, request_id="b"))
    desk.ask(wish("c", 3, rigid=True, wait=60))
    desk.at(10.0)
    told = explain.request(desk.books, "b", desk.now)
    assert told.rule == "ranked_line"
    assert told.summary.startswith("it waits: 2147483648 bytes are missing")
    found = numbers(told)
    assert (found["position"], found["waited_s"], found["gives_up_in_s"]) == ("0", "10.0", "50.0")
    assert int(found["hard_deficit_bytes"]) == gib(2)
    told = explain.request(desk.books, "#3", desk.now)
    assert told.summary == "it waits: earlier requests come first"
    assert numbers(told)["position"] == "1"


def test_numbers_of_a_device_include_the_request_that_is_made_room_for(desk: Desk) -> None:
    desk.box(24)
    lease = desk.take(wish("a", 20))
    desk.ask(wish("b", 20, wait=30))
    assert int(numbers(explain.device(desk.books, "box", desk.now))["reduction_bytes"]) == gib(19.6)
    assert numbers(of(desk, lease))["exact_target"] == "0.510000"


def test_granted_request_is_explained_by_its_lease(desk: Desk) -> None:
    desk.box(24)
    other = desk.take(wish("a", 2, request_id="other"))
    lease = desk.take(wish("a", 2, request_id="r"))
    assert explain.request(desk.books, "r", desk.now) == of(desk, lease)
    assert explain.request(desk.books, "other", desk.now) == of(desk, other)


def test_refused_request_is_explained_by_its_error(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 20, rigid=True))
    desk.ask(wish("b", 6, rigid=True, request_id="r"))
    told = explain.request(desk.books, "r", desk.now)
    assert told.rule == "insufficient_memory"
    assert numbers(told)["available_bytes"] == "0"
    assert numbers(told)["holder"] == "b"


def test_asking_changes_nothing(desk: Desk) -> None:
    desk.card(24)
    lease = desk.take(wish("a", 20, pids=(1,), ttl=300))
    desk.ask(wish("b", 20, wait=30, request_id="r"))
    before = desk.picture()
    explain.device(desk.books, DeviceId("gpu"), desk.now)
    of(desk, lease)
    explain.request(desk.books, "r", desk.now)
    assert desk.picture() == before
