"""The command ``arbiter balance``: how layers of split models are divided, and how they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from arbiter.v1 import balance_service_pb2, state_service_pb2
from arbiter_client import amounts, balance, connection, plain, tables

if TYPE_CHECKING:
    import argparse


_OUTCOMES = {
    balance_service_pb2.BALANCE_OUTCOME_UNSPECIFIED: "not evaluated yet",
    balance_service_pb2.BALANCE_OUTCOME_TOO_SOON: "evaluated a moment ago",
    balance_service_pb2.BALANCE_OUTCOME_INSUFFICIENT_DATA: "too few forward passes were reported",
    balance_service_pb2.BALANCE_OUTCOME_BALANCED: "balanced",
    balance_service_pb2.BALANCE_OUTCOME_REBALANCE: "layers should move",
    balance_service_pb2.BALANCE_OUTCOME_INFEASIBLE: "no division is possible",
    balance_service_pb2.BALANCE_OUTCOME_MOVING: "layers are moving",
}


def add_balance(parser: argparse.ArgumentParser) -> None:
    """Describes ``arbiter balance``."""
    parser.add_argument("group", nargs="?", help="name of the split model; absent: list them")
    parser.add_argument("--apply", action="store_true", help="move layers as suggested")
    parser.add_argument("--layers", type=int, default=0, metavar="N", help="where N layers should go at first")
    parser.set_defaults(run=run, all=False)


def run(made: connection.Connection, options: argparse.Namespace, out: TextIO) -> None:
    """Shows the split models, or one and how its layers should move, and has them moved where that is asked.

    Raises:
        ArbiterClientError: ``ShardNotFound``, ``StalePlan``, or nobody answers.
    """
    if options.group is None:
        _list(made, options, out)
        return
    service = balance.Balance(made.channel, made.transport.address)
    answer = service.evaluate(options.group, namespace=options.namespace, layers=options.layers)
    applied = None
    if options.apply and answer.group.HasField("plan"):
        plan_id = answer.group.plan.plan_id
        applied = service.apply(options.group, namespace=options.namespace, plan_id=plan_id)
    if options.json:
        print(plain.to_json(answer if applied is None else applied), file=out, flush=True)
        return
    print(evaluation(answer, colour=tables.in_colour(out)), file=out, flush=True)
    if applied is not None:
        print(f"applied {applied.plan_id}: every shard is told its layers", file=out, flush=True)
    elif options.apply:
        print("nothing is applied: nothing is suggested", file=out, flush=True)


def _list(made: connection.Connection, options: argparse.Namespace, out: TextIO) -> None:
    request = state_service_pb2.GetStateRequest(namespace=options.namespace)
    state = made.transport.calls.get_state(request, connection.CALL_TIMEOUT_S)
    if options.json:
        picture = state_service_pb2.GetStateResponse(shard_groups=state.shard_groups)
        print(plain.dump(plain.to_plain(picture)["shard_groups"]), file=out, flush=True)
    elif not state.shard_groups:
        print("no split models", file=out, flush=True)
    else:
        rows = [
            (each.group, each.namespace, str(len(each.shards)), str(each.layers), _outcome(each.outcome))
            for each in state.shard_groups
        ]
        header = ("MODEL", "NAMESPACE", "SHARDS", "LAYERS", "FOUND")
        print(tables.table(header, rows, right=frozenset({2, 3}), colour=tables.in_colour(out)), file=out, flush=True)


def evaluation(answer: balance_service_pb2.EvaluateBalanceResponse, *, colour: bool) -> str:
    """A model, what was found, and who would serve what."""
    group = answer.group
    parts = [f"{tables.clean(group.group)}: {group.layers} layers, {_found(answer)}", shards(group, colour=colour)]
    if group.HasField("plan"):
        parts.append(_promise(group.plan))
    return "\n\n".join(parts)


def shards(group: balance_service_pb2.ShardGroup, *, colour: bool) -> str:
    """One row for each shard; the last two columns are what is suggested."""
    suggested = {each.shard: each for each in group.plan.assignment}
    rows = []
    for shard in group.shards:
        per_layer = shard.layer_time.ToNanoseconds() / 1e9 if shard.HasField("layer_time") else None
        then = suggested.get(shard.name)
        rows.append(
            (
                shard.name,
                balance_service_pb2.ShardState.Name(shard.state).removeprefix("SHARD_STATE_").lower()
                if shard.state in balance_service_pb2.ShardState.values()
                else str(shard.state),
                _range(shard.layer_begin, shard.layer_end) + ("" if shard.confirmed else " (told)"),
                _time(per_layer),
                _stage(per_layer, shard.layer_end - shard.layer_begin),
                tables.UNKNOWN if then is None else _range(then.layer_begin, then.layer_end),
                tables.UNKNOWN if then is None else _stage(per_layer, then.layer_end - then.layer_begin),
            )
        )
    header = ("SHARD", "STATE", "LAYERS", "PER LAYER", "STAGE", "SUGGESTED", "STAGE THEN")
    return tables.table(header, rows, right=frozenset({3, 4, 6}), colour=colour)


def _found(answer: balance_service_pb2.EvaluateBalanceResponse) -> str:
    said = _outcome(answer.outcome)
    if answer.outcome == balance_service_pb2.BALANCE_OUTCOME_TOO_SOON:
        # What was found then still counts.
        said = f"{_outcome(answer.group.outcome)}; {said}"
    if answer.missing:
        said += f", waiting for {', '.join(tables.clean(name) for name in answer.missing)}"
    if answer.HasField("imbalance"):
        said += f", the longest stage is {answer.imbalance:.2f} times the ideal one"
    if answer.HasField("retry_after"):
        said += f", again in {amounts.format_seconds(answer.retry_after.ToNanoseconds() / 1e9)}"
    if answer.shortage == balance_service_pb2.BALANCE_SHORTAGE_ROOM:
        said += f": {answer.needed} layers, room for {answer.capacity}"
    elif answer.shortage == balance_service_pb2.BALANCE_SHORTAGE_LAYERS:
        said += f": {answer.needed} shards need a layer, there are {answer.capacity}"
    return said


def _promise(plan: balance_service_pb2.BalancePlan) -> str:
    said = f"{tables.clean(plan.plan_id)}: {plan.moved_layers} layers would move"
    if plan.HasField("throughput_gain") and plan.HasField("latency_gain"):
        said += f", throughput ×{plan.throughput_gain:.2f}, time of one request ÷{plan.latency_gain:.2f}"
    elif plan.cause == balance_service_pb2.BALANCE_CAUSE_FAILURE:
        said += ", a failed shard holds some"
    if plan.estimated:
        said += f"; not measured of late: {', '.join(tables.clean(name) for name in plan.estimated)}"
    return said


def _outcome(number: balance_service_pb2.BalanceOutcome.ValueType) -> str:
    return _OUTCOMES.get(number, str(number))


def _range(begin: int, end: int) -> str:
    return f"{begin}-{end - 1}" if end > begin else "none"


def _stage(per_layer: float | None, layers: int) -> str:
    return _time(None if per_layer is None else per_layer * layers)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return tables.UNKNOWN
    return f"{seconds * 1e6:.1f}us" if seconds < 1e-3 else f"{seconds * 1e3:.2f}ms"
