"""Split models as wire messages."""

from __future__ import annotations

from arbiter.v1 import balance_service_pb2 as pb
from arbiter_sidecar.arbiter.shards import Evaluation, Placement
from arbiter_sidecar.ledger.shards import Moving, ShardGroup, ShardRecord, Suggestion
from arbiter_sidecar.policy import balance
from arbiter_sidecar.rpc.render import span

_CAUSES = {
    balance.Cause.IMBALANCE: pb.BALANCE_CAUSE_IMBALANCE,
    balance.Cause.FAILURE: pb.BALANCE_CAUSE_FAILURE,
}
_OBJECTIVES = {
    balance.Objective.THROUGHPUT: pb.BALANCE_OBJECTIVE_THROUGHPUT,
    balance.Objective.LATENCY: pb.BALANCE_OBJECTIVE_LATENCY,
}
_SHORTAGES = {
    balance.Shortage.ROOM: pb.BALANCE_SHORTAGE_ROOM,
    balance.Shortage.LAYERS: pb.BALANCE_SHORTAGE_LAYERS,
}
_OUTCOMES: dict[type, pb.BalanceOutcome.ValueType] = {
    type(None): pb.BALANCE_OUTCOME_UNSPECIFIED,
    balance.TooSoon: pb.BALANCE_OUTCOME_TOO_SOON,
    balance.TooFewSamples: pb.BALANCE_OUTCOME_INSUFFICIENT_DATA,
    balance.Balanced: pb.BALANCE_OUTCOME_BALANCED,
    balance.Rebalance: pb.BALANCE_OUTCOME_REBALANCE,
    balance.Infeasible: pb.BALANCE_OUTCOME_INFEASIBLE,
    Placement: pb.BALANCE_OUTCOME_REBALANCE,
    Moving: pb.BALANCE_OUTCOME_MOVING,
}


def group(found: ShardGroup, objective: balance.Objective, now: float) -> pb.ShardGroup:
    """A split model as it is."""
    moving = bool(found.moving)
    return pb.ShardGroup(
        group=found.name,
        namespace=found.namespace,
        layers=found.layers,
        shards=[_shard(record, now) for record in found.line],
        outcome=pb.BALANCE_OUTCOME_MOVING if moving else _OUTCOMES[type(found.decision)],
        plan=None if found.suggestion is None else _plan(found.suggestion),
        plan_id=found.plan_id,
        moving=moving,
        objective=_OBJECTIVES[objective],
    )


def evaluation(found: Evaluation, objective: balance.Objective, now: float) -> pb.EvaluateBalanceResponse:
    """What an evaluation has found."""
    decision = found.decision
    answer = pb.EvaluateBalanceResponse(outcome=_OUTCOMES[type(decision)], group=group(found.group, objective, now))
    if isinstance(decision, balance.TooSoon):
        answer.retry_after.CopyFrom(span(decision.retry_after_s))
    elif isinstance(decision, balance.TooFewSamples | Moving):
        answer.missing.extend(decision.missing)
    elif isinstance(decision, balance.Balanced):
        answer.imbalance = decision.imbalance
    elif isinstance(decision, balance.Infeasible):
        answer.needed, answer.capacity = decision.needed, decision.capacity
        answer.shortage = _SHORTAGES[decision.shortage]
    return answer


def _shard(record: ShardRecord, now: float) -> pb.ShardStatus:
    lease, room = record.lease, record.room
    return pb.ShardStatus(
        name=record.name,
        position=record.position,
        lease_id="" if lease is None else lease.lease_id,
        holder="" if lease is None else lease.request.holder,
        state=pb.ShardState.ValueType(record.health.state),
        layer_begin=record.begin,
        layer_end=record.end,
        confirmed=not record.pending,
        layer_time=None if record.cost_us is None else span(record.cost_us / 1e6),
        samples=record.fresh_samples(now),
        max_layers=room,
    )


def _plan(suggestion: Suggestion) -> pb.BalancePlan:
    gains = suggestion.gains
    plan = pb.BalancePlan(
        plan_id=suggestion.plan_id,
        cause=pb.BALANCE_CAUSE_PLACEMENT if gains is None else _CAUSES[gains.cause],
        assignment=[
            pb.LayerAssignment(shard=each.name, layer_begin=each.begin, layer_end=each.end)
            for each in suggestion.assignment
        ],
        moved_layers=suggestion.moved,
    )
    if gains is not None:
        plan.bottleneck.CopyFrom(span(gains.bottleneck_us / 1e6))
        plan.estimated.extend(gains.estimated)
        if gains.imbalance is not None:
            plan.imbalance = gains.imbalance
        if gains.throughput_gain is not None:
            plan.throughput_gain = gains.throughput_gain
        if gains.latency_gain is not None:
            plan.latency_gain = gains.latency_gain
    return plan
