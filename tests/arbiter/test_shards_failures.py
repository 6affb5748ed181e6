"""Shards that fall silent, die, come back and are replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar.arbiter.shards import GATHER_S
from arbiter_sidecar.ledger import shards as ledger
from arbiter_sidecar.ledger.shards import Moving
from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import Balanced, Cause, Infeasible, Rebalance, ShardState
from arbiter_sidecar.types import EndReason, EventKind
from tests.arbiter.desk import LINEAR, Desk, DeskMaker, wish
from tests.arbiter.split import GROUP, Pipeline, Stage, pipeline, place

THREE = (Stage("a", 8, 10.0), Stage("b", 8, 10.0), Stage("c", 8, 20.0))


def states(model: Pipeline, name: str) -> list[str]:
    """The states that a shard has come to, in order."""
    return [
        event.fields["state"]
        for event in model.desk.events(EventKind.SHARD_STATE_CHANGED)
        if event.fields["shard"] == name
    ]


def test_silent_shard_is_degraded_and_failed_with_its_lease(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.live(7.4, "b")
    assert model.record("b").health.state is ShardState.LIVE
    model.live(7.6, "b")
    assert model.record("b").health.state is ShardState.DEGRADED
    model.live(14.9, "b")
    assert model.record("b").health.misses == 2
    assert not model.desk.events(EventKind.BALANCE_SUGGESTED)
    model.live(15.0, "b")
    assert model.leases["b"].end_reason is EndReason.EXPIRED
    assert states(model, "b") == ["DEGRADED", "FAILED"]
    model.gather()
    (event,) = model.desk.events(EventKind.BALANCE_SUGGESTED)
    assert event.fields == {"group": GROUP, "plan_id": "balance-1-1", "cause": "failure", "moved": "8"}
    found = model.group.decision
    assert isinstance(found, Rebalance)
    assert [span.layers for span in found.assignment] == [16, 0, 8]
    assert found.cause is Cause.FAILURE


def test_one_heartbeat_makes_a_degraded_shard_live(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.live(14.9, "b")
    model.desk.beat(model.leases["b"])
    assert model.record("b").health == balance.Health()
    assert states(model, "b") == ["DEGRADED", "LIVE"]
    assert model.group.decision is None


def test_degraded_shard_keeps_its_layers_and_gets_no_others(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("a", 8, 100.0), Stage("b", 2, 10.0), Stage("c", 2, 10.0))
    model.live(8.0, "b")
    found = model.suggestion()
    assert [span.layers for span in found.assignment] == [1, 2, 9]


def test_failed_layers_are_taken_over_and_the_name_is_remembered_without_layers(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.desk.release(model.leases["b"])
    assert states(model, "b") == ["FAILED"]
    model.gather()
    model.follow()
    assert model.division == {"a": (0, 16), "b": (16, 16), "c": (16, 24)}
    assert model.group.plan is None
    assert not model.record("b").pending


def test_replacement_holds_what_the_book_says_and_lives_after_two_heartbeats(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.desk.release(model.leases["b"])
    model.gather()
    model.follow()
    lease = model.join(Stage("b", 8, 10.0), 1)
    record = model.record("b")
    assert (record.begin, record.end, record.pending) == (16, 16, True)
    assert record.health.state is ShardState.FAILED
    assert record.cost_us == 10.0
    model.desk.apply(lease)
    assert record.health.state is ShardState.FAILED
    model.desk.now += 7.6
    model.desk.beat(model.leases["a"], model.leases["c"])
    model.desk.at(model.desk.now)
    assert record.health.answers == 0, "a missed heartbeat in between counts against it"
    model.desk.beat(lease)
    assert record.health.state is ShardState.FAILED
    model.desk.beat(lease)
    assert states(model, "b") == ["FAILED", "LIVE"]
    model.gather()
    # It has lived again for a moment and is measured no more; the last known cost stands in for it.
    found = model.group.suggestion
    assert found is not None
    assert found.gains is not None
    assert [span.layers for span in found.assignment] == [10, 9, 5]
    assert "b" in found.gains.estimated


def test_all_failed_is_infeasible_when_leases_outlive_their_heartbeats(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("a", 8, 10.0), Stage("b", 8, 10.0))
    for lease in model.leases.values():
        lease.deadline = 1e9
    model.desk.at(30.0)
    for second in range(31, 45):
        model.desk.at(float(second))
    assert states(model, "a") == ["DEGRADED", "FAILED"]
    assert isinstance(model.group.decision, Infeasible)
    assert model.group.suggestion is None


def test_group_is_forgotten_with_its_last_living_shard(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("a", 8, 10.0), Stage("b", 8, 10.0))
    model.desk.release(model.leases["a"])
    assert ("default", GROUP) in model.desk.books.shards.groups
    model.desk.release(model.leases["b"])
    assert not model.desk.books.shards.groups
    again = model.join(Stage("a", 3, 10.0), 0)
    assert model.division == {"a": (0, 3)}
    assert again.shard is not None
    assert not again.shard.pending


def test_newer_lease_takes_the_name_over_and_the_older_one_is_told(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    older = model.leases["b"]
    told = model.desk.told(older)
    newer = model.join(Stage("b", 1, 10.0), 1)
    assert older.shard is None
    assert model.desk.told(older) == told + 1
    assert newer.shard is model.record("b")
    assert model.division["b"] == (8, 16)
    assert model.record("b").health.state is ShardState.LIVE
    assert model.evaluate().decision == Moving(missing=("b",))
    model.desk.at(model.desk.now + 5.0)
    model.desk.release(older)
    assert model.record("b").lease is newer
    assert not states(model, "b")


def test_new_name_brings_no_layers_while_a_failed_shard_holds_some(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.desk.release(model.leases["b"])
    model.join(Stage("d", 8, 10.0), 3)
    assert model.group.layers == 24
    assert model.division["d"] == (24, 24)


def test_new_name_brings_no_layers_after_a_plan(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("fast", 8, 10.0), Stage("slow", 8, 100.0))
    model.suggestion()
    model.follow()
    model.join(Stage("more", 8, 10.0), 2)
    assert model.group.layers == 16


def test_others_are_told_when_a_shard_enters_before_them(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("b", 4, 10.0), measured=False)
    later = model.leases["b"]
    model.record("b").position = 1
    model.join(Stage("a", 2, 10.0), 0)
    assert model.division == {"a": (0, 2), "b": (2, 6)}
    assert model.desk.told(later) == 1
    assert model.record("b").revision == later.revision
    assert not model.record("b").pending


def test_nobody_waits_for_a_shard_that_fails_while_layers_move(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.assign(("a", 0, 10), ("b", 10, 17), ("c", 17, 24))
    model.desk.apply(model.leases["a"], model.leases["c"])
    assert model.evaluate().decision == Moving(missing=("b",))
    model.desk.release(model.leases["b"])
    assert model.desk.events(EventKind.BALANCE_APPLIED)
    model.gather()
    # Its layers must move again, although a moment ago some did.
    assert isinstance(model.group.decision, Rebalance)
    assert model.group.suggestion is not None
    assert sum(span.layers for span in model.group.suggestion.assignment) == 24


def test_failure_while_others_move_is_evaluated_when_they_have_confirmed(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.assign(("a", 0, 10), ("b", 10, 17), ("c", 17, 24))
    model.desk.release(model.leases["b"])
    model.gather()
    assert model.group.decision is None
    model.obey()
    model.gather()
    assert isinstance(model.group.decision, Rebalance)


def test_shards_that_fail_together_are_evaluated_once(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE, Stage("d", 8, 10.0))
    model.desk.release(model.leases["a"])
    model.desk.at(model.desk.now + GATHER_S / 2)
    model.desk.release(model.leases["b"])
    assert model.desk.arbiter.next_deadline() == pytest.approx(GATHER_S)
    assert model.group.decision is None
    model.gather()
    (event,) = model.desk.events(EventKind.BALANCE_SUGGESTED)
    assert event.fields["moved"] == "16"


def test_nothing_is_evaluated_when_the_last_shard_has_gone_meanwhile(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    for lease in model.leases.values():
        model.desk.release(lease)
    model.gather()
    assert not model.desk.events(EventKind.BALANCE_SUGGESTED)


def test_announced_silence_is_no_missed_heartbeat(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("a", 8, 10.0), measured=False)
    request = wish("b", 0.01, rigid=True, pids=(7,), window=60.0, shard=place(Stage("b", 8, 10.0), 1))
    model.leases["b"] = model.desk.take(request)
    model.live(59.0, "b")
    assert not states(model, "b")


def test_pause_of_the_arbiter_is_no_missed_heartbeat(make_desk: DeskMaker) -> None:
    desk = make_desk(replace(LINEAR, pause_guard_s=1.0))
    desk.box()
    model = Pipeline(desk, (Stage("a", 8, 10.0), Stage("b", 8, 10.0)))
    desk.at(100.0)
    assert not states(model, "a")
    assert model.record("a").health == balance.Health()


def test_departed_names_are_forgotten_beyond_a_bound(make_desk: DeskMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_DEPARTED", 3)
    model = pipeline(make_desk, Stage("a", 8, 10.0), measured=False)
    for number in range(6):
        name = f"guest-{number}"
        model.desk.release(model.join(Stage(name, 0, 10.0), 1))
    assert sorted(model.group.shards) == ["a", "guest-3", "guest-4", "guest-5"]


def test_room_is_what_the_lease_leaves_unused(desk: Desk) -> None:
    desk.box(1000.0)
    model = Pipeline(desk, (), measured=False)
    lease = model.join(Stage("a", 8, 10.0), 0, bytes_per_layer=1 << 20)
    record = model.record("a")
    assert record.room is None, "nobody knows what it uses"
    desk.report(lease, used=lease.limit_bytes - (5 << 20))
    assert record.room == 13
    record.own_limit = 9
    assert record.room == 9
    desk.report(lease, used=lease.limit_bytes + 1)
    assert record.room == 8, "what it holds it can hold"
    record.bytes_per_layer = 0
    assert record.room == 9


def test_failed_shard_is_suggested_none_and_balanced_after_its_layers_moved(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.desk.release(model.leases["b"])
    model.gather()
    model.follow()
    model.desk.now += balance.INTERVAL_S
    assert isinstance(model.evaluate().decision, Balanced)
