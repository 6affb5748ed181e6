"""``arbiter balance``: what it prints about split models."""

from __future__ import annotations

from typing import Any

import pytest

from arbiter.v1 import balance_service_pb2 as pb
from arbiter_client import cli_balance


def shard(name: str, begin: int, end: int, cost_ns: int | None, **fields: Any) -> pb.ShardStatus:
    made = pb.ShardStatus(
        name=name, layer_begin=begin, layer_end=end, **{"state": pb.SHARD_STATE_LIVE, "confirmed": True, **fields}
    )
    if cost_ns is not None:
        made.layer_time.FromNanoseconds(cost_ns)
    return made


PLAN = pb.BalancePlan(
    plan_id="balance-7-1",
    cause=pb.BALANCE_CAUSE_IMBALANCE,
    assignment=[
        pb.LayerAssignment(shard="fast", layer_begin=0, layer_end=15),
        pb.LayerAssignment(shard="slow", layer_begin=15, layer_end=16),
    ],
    moved_layers=7,
    throughput_gain=800 / 150,
    latency_gain=880 / 250,
    imbalance=5.5,
)


def test_table_shows_what_is_and_what_should_be() -> None:
    group = pb.ShardGroup(
        group="llama",
        layers=16,
        plan=PLAN,
        shards=[shard("fast", 0, 8, 10_000), shard("slow", 8, 16, 1_000_000, confirmed=False)],
    )
    answer = pb.EvaluateBalanceResponse(outcome=pb.BALANCE_OUTCOME_REBALANCE, group=group)
    assert cli_balance.evaluation(answer, colour=False) == (
        "llama: 16 layers, layers should move\n"
        "\n"
        "SHARD  STATE  LAYERS       PER LAYER   STAGE  SUGGESTED  STAGE THEN\n"
        "fast   live   0-7             10.0us  80.0us  0-14          150.0us\n"
        "slow   live   8-15 (told)     1.00ms  8.00ms  15-15          1.00ms\n"
        "\n"
        "balance-7-1: 7 layers would move, throughput ×5.33, time of one request ÷3.52"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"outcome": pb.BALANCE_OUTCOME_BALANCED, "imbalance": 1.03}, "balanced, the longest stage is 1.03 times"),
        (
            {"outcome": pb.BALANCE_OUTCOME_INFEASIBLE, "needed": 16, "capacity": 10, "shortage": 1},
            "no division is possible: 16 layers, room for 10",
        ),
        (
            {"outcome": pb.BALANCE_OUTCOME_INFEASIBLE, "needed": 3, "capacity": 2, "shortage": 2},
            "no division is possible: 3 shards need a layer, there are 2",
        ),
        (
            {"outcome": pb.BALANCE_OUTCOME_MOVING, "missing": ["a", "b\x1b"]},
            "layers are moving, waiting for a, b\ufffd",
        ),
        (
            {"outcome": pb.BALANCE_OUTCOME_TOO_SOON, "retry_after": {"seconds": 42}},
            "evaluated a moment ago, again in 42s",
        ),
        ({"outcome": 99}, "0 layers, 99"),
    ],
)
def test_finding_is_said_in_words(fields: dict[str, Any], words: str) -> None:
    answer = pb.EvaluateBalanceResponse(**fields)
    assert words in cli_balance.evaluation(answer, colour=False)


def test_unknown_is_a_dash_and_a_failure_says_so() -> None:
    plan = pb.BalancePlan(plan_id="p", cause=pb.BALANCE_CAUSE_FAILURE, moved_layers=8, estimated=["b"])
    group = pb.ShardGroup(group="llama", plan=plan, shards=[shard("gone", 8, 8, None, state=pb.SHARD_STATE_FAILED)])
    shown = cli_balance.evaluation(pb.EvaluateBalanceResponse(group=group), colour=False)
    assert "gone   failed  none            -      -  -                   -" in shown
    assert shown.endswith("p: 8 layers would move, a failed shard holds some; not measured of late: b")
