"""A rung is taken exactly when the directive pays for it."""

from __future__ import annotations

import pytest

from arbiter_client.directive import Directive
from examples import rungs
from examples.rungs import MIB, SizedRung

SIZES = [
    SizedRung(name="large", memory_bytes=500 * MIB),
    SizedRung(name="medium", memory_bytes=300 * MIB),
    SizedRung(name="small", memory_bytes=100 * MIB),
]
MIN_QUALITY = 0.4


def limit(quality: float) -> int:
    """What a lease of 500 MiB at quality 1 and 100 MiB at 0.4 may hold: the arbiter's straight line."""
    return round(500 * MIB - (1 - quality) * 400 * MIB / 0.6)


def chosen(quality: float, limit_bytes: int) -> str:
    directive = Directive(lease_id="l", revision=1, quality=quality, memory_limit_bytes=limit_bytes)
    return rungs.to_ladder(SIZES, MIN_QUALITY).for_directive(directive).name


@pytest.mark.parametrize(
    ("quality", "expected"), [(1.0, "large"), (0.99, "medium"), (0.7, "medium"), (0.69, "small"), (0.4, "small")]
)
def test_best_paid_rung_is_taken_when_quality_falls(quality: float, expected: str) -> None:
    assert chosen(quality, limit(quality)) == expected


def test_rung_never_needs_more_than_the_limit_when_any_quality_comes() -> None:
    ladder = rungs.to_ladder(SIZES, MIN_QUALITY)
    taken = []
    for step in range(40, 101):
        quality = step / 100
        directive = Directive(lease_id="l", revision=1, quality=quality, memory_limit_bytes=limit(quality))
        rung = ladder.for_directive(directive).settings
        assert rung.memory_bytes <= limit(quality)
        taken.append(rung.memory_bytes)
    assert taken == sorted(taken)


def test_smaller_rung_is_taken_when_the_limit_is_tighter_than_the_quality() -> None:
    assert chosen(1.0, 350 * MIB) == "medium"


def test_paid_from_is_the_minimum_when_there_is_only_one_size() -> None:
    assert rungs.paid_from(SIZES[0], SIZES[:1], MIN_QUALITY) == MIN_QUALITY


def test_up_to_drops_rungs_when_the_worker_may_not_lease_so_much() -> None:
    assert [rung.name for rung in rungs.up_to(SIZES, 300 * MIB)] == ["medium", "small"]
    assert rungs.up_to(SIZES, None) == SIZES


def test_up_to_refuses_when_nothing_is_small_enough() -> None:
    with pytest.raises(ValueError, match="smallest size needs"):
        rungs.up_to(SIZES, 99 * MIB)


@pytest.mark.parametrize("wrong", [[], [SIZES[1], SIZES[0]], [SIZES[0], SIZES[0]]])
def test_to_ladder_refuses_when_sizes_do_not_fall(wrong: list[SizedRung]) -> None:
    with pytest.raises(ValueError, match="must fall"):
        rungs.to_ladder(wrong, MIN_QUALITY)
