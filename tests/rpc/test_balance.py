"""BalanceService over a real socket: advice, moves, watching, and whatever callers get wrong."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as arbiter_pb
from arbiter.v1 import balance_service_pb2 as pb
from arbiter.v1 import balance_service_pb2_grpc, lease_pb2, state_service_pb2
from arbiter_sidecar.policy.balance import Objective, Settings, ShardState
from arbiter_sidecar.rpc import balance_servicer
from tests.rpc.served import Serve, Served, Setting, applied, refusal, report
from tests.runtime.driving import CORE
from tests.runtime.fakes import GUARD_S

MODEL = "llama"
#: Few passes are enough here, and nobody has to wait between two evaluations.
QUICK = Setting(core=replace(CORE, balance=Settings(min_samples=2, interval_s=0.0)))


class Model:
    """A split model of two workers that talk over the socket."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.stub = balance_service_pb2_grpc.BalanceServiceStub(served.channel)
        self.leases: dict[str, lease_pb2.Lease] = {}

    async def join(self, name: str, layers: int, position: int, **changes: Any) -> lease_pb2.Lease:
        """A worker leases for a shard."""
        shard = arbiter_pb.Shard(group=MODEL, name=name, position=position, layers=layers)
        answer = await self.served.lease(holder=f"worker-{name}", memory_bytes=1 << 30, shard=shard, **changes)
        self.leases[name] = answer.lease
        return answer.lease

    async def measure(self, **microseconds: int) -> None:
        """Workers report three passes of this length."""
        for name, latency in microseconds.items():
            passes = [{"nanos": latency * 1000}] * 3
            await self.served.beat(reports=[report(self.leases[name], shard_latencies=passes)])

    async def evaluate(self, **fields: Any) -> pb.EvaluateBalanceResponse:
        """Asks for advice."""
        asked = pb.EvaluateBalanceRequest(**{"group": MODEL, **fields})
        return await self.stub.EvaluateBalance(asked, timeout=GUARD_S)

    async def apply(self, *ranges: tuple[str, int, int], **fields: Any) -> pb.ApplyAssignmentResponse:
        """Moves layers."""
        given = [pb.LayerAssignment(shard=name, layer_begin=begin, layer_end=end) for name, begin, end in ranges]
        asked = pb.ApplyAssignmentRequest(**{"group": MODEL, "assignment": given, **fields})
        return await self.stub.ApplyAssignment(asked, timeout=GUARD_S)

    async def obey(self) -> None:
        """Every worker serves what it was told."""
        state = await self.served.state()
        for lease in state.leases:
            revision = lease.directive.revision
            mine = next(each for each in self.leases.values() if each.lease_id == lease.lease_id)
            await self.served.beat(reports=[applied(mine, revision)])


@pytest.fixture
async def model(serve: Serve) -> Model:
    """A fast and a slow shard of eight layers each, measured."""
    made = Model(await serve(QUICK))
    await made.join("fast", 8, 0)
    await made.join("slow", 8, 1)
    await made.measure(fast=80, slow=800)
    return made


def divided(group: pb.ShardGroup) -> dict[str, tuple[int, int]]:
    """Who serves what."""
    return {shard.name: (shard.layer_begin, shard.layer_end) for shard in group.shards}


def said(plan: pb.BalancePlan) -> set[str]:
    """The fields that a plan has."""
    return {field.name for field, _ in plan.ListFields()}


async def test_advice_names_layers_gains_and_shards(model: Model) -> None:
    answer = await model.evaluate()
    assert answer.outcome == pb.BALANCE_OUTCOME_REBALANCE
    plan = answer.group.plan
    assert [(each.shard, each.layer_begin, each.layer_end) for each in plan.assignment] == [
        ("fast", 0, 15),
        ("slow", 15, 16),
    ]
    assert (plan.cause, plan.moved_layers) == (pb.BALANCE_CAUSE_IMBALANCE, 7)
    assert plan.throughput_gain == pytest.approx(800 / 150)
    assert plan.latency_gain == pytest.approx(880 / 250)
    assert plan.imbalance == pytest.approx(800 * 0.11 / 16)
    assert plan.bottleneck.ToNanoseconds() == 150_000
    fast = answer.group.shards[0]
    assert (fast.name, fast.state, fast.samples, fast.confirmed) == ("fast", pb.SHARD_STATE_LIVE, 3, True)
    assert fast.layer_time.ToNanoseconds() == 10_000
    assert fast.lease_id == model.leases["fast"].lease_id
    assert fast.holder == "worker-fast"
    assert not fast.HasField("max_layers")
    assert answer.group.objective == pb.BALANCE_OBJECTIVE_THROUGHPUT
    assert (await model.served.state()).shard_groups == [answer.group]


