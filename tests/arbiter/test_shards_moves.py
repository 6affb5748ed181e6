"""Assignments by hand, plans that are stale, and whatever cannot be done: nothing changes then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import explain
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.requests import AssignmentRequest
from arbiter_sidecar.types import EventKind
from tests.arbiter.desk import LINEAR, Desk, DeskMaker, wish
from tests.arbiter.split import GROUP, Pipeline, Stage, pipeline

Ranges = tuple[tuple[str, int, int], ...]
THREE = (Stage("a", 8, 10.0), Stage("b", 8, 10.0, 10), Stage("c", 8, 10.0))


def unchanged(model: Pipeline, refused: Callable[[], object], error: type[errors.ArbiterError], words: str) -> None:
    """The call fails with these words, and leaves no trace."""
    before = model.desk.picture()
    with pytest.raises(error, match=words):
        refused()
    assert model.desk.picture() == before


@pytest.mark.parametrize(
    ("ranges", "error", "words"),
    [
        ((("a", 0, 8), ("b", 8, 16)), errors.InvalidAssignment, "shard 'c' is not named"),
        ((("a", 0, 8), ("b", 9, 16), ("c", 16, 24)), errors.InvalidAssignment, "layers 8 to 9 are given to nobody"),
        ((("a", 0, 8), ("b", 7, 16), ("c", 16, 24)), errors.InvalidAssignment, "'b' begins at layer 7.*given twice"),
        ((("a", 1, 8), ("b", 8, 16), ("c", 16, 24)), errors.InvalidAssignment, "layers 0 to 1 are given to nobody"),
        (
            (("a", 0, 8), ("b", 8, 16), ("c", 16, 23)),
            errors.InvalidAssignment,
            "23 layers are assigned, the model has 24",
        ),
        ((("a", 0, 8), ("b", 8, 16), ("c", 16, 25)), errors.InvalidAssignment, "25 layers are assigned"),
        ((("b", 0, 8), ("a", 8, 16), ("c", 16, 24)), errors.InvalidAssignment, "in pipeline order"),
        (
            (("a", 0, 4), ("b", 4, 15), ("c", 15, 24)),
            errors.InvalidAssignment,
            "'b' has room for 10 layers, not for 11",
        ),
        ((("a", 0, 0), ("b", 0, 0), ("c", 0, 0)), errors.InvalidAssignment, "0 layers are assigned"),
        ((("a", 0, 8), ("b", 8, 16), ("x", 16, 24)), errors.ShardNotFound, "no shard 'x'"),
        ((), errors.InvalidRequest, "required without a plan_id"),
    ],
)
def test_assignment_is_refused_when_it_is_none(
    make_desk: DeskMaker, ranges: Ranges, error: type[errors.ArbiterError], words: str
) -> None:
    model = pipeline(make_desk, *THREE)
    unchanged(model, lambda: model.assign(*ranges), error, words)


def test_assignment_by_hand_may_empty_a_shard(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.assign(("a", 0, 16), ("b", 0, 0), ("c", 16, 24))
    assert model.division == {"a": (0, 16), "b": (16, 16), "c": (16, 24)}
    (event,) = model.desk.events(EventKind.BALANCE_BEGUN)
    assert event.fields == {"group": GROUP, "plan_id": "balance-1-1", "moved": "8", "layers": "24"}
    model.obey()
    model.desk.report(model.leases["b"], latencies=(5.0,))
    assert model.record("b").fresh_samples(model.desk.now) == 0
    model.measure()
    model.group.evaluated_at = None
    assert sum(span.layers for span in model.suggestion().assignment) == 24


def test_failed_shard_can_take_no_layers_and_need_not_be_named(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.desk.release(model.leases["c"])
    given = (("a", 0, 8), ("b", 8, 16), ("c", 16, 24))
    unchanged(model, lambda: model.assign(*given), errors.InvalidAssignment, "'c' has failed")
    model.assign(("a", 0, 14), ("b", 14, 24))
    assert model.division["c"] == (24, 24)


def test_degraded_shard_can_take_no_further_layers(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.live(8.0, "a")
    given = (("a", 0, 9), ("b", 9, 16), ("c", 16, 24))
    unchanged(model, lambda: model.assign(*given), errors.InvalidAssignment, "'a' has missed a heartbeat")
    model.assign(("a", 0, 7), ("b", 7, 16), ("c", 16, 24))


def test_shard_keeps_what_it_has_when_its_limit_has_fallen_below(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.record("b").own_limit = 5
    model.assign(("a", 0, 8), ("b", 8, 16), ("c", 16, 24))
    assert model.division["b"] == (8, 16)


def test_plan_is_applied_once_when_it_is_sent_again(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("fast", 8, 10.0), Stage("slow", 8, 100.0))
    model.suggestion()
    assert model.group.suggestion is not None
    plan_id = model.group.suggestion.plan_id
    model.assign(plan_id=plan_id)
    revision = model.desk.books.revision
    model.assign(plan_id=plan_id)
    model.assign(("fast", 0, 15), ("slow", 15, 16), plan_id=plan_id)
    assert model.desk.books.revision == revision
    other = (("fast", 0, 14), ("slow", 14, 16))
    unchanged(model, lambda: model.assign(*other, plan_id=plan_id), errors.StalePlan, "which is none")
    stranger = (("fast", 0, 15), ("who", 15, 16))
    unchanged(model, lambda: model.assign(*stranger, plan_id=plan_id), errors.StalePlan, "which is none")


def test_lease_of_a_shard_is_explained_with_its_layers(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    older = model.leases["b"]
    model.assign(("a", 0, 16), ("b", 0, 0), ("c", 16, 24))
    model.join(THREE[1], 1)

    def findings(lease: Lease) -> dict[str, str]:
        return dict(explain.lease(model.desk.books, lease.lease_id, model.desk.now).findings)

    said = findings(model.leases["a"])
    assert (said["group"], said["shard"], said["shard_state"]) == (GROUP, "a", "LIVE")
    assert (said["layers"], said["layers_by"], said["layers_confirmed"]) == ("0 to 15 of 24", "balance-1-1", "no")
    assert (said["layer_us"], said["suggested"]) == ("10.000", "nothing")
    assert findings(model.leases["b"])["layers"] == "none"
    assert findings(older)["shard"] == "another lease serves it by now"
    fresh = pipeline(make_desk, *THREE, measured=False)
    assert "group" not in dict(explain.lease(fresh.desk.books, fresh.desk.take(wish()).lease_id, 0.0).findings)
    said = dict(explain.lease(fresh.desk.books, fresh.leases["a"].lease_id, 0.0).findings)
    assert (said["layer_us"], said["layers_by"]) == ("never measured", "what it entered with")


def test_suggestion_may_be_followed_in_part(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("fast", 8, 10.0), Stage("slow", 8, 100.0))
    model.suggestion()
    assert model.group.suggestion is not None
    model.assign(("fast", 0, 12), ("slow", 12, 16), plan_id=model.group.suggestion.plan_id)
    assert model.division == {"fast": (0, 12), "slow": (12, 16)}


@pytest.mark.parametrize("change", ["join", "fail"])
def test_plan_is_stale_when_its_grounds_have_changed(make_desk: DeskMaker, change: str) -> None:
    model = pipeline(make_desk, Stage("fast", 8, 10.0), Stage("slow", 8, 100.0), Stage("third", 8, 50.0))
    model.suggestion()
    assert model.group.suggestion is not None
    plan_id = model.group.suggestion.plan_id
    if change == "join":
        model.join(Stage("more", 0, 10.0), 3)
        unchanged(model, lambda: model.assign(plan_id=plan_id), errors.StalePlan, "which is none")
    else:
        model.desk.release(model.leases["third"])
        unchanged(model, lambda: model.assign(plan_id=plan_id), errors.StalePlan, "which is none")
        model.gather()
        unchanged(model, lambda: model.assign(plan_id=plan_id), errors.StalePlan, "which is balance-1-2")


@pytest.mark.parametrize(("namespace", "group"), [("default", "other"), ("other", GROUP)])
def test_unknown_group_is_not_found_and_another_namespace_hides_it(
    make_desk: DeskMaker, namespace: str, group: str
) -> None:
    model = pipeline(make_desk, *THREE)
    arbiter = model.desk.arbiter

    def assign() -> object:
        return arbiter.assign(AssignmentRequest(namespace=namespace, group=group, plan_id="p"), model.desk.now)

    unchanged(model, assign, errors.ShardNotFound, "no living shard")

    def evaluate() -> object:
        return arbiter.evaluate_balance(namespace, group, 0, model.desk.now)

    unchanged(model, evaluate, errors.ShardNotFound, "no living shard")


def test_same_name_in_two_namespaces_is_two_models(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *THREE)
    model.join(Stage("z", 5, 1.0), 0, namespace="other")
    assert model.group.layers == 24
    assert model.desk.books.shards.groups["other", GROUP].layers == 5


def test_nothing_moves_when_the_server_only_observes_or_drains(make_desk: DeskMaker) -> None:
    desk: Desk = make_desk(replace(LINEAR, observe_only=True))
    desk.box(1000.0)
    model = Pipeline(desk, THREE)
    unchanged(model, lambda: model.assign(("a", 0, 24)), errors.ObserveOnly, "moves no layers")
    model = pipeline(make_desk, *THREE)
    model.desk.arbiter.drain(model.desk.now)
    model.desk.collect()
    unchanged(model, lambda: model.assign(("a", 0, 24)), errors.ShuttingDown, "going away")
