"""The worked examples of balancing, end to end through the core: leases, heartbeats, advice, moves."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter.shards import Placement
from arbiter_sidecar.ledger.shards import Moving
from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import (
    Balanced,
    Infeasible,
    Objective,
    Settings,
    Shortage,
    TooFewSamples,
    TooSoon,
)
from arbiter_sidecar.types import DirectiveReason, EventKind
from tests.arbiter.desk import DeskMaker
from tests.arbiter.split import GROUP, Stage, pipeline

PAIR = (Stage("fast", 8, 10.0), Stage("slow", 8, 100.0))


@pytest.mark.parametrize(
    ("stages", "division", "throughput", "latency"),
    [
        (PAIR, (15, 1), 800 / 150, 880 / 250),
        ((Stage("a", 8, 10.0), Stage("b", 8, 1000.0)), (15, 1), 8.0, 8080 / 1150),
        (
            (Stage("a", 8, 10.0), Stage("b", 8, 20.0), Stage("c", 8, 30.0), Stage("d", 8, 50.0)),
            (16, 8, 5, 3),
            2.5,
            880 / 620,
        ),
        ((Stage("quick", 80, 0.875), Stage("mid", 8, 10.0), Stage("slow", 8, 100.0)), (87, 8, 1), 8.0, 950 / 256.125),
        ((Stage("fast", 8, 10.0, 10), Stage("slow", 8, 100.0)), (10, 6), 800 / 600, 880 / 700),
        ((Stage("a", 16, 10.0), Stage("b", 16, 10.0), Stage("c", 0, 10.0)), (11, 11, 10), 160 / 110, 1.0),
        ((Stage("a", 3, 30.0), Stage("b", 11, 10.0), Stage("c", 12, 5.0)), (2, 8, 16), 110 / 80, 260 / 220),
    ],
    ids=["two", "hundredfold", "four", "quick", "capped", "empty", "near"],
)
def test_layers_move_as_worked_out_when_workers_report_what_the_example_says(
    make_desk: DeskMaker, stages: tuple[Stage, ...], division: tuple[int, ...], throughput: float, latency: float
) -> None:
    model = pipeline(make_desk, *stages)
    found = model.suggestion()
    assert tuple(span.layers for span in found.assignment) == division
    assert found.throughput_gain == pytest.approx(throughput)
    assert found.latency_gain == pytest.approx(latency)
    (event,) = model.desk.events(EventKind.BALANCE_SUGGESTED)
    assert event.namespace == "default"
    assert event.fields["group"] == GROUP
    assert float(event.fields["throughput_gain"]) == pytest.approx(throughput, abs=1e-4)
    model.follow()
    assert tuple(end - begin for begin, end in model.division.values()) == division
    model.desk.now += balance.INTERVAL_S
    assert isinstance(model.evaluate().decision, Balanced)
    assert model.group.suggestion is None


@pytest.mark.parametrize(
    ("stages", "imbalance"),
    [
        ((Stage("a", 8, 100.0), Stage("b", 8, 112.5)), 1.0625),
        ((Stage("a", 10, 10.0), Stage("b", 10, 12.0)), 1.1),
    ],
)
def test_nothing_moves_when_it_would_not_pay(make_desk: DeskMaker, stages: tuple[Stage, ...], imbalance: float) -> None:
    decision = pipeline(make_desk, *stages).evaluate().decision
    assert isinstance(decision, Balanced)
    assert decision.imbalance == pytest.approx(imbalance)


def test_sum_is_made_small_when_one_request_at_a_time_is_served(make_desk: DeskMaker) -> None:
    settings = Settings(objective=Objective.LATENCY)
    model = pipeline(make_desk, Stage("fast", 8, 10.0, 12), Stage("slow", 8, 100.0), settings=settings)
    found = model.suggestion()
    assert [span.layers for span in found.assignment] == [12, 4]
    assert found.latency_us == 520.0


def test_nothing_is_possible_when_shards_have_too_little_room(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("fast", 8, 10.0, 8), Stage("slow", 8, 100.0, 8))
    model.record("fast").own_limit = model.record("slow").own_limit = 5
    assert model.evaluate().decision == Infeasible(16, 10)


def test_advice_waits_for_enough_passes_and_names_who_is_missing(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *PAIR, measured=False)
    model.measure("fast")
    model.measure("slow", samples=balance.MIN_SAMPLES - 1)
    assert model.evaluate().decision == TooFewSamples(("slow",))
    model.measure("slow", samples=1)
    assert model.suggestion().moved == 7


def test_old_passes_do_not_count_but_the_last_cost_is_remembered(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *PAIR)
    model.live(balance.FRESH_S + 1.0)
    model.group.evaluated_at = None
    assert model.evaluate().decision == TooFewSamples(("fast", "slow"))
    assert model.record("slow").cost_us == 100.0
    model.measure()
    assert model.suggestion().moved == 7


def test_asking_again_is_too_soon_and_the_suggestion_stands(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *PAIR)
    model.suggestion()
    stood = model.group.suggestion
    model.live(20.0)
    decision = model.evaluate().decision
    assert isinstance(decision, TooSoon)
    assert decision.retry_after_s == pytest.approx(balance.INTERVAL_S - 20.0)
    assert model.group.suggestion is stood


def test_same_advice_is_said_once_when_it_is_found_again(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *PAIR)
    model.suggestion()
    assert model.group.suggestion is not None
    plan_id = model.group.suggestion.plan_id
    model.live(balance.INTERVAL_S * 2)
    assert model.group.suggestion.plan_id == plan_id
    assert model.group.evaluated_at is not None
    assert model.group.evaluated_at >= balance.INTERVAL_S
    assert len(model.desk.events(EventKind.BALANCE_SUGGESTED)) == 1


def test_group_is_evaluated_by_itself_once_an_interval(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *PAIR)
    model.live(balance.INTERVAL_S - 1.0)
    assert model.group.decision is None
    model.live(balance.INTERVAL_S + 10.0)
    assert isinstance(model.group.decision, balance.Rebalance)
    assert len(model.desk.events(EventKind.BALANCE_SUGGESTED)) == 1


def test_first_placement_is_suggested_by_memory_when_nobody_holds_a_layer(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("a", 0, 1.0, 32), Stage("b", 0, 1.0, 16), measured=False)
    assert model.evaluate().decision == Infeasible(1, 0, Shortage.LAYERS)
    found = model.desk.arbiter.evaluate_balance("default", GROUP, 30, model.desk.now)
    assert isinstance(found.decision, Placement)
    assert [span.layers for span in found.decision.assignment] == [15, 15]
    assert model.group.suggestion is not None
    model.assign(plan_id=model.group.suggestion.plan_id)
    model.obey()
    assert model.division == {"a": (0, 15), "b": (15, 30)}
    with pytest.raises(errors.InvalidRequest, match="hold 30 already"):
        model.desk.arbiter.evaluate_balance("default", GROUP, 30, model.desk.now)


def test_first_placement_is_refused_when_there_is_no_room(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("a", 0, 1.0, 8), Stage("b", 0, 1.0, 8), measured=False)
    found = model.desk.arbiter.evaluate_balance("default", GROUP, 30, model.desk.now)
    assert found.decision == Infeasible(30, 16)
    assert model.group.suggestion is None


def test_first_placement_waits_when_a_restarted_shard_has_not_confirmed(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, Stage("a", 0, 1.0), Stage("b", 0, 1.0), measured=False)
    model.join(model.stages["b"], 1)
    found = model.desk.arbiter.evaluate_balance("default", GROUP, 30, model.desk.now)
    assert found.decision == Moving(missing=("b",))


def test_plan_goes_to_everybody_and_counts_when_everybody_has_confirmed(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *PAIR)
    model.suggestion()
    assert model.group.suggestion is not None
    plan_id = model.group.suggestion.plan_id
    told = {name: model.desk.told(lease) for name, lease in model.leases.items()}
    model.assign(plan_id=plan_id)
    for name, lease in model.leases.items():
        assert model.desk.told(lease) == told[name] + 1
        assert lease.directive_reason is DirectiveReason.SHARD_ASSIGNMENT
        assert model.record(name).plan_id == plan_id
    assert model.group.moving == ("fast", "slow")
    model.desk.now += 1.5
    # What is reported beside the confirmation was measured with the layers before, and is forgotten with them.
    model.desk.report(model.leases["fast"], latencies=(80.0,))
    assert model.record("fast").layers == 15
    assert model.record("fast").fresh_samples(model.desk.now) == 0
    assert model.evaluate().decision == Moving(missing=("slow",))
    assert not model.desk.events(EventKind.BALANCE_APPLIED)
    model.obey()
    (event,) = model.desk.events(EventKind.BALANCE_APPLIED)
    assert event.fields == {"group": GROUP, "plan_id": plan_id, "moved": "7", "took_s": "1.5"}
    assert model.record("fast").cost_us == 10.0
    assert isinstance(model.evaluate().decision, TooSoon)


def test_older_directive_confirms_no_layers(make_desk: DeskMaker) -> None:
    model = pipeline(make_desk, *PAIR)
    model.suggestion()
    slow = model.leases["slow"]
    before = slow.revision
    model.assign(("fast", 0, 15), ("slow", 15, 16))
    model.desk.report(slow, revision=before)
    assert model.group.moving == ("fast", "slow")