async def test_layers_come_with_directives_and_are_confirmed_by_revision(model: Model) -> None:
    assert model.leases["slow"].directive.shard == lease_pb2.ShardAssignment(layer_begin=8, layer_end=16)
    plan_id = (await model.evaluate()).group.plan.plan_id
    moved = (await model.apply(plan_id=plan_id)).group
    assert divided(moved) == {"fast": (0, 15), "slow": (15, 16)}
    assert (moved.moving, moved.outcome, moved.plan_id) == (True, pb.BALANCE_OUTCOME_MOVING, plan_id)
    assert not moved.HasField("plan")
    (result,) = (await model.served.beat(handles=[model.leases["slow"].handle])).results
    assert result.directive.shard == lease_pb2.ShardAssignment(layer_begin=15, layer_end=16, plan_id=plan_id)
    assert result.directive.reason == lease_pb2.DIRECTIVE_REASON_SHARD_ASSIGNMENT
    answer = await model.evaluate()
    assert (answer.outcome, list(answer.missing)) == (pb.BALANCE_OUTCOME_MOVING, ["fast", "slow"])
    await model.obey()
    answer = await model.evaluate()
    assert (answer.outcome, list(answer.missing)) == (pb.BALANCE_OUTCOME_INSUFFICIENT_DATA, ["fast", "slow"])
    await model.measure(fast=150, slow=100)
    answer = await model.evaluate()
    assert answer.outcome == pb.BALANCE_OUTCOME_BALANCED
    assert answer.imbalance == pytest.approx(150 * 0.11 / 16)


async def test_asking_twice_is_too_soon_when_there_is_an_interval(serve: Serve) -> None:
    model = Model(await serve(Setting(core=replace(CORE, balance=Settings(min_samples=1, interval_s=3600.0)))))
    await model.join("fast", 8, 0)
    await model.join("slow", 8, 1)
    await model.measure(fast=80, slow=800)
    first = await model.evaluate()
    again = await model.evaluate()
    assert again.outcome == pb.BALANCE_OUTCOME_TOO_SOON
    assert 3000 < again.retry_after.seconds <= 3600
    assert again.group.plan == first.group.plan


async def test_first_placement_is_by_room_and_objective(serve: Serve) -> None:
    settings = Settings(objective=Objective.LATENCY)
    model = Model(await serve(Setting(core=replace(CORE, balance=settings))))
    await model.join("a", 0, 0)
    answer = await model.evaluate()
    assert (answer.outcome, answer.shortage) == (pb.BALANCE_OUTCOME_INFEASIBLE, pb.BALANCE_SHORTAGE_LAYERS)
    answer = await model.evaluate(layers=12)
    assert answer.outcome == pb.BALANCE_OUTCOME_REBALANCE
    assert answer.group.objective == pb.BALANCE_OBJECTIVE_LATENCY
    plan = answer.group.plan
    assert plan.cause == pb.BALANCE_CAUSE_PLACEMENT
    assert {"throughput_gain", "bottleneck"}.isdisjoint(said(plan))
    assert divided((await model.apply(plan_id=plan.plan_id)).group) == {"a": (0, 12)}


async def test_failure_has_no_gains_but_a_cause(model: Model) -> None:
    await model.join("third", 8, 2)
    await model.measure(third=80)
    await model.served.release(model.leases.pop("slow"))
    answer = await model.evaluate()
    assert answer.outcome == pb.BALANCE_OUTCOME_REBALANCE
    plan = answer.group.plan
    assert plan.cause == pb.BALANCE_CAUSE_FAILURE
    assert {"imbalance", "throughput_gain", "latency_gain"}.isdisjoint(said(plan))
    assert {shard.name: shard.state for shard in answer.group.shards} == {
        "fast": pb.SHARD_STATE_LIVE,
        "slow": pb.SHARD_STATE_FAILED,
        "third": pb.SHARD_STATE_LIVE,
    }
    assert answer.group.shards[1].lease_id == ""


