"""Worked sequences of published qualities, second by second."""

from __future__ import annotations

import math

import pytest

from .watcher import assert_published, watch

CLIMB = [(5.0, 0.60), (6.0, 0.67), (7.0, 0.72), (8.0, 0.77), (9.0, 0.82), (10.0, 0.87), (11.0, 0.90)]

SEQUENCES = [
    pytest.param(0.50, [0.90] * 20, CLIMB, id="climb-from-half"),
    pytest.param(0.90, [0.50] * 20, [(0, 0.50)], id="fall-at-once"),
    pytest.param(0.75, [0.90, 0.90, 0.60, 0.60] * 6, [(2, 0.60)], id="flapping-publishes-its-minimum-once"),
    pytest.param(0.70, [0.70, 0.71, 0.71, 0.70] * 6, [], id="noise-under-the-margin"),
    pytest.param(0.80, [0.83] * 20, [(5, 0.83)], id="small-rise-in-one-step"),
    pytest.param(0.80, [0.82] * 20, [(5, 0.82)], id="rise-of-exactly-the-margin"),
    pytest.param(0.80, [0.81] * 20, [], id="rise-under-the-margin"),
    pytest.param(0.80, [0.80] * 20, [], id="already-there"),
    pytest.param(0.90, [1.00] * 20, [(5, 0.95), (6, 1.00)], id="two-raises-after-a-release"),
    pytest.param(0.50, [0.56] * 20, [(5, 0.56)], id="a-rest-of-one-hundredth-is-not-left-over"),
    pytest.param(0.50, [0.57] * 20, [(5, 0.55), (6, 0.57)], id="a-rest-of-the-margin-is-a-step"),
    pytest.param(0.30, [0.54] * 20, [(5, 0.36), (6, 0.41), (7, 0.46), (8, 0.51), (9, 0.54)], id="quarter-of-24"),
    pytest.param(
        0.00,
        [1.00] * 30,
        list(enumerate((0.25, 0.43, 0.57, 0.67, 0.75, 0.81, 0.86, 0.91, 0.96, 1.00), start=5)),
        id="from-nothing-to-everything",
    ),
    pytest.param(
        0.50,
        [0.90] * 4 + [0.51] + [0.90] * 10,
        [(10, 0.60), (11, 0.67), (12, 0.72), (13, 0.77), (14, 0.82)],
        id="dip-under-the-margin-restarts-the-wait",
    ),
    pytest.param(
        0.50,
        [0.90] * 4 + [0.52] + [0.90] * 4,
        [(5, 0.60), (6, 0.67), (7, 0.72), (8, 0.77)],
        id="dip-to-the-margin-does-not",
    ),
    pytest.param(0.50, [0.90] * 7 + [0.68] + [0.90] * 5, CLIMB[:2], id="dip-while-climbing-restarts-the-wait"),
    pytest.param(0.50, [0.90] * 7 + [0.55] + [0.90] * 5, [*CLIMB[:2], (7, 0.55)], id="fall-while-climbing-at-once"),
    pytest.param(0.50, [0.90] * 7 + [0.70] * 13, [*CLIMB[:2], (7, 0.70)], id="lower-goal-while-climbing"),
    pytest.param(
        0.50, [0.70] * 6 + [0.90] * 3, [(5, 0.55), (6, 0.63), (7, 0.69), (8, 0.74)], id="higher-goal-while-climbing"
    ),
    pytest.param(0.80, [0.83] * 6 + [0.90] * 4, [(5, 0.83)], id="new-rise-after-arriving-waits-again"),
    pytest.param(0.80, [0.83] * 6 + [0.90] * 7, [(5, 0.83), (11, 0.88), (12, 0.90)], id="and-then-climbs"),
]


@pytest.mark.parametrize(("start", "targets", "expected"), SEQUENCES)
def test_sequence_matches_when_asked_every_second(
    start: float, targets: list[float], expected: list[tuple[float, float]]
) -> None:
    watcher = watch(start)
    for now, target in enumerate(targets):
        watcher.observe(target, float(now))
    assert_published(watcher, expected)


@pytest.mark.parametrize(("start", "targets", "expected"), SEQUENCES)
def test_sequence_matches_when_asked_only_on_changes_and_at_wake_times(
    start: float, targets: list[float], expected: list[tuple[float, float]]
) -> None:
    watcher, last = watch(start), math.nan
    for now, target in enumerate(targets):
        watcher.wait(last, now - 0.5)
        if target != last:
            watcher.observe(target, float(now))
        else:
            watcher.wait(target, float(now))
        last = target
    assert_published(watcher, expected)
