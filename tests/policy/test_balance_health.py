"""When a shard counts as degraded, failed and alive again."""

from __future__ import annotations

import pytest

from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import Health, ShardState

LIVE, DEGRADED, FAILED = ShardState


def course(answers: str, start: Health | None = None) -> tuple[list[ShardState], int]:
    """States after each probe, ``+`` an answer and ``-`` a miss, and how many evaluations they ask for."""
    health, states, evaluations = start or Health(), [], 0
    for answer in answers:
        after = balance.observe(health, answer == "+")
        evaluations += balance.wants_evaluation(health, after)
        health = after
        states.append(health.state)
    return states, evaluations


@pytest.mark.parametrize(
    ("answers", "expected", "evaluations"),
    [
        pytest.param("---", [DEGRADED, DEGRADED, FAILED], 1, id="three-misses"),
        pytest.param("--+", [DEGRADED, DEGRADED, LIVE], 0, id="an-answer-in-time"),
        pytest.param("--+--", [DEGRADED, DEGRADED, LIVE, DEGRADED, DEGRADED], 0, id="an-answer-starts-anew"),
        pytest.param("---+-++", [DEGRADED, DEGRADED, FAILED, FAILED, FAILED, FAILED, LIVE], 2, id="two-in-a-row"),
        pytest.param("-----", [DEGRADED, DEGRADED, FAILED, FAILED, FAILED], 1, id="no-repeated-evaluation"),
        pytest.param("+++", [LIVE, LIVE, LIVE], 0, id="well"),
        pytest.param("---++-", [DEGRADED, DEGRADED, FAILED, FAILED, LIVE, DEGRADED], 2, id="degraded-again"),
    ],
)
def test_state_follows_probes_when_they_miss_and_answer(
    answers: str, expected: list[ShardState], evaluations: int
) -> None:
    assert course(answers) == (expected, evaluations)


def test_counter_is_zero_when_a_degraded_shard_answers() -> None:
    assert balance.observe(Health(DEGRADED, 2), True) == Health(LIVE, 0, 0)


def test_misses_are_bounded_when_a_shard_never_answers() -> None:
    health = Health()
    for _ in range(100):
        health = balance.observe(health, False)
    assert health == Health(FAILED, balance.FAILED_AFTER)