async def test_other_namespaces_are_not_seen(model: Model) -> None:
    await model.join("alone", 4, 0, namespace="other")
    assert divided((await model.evaluate(namespace="other")).group) == {"alone": (0, 4)}
    (group,) = (await model.served.state(namespace="other")).shard_groups
    assert (group.namespace, group.group) == ("other", MODEL)
    refused = await refusal(model.apply(("fast", 0, 4), namespace="other"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "SHARD_NOT_FOUND")
    assert refused.metadata == {"group": MODEL, "shard": "fast"}


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"group": ""}, {"group"}),
        ({"group": "x" * 129, "namespace": "y" * 65}, {"group", "namespace"}),
        ({"group": "a\nb", "layers": -1}, {"group", "layers"}),
        ({"layers": 20_001}, {"layers"}),
        ({"layers": 4}, {"layers"}),
    ],
)
async def test_evaluation_is_refused_when_fields_are_bad(model: Model, fields: dict[str, Any], bad: set[str]) -> None:
    refused = await refusal(model.evaluate(**fields))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, bad)


@pytest.mark.parametrize(
    ("ranges", "fields", "bad"),
    [
        ((), {}, {"assignment"}),
        ((("fast", 0, 8), ("fast", 8, 16)), {}, {"assignment"}),
        ((("", 0, 8), ("slow", -1, 16)), {}, {"assignment[0].shard", "assignment[1].layer_begin"}),
        ((("fast", 8, 0), ("slow", 8, -2)), {}, {"assignment[0].layer_end", "assignment[1].layer_end"}),
        ((("fast", 0, 1),) * 2001, {}, {"assignment"}),
        ((), {"plan_id": "x" * 129, "group": "", "namespace": "\t"}, {"plan_id", "group", "namespace"}),
    ],
    ids=["empty", "twice", "nameless", "backwards", "many", "names"],
)
async def test_move_is_refused_when_fields_are_bad(
    model: Model, ranges: tuple[tuple[str, int, int], ...], fields: dict[str, Any], bad: set[str]
) -> None:
    refused = await refusal(model.apply(*ranges, **fields))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, bad)
    assert divided((await model.served.state()).shard_groups[0]) == {"fast": (0, 8), "slow": (8, 16)}


@pytest.mark.parametrize(
    ("ranges", "fields", "reason"),
    [
        ((("fast", 0, 16),), {}, "INVALID_ASSIGNMENT"),
        ((("fast", 0, 9), ("slow", 8, 16)), {}, "INVALID_ASSIGNMENT"),
        ((), {"plan_id": "balance-7-99"}, "STALE_PLAN"),
    ],
)
async def test_move_is_refused_when_it_cannot_be(
    model: Model, ranges: tuple[tuple[str, int, int], ...], fields: dict[str, Any], reason: str
) -> None:
    refused = await refusal(model.apply(*ranges, **fields))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)


@pytest.mark.parametrize("latency", [{}, {"nanos": -5}, {"seconds": 3601}, {"nanos": 1_000_000_000}])
async def test_heartbeat_is_refused_when_a_latency_is_none(model: Model, latency: dict[str, int]) -> None:
    bad = report(model.leases["fast"], shard_latencies=[{"nanos": 80_000}, latency])
    refused = await refusal(model.served.beat(reports=[bad]))
    assert refused.fields == {"reports[0].shard_latencies"}
    assert (await model.evaluate()).group.shards[0].samples == 3


async def test_lease_is_refused_when_it_brings_more_layers_than_it_can_serve(served: Served) -> None:
    shard = arbiter_pb.Shard(group=MODEL, name="a", layers=9, max_layers=8)
    refused = await refusal(served.lease(shard=shard))
    assert refused.fields == {"shard.max_layers"}


async def test_watch_shows_everything_and_then_what_changes(model: Model) -> None:
    stream = model.stub.WatchBalance(pb.WatchBalanceRequest(), timeout=GUARD_S)
    first = await stream.read()
    assert isinstance(first, pb.WatchBalanceResponse)
    assert [group.group for group in first.groups] == [MODEL]
    await model.evaluate()
    news = await stream.read()
    assert isinstance(news, pb.WatchBalanceResponse)
    assert news.groups[0].plan.moved_layers == 7
    await model.apply(plan_id=news.groups[0].plan.plan_id)
    news = await stream.read()
    assert isinstance(news, pb.WatchBalanceResponse)
    assert news.groups[0].moving
    for lease in model.leases.values():
        await model.served.release(lease)
    while not news.gone:
        read = await stream.read()
        assert isinstance(read, pb.WatchBalanceResponse)
        news = read
    assert news.gone == [pb.WatchBalanceResponse.Gone(group=MODEL, namespace="default")]
    await model.served.server.stop(GUARD_S)
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_watch_is_refused_when_too_many_watch(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance_servicer, "MAX_WATCHERS", 1)
    first = model.stub.WatchBalance(pb.WatchBalanceRequest(), timeout=GUARD_S)
    await first.read()
    refused = await refusal(model.stub.WatchBalance(pb.WatchBalanceRequest(), timeout=GUARD_S).read())
    assert refused.reason == "QUEUE_FULL"
    first.cancel()
    assert await first.code() is grpc.StatusCode.CANCELLED
    async with asyncio.timeout(GUARD_S):
        # That it has gone takes a moment to arrive.
        while not await _watches(model):
            await asyncio.sleep(0.01)


async def _watches(model: Model) -> bool:
    stream = model.stub.WatchBalance(pb.WatchBalanceRequest(), timeout=GUARD_S)
    try:
        await stream.read()
    except grpc.aio.AioRpcError:
        return False
    stream.cancel()
    return True


async def test_watch_shows_one_model_of_one_namespace_when_asked(model: Model) -> None:
    await model.join("alone", 4, 0, namespace="other")
    asked = pb.WatchBalanceRequest(namespace="other", group=MODEL)
    stream = model.stub.WatchBalance(asked, timeout=GUARD_S)
    first = await stream.read()
    assert isinstance(first, pb.WatchBalanceResponse)
    assert [group.namespace for group in first.groups] == ["other"]
    nothing = model.stub.WatchBalance(pb.WatchBalanceRequest(group="nobody"), timeout=GUARD_S)
    empty = await nothing.read()
    assert isinstance(empty, pb.WatchBalanceResponse)
    assert (len(empty.groups), len(empty.gone)) == (0, 0)
    refused = await refusal(model.stub.WatchBalance(pb.WatchBalanceRequest(group="x" * 129), timeout=GUARD_S).read())
    assert refused.fields == {"group"}
    stream.cancel()
    nothing.cancel()


async def test_events_tell_what_was_suggested_and_done(model: Model) -> None:
    await model.apply(plan_id=(await model.evaluate()).group.plan.plan_id)
    await model.obey()
    await model.served.release(model.leases["slow"])
    kinds = {event.kind for event in await _events(model.served)}
    assert kinds >= {
        state_service_pb2.EVENT_KIND_BALANCE_SUGGESTED,
        state_service_pb2.EVENT_KIND_BALANCE_BEGUN,
        state_service_pb2.EVENT_KIND_BALANCE_APPLIED,
        state_service_pb2.EVENT_KIND_SHARD_STATE_CHANGED,
    }


async def _events(served: Served) -> list[state_service_pb2.Event]:
    stream = served.states.WatchEvents(state_service_pb2.WatchEventsRequest(after_sequence=1), timeout=GUARD_S)
    message = await stream.read()
    assert isinstance(message, state_service_pb2.WatchEventsResponse)
    stream.cancel()
    return list(message.events)


def test_states_have_the_numbers_of_the_wire() -> None:
    wire = {name.removeprefix("SHARD_STATE_"): number for name, number in pb.ShardState.items() if number}
    assert {state.name: state.value for state in ShardState} == wire
