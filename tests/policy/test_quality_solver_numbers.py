"""Worked numbers of the quality solver on a device of 24 GiB with a target of 20.4 GiB."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy import quality
from arbiter_sidecar.types import GIB, Priority, WorkloadType
from tests.thorough import examples

from .scenarios import Lease, Scenario, gib

LLM = WorkloadType.LLM_INFERENCE
IMAGE = WorkloadType.IMAGE_GENERATION
VIDEO = WorkloadType.VIDEO_GENERATION
ADAPTIVE = quality.QualityPolicy.ADAPTIVE

CAPACITY = 24 * GIB

BYTE_NOISE = 1e-7
"""Sizes are rounded to whole bytes, which moves a quality by about one part in 2**33."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker of the examples: sizes in GiB; fully elastic unless ``elastic`` says how much a whole quality frees."""

    kind: WorkloadType
    priority: Priority
    size: float
    minimum: float | None = None
    elastic: float | None = None

    def lease(self, policy: quality.QualityPolicy) -> Lease:
        asked = quality.DEFAULT_MIN_QUALITY[self.kind] if self.minimum is None else self.minimum
        minimum = quality.effective_min(policy, asked, 1.0)
        slope = self.size if self.elastic is None else self.elastic
        return Lease(
            full=gib(self.size),
            floor=gib(self.size - slope * (1 - minimum)),
            minimum=minimum,
            weight=quality.weight(policy, self.kind, self.priority),
        )


def ask(workers: list[Worker], foreign: float = 0.0, policy: quality.QualityPolicy = ADAPTIVE) -> quality.Solution:
    return Scenario(
        leases=tuple(worker.lease(policy) for worker in workers),
        capacity=CAPACITY,
        target=quality.target_bytes(CAPACITY),
        foreign=gib(foreign),
    ).solve()


LLM_HIGH_12 = Worker(LLM, Priority.HIGH, 12)
LLM_NORMAL_12 = Worker(LLM, Priority.NORMAL, 12)
LLM_LOW_12 = Worker(LLM, Priority.LOW, 12)
IMAGE_NORMAL_12 = Worker(IMAGE, Priority.NORMAL, 12)
PAIR = [LLM_HIGH_12, IMAGE_NORMAL_12]
NORMALS = [LLM_NORMAL_12, IMAGE_NORMAL_12]
TRIO = [Worker(LLM, Priority.CRITICAL, 8), Worker(IMAGE, Priority.NORMAL, 8), Worker(VIDEO, Priority.BACKGROUND, 8)]

F = Fraction


@pytest.mark.parametrize(
    ("workers", "foreign", "expected", "printed"),
    [
        pytest.param([Worker(LLM, Priority.HIGH, 10)], 0, (F(1),), (1.0,), id="alone-under-target"),
        pytest.param(
            [Worker(LLM, Priority.HIGH, 10), Worker(IMAGE, Priority.NORMAL, 8)],
            0,
            (F(1), F(1)),
            (1.0, 1.0),
            id="two-under-target",
        ),
        pytest.param(PAIR, 0, (F(9, 10), F(8, 10)), (0.9, 0.8), id="full-card-high-loses-half-of-normal"),
        pytest.param(
            [LLM_HIGH_12, Worker(IMAGE, Priority.BACKGROUND, 12)],
            0,
            (F(29, 30), F(11, 15)),
            (0.9667, 0.7333),
            id="full-card-background-loses-eight-times-high",
        ),
        pytest.param(PAIR, 4, (F(71, 90), F(26, 45)), (0.7889, 0.5778), id="strangers-hold-4"),
        pytest.param(PAIR, 12, (F(4, 10), F(3, 10)), (0.4, 0.3), id="strangers-hold-12-both-at-minimum"),
        pytest.param(PAIR, 13, (F(4, 10), F(3, 10)), (0.4, 0.3), id="strangers-hold-13"),
        pytest.param(PAIR, 16, (F(4, 10), F(3, 10)), (0.4, 0.3), id="strangers-hold-16"),
        pytest.param(
            [Worker(LLM, Priority.NORMAL, 14, elastic=4), Worker(IMAGE, Priority.NORMAL, 10)],
            0,
            (F(26, 35), F(26, 35)),
            (0.7429, 0.7429),
            id="equal-weights-lose-equally-whatever-they-free",
        ),
        pytest.param([LLM_NORMAL_12, LLM_LOW_12], 0, (F(9, 10), F(8, 10)), (0.9, 0.8), id="same-type-two-tiers"),
        pytest.param([LLM_NORMAL_12], 0, (F(1),), (1.0,), id="the-lower-one-left"),
        pytest.param(
            [LLM_NORMAL_12, Worker(IMAGE, Priority.NORMAL, 12, minimum=0.9)],
            0,
            (F(8, 10), F(9, 10)),
            (0.8, 0.9),
            id="one-stops-at-its-minimum-the-other-pays-the-rest",
        ),
        pytest.param(TRIO, 0, (F(137, 140), F(32, 35), F(23, 35)), (0.9786, 0.9143, 0.6571), id="three-tiers"),
        pytest.param(
            TRIO, 3, (F(269, 280), F(59, 70), F(13, 35)), (0.9607, 0.8429, 0.3714), id="three-tiers-strangers-hold-3"
        ),
    ],
)
def test_targets_match_when_adaptive(
    workers: list[Worker], foreign: float, expected: tuple[Fraction, ...], printed: tuple[float, ...]
) -> None:
    targets = ask(workers, foreign).targets
    assert targets == pytest.approx([float(value) for value in expected], abs=BYTE_NOISE)
    assert targets == pytest.approx(printed, abs=5e-5)


@pytest.mark.parametrize(
    ("policy", "workers", "expected"),
    [
        pytest.param("balanced", PAIR, (0.85, 0.85), id="balanced-ignores-priority"),
        pytest.param("llm_first", NORMALS, (0.94, 0.76), id="llm-first"),
        pytest.param("diffusion_first", NORMALS, (0.76, 0.94), id="diffusion-first"),
        pytest.param("fixed", NORMALS, (1.0, 1.0), id="fixed-never-lowers"),
        pytest.param("fixed", PAIR, (1.0, 1.0), id="fixed-never-lowers-whatever-the-priority"),
    ],
)
def test_targets_match_when_policy_differs(policy: str, workers: list[Worker], expected: tuple[float, ...]) -> None:
    solution = ask(workers, policy=quality.QualityPolicy(policy))
    assert solution.targets == pytest.approx(expected, abs=BYTE_NOISE)
    assert solution.reduction_bytes == pytest.approx(gib(3.6), abs=2)
    assert solution.hard_deficit_bytes == 0


@pytest.mark.parametrize(
    ("foreign", "reduction", "soft", "hard"),
    [
        pytest.param(0, 3.6, 0.0, 0.0, id="room-to-lower"),
        pytest.param(4, 7.6, 0.0, 0.0, id="strangers-hold-4"),
        pytest.param(12, 15.6, 0.0, 0.0, id="lowered-to-the-minimum-and-just-enough"),
        pytest.param(13, 16.6, 1.0, 0.0, id="over-target-within-capacity"),
        pytest.param(16, 19.6, 4.0, 0.4, id="over-capacity"),
    ],
)
def test_deficits_match_when_foreign_use_grows(foreign: float, reduction: float, soft: float, hard: float) -> None:
    solution = ask(PAIR, foreign)
    assert solution.reduction_bytes == pytest.approx(gib(reduction), abs=2)
    assert solution.elastic_bytes == pytest.approx(gib(15.6), abs=2)
    assert solution.soft_deficit_bytes == pytest.approx(gib(soft), abs=2)
    assert solution.hard_deficit_bytes == pytest.approx(gib(hard), abs=2)


def test_fixed_policy_reports_soft_deficit_when_target_is_passed() -> None:
    solution = ask(NORMALS, policy=quality.QualityPolicy.FIXED)
    assert solution.elastic_bytes == 0
    assert solution.soft_deficit_bytes == pytest.approx(gib(3.6), abs=2)
    assert solution.hard_deficit_bytes == 0


def test_water_level_is_zero_when_nothing_is_missing() -> None:
    assert ask([LLM_NORMAL_12]).water_level == 0


def test_water_level_divides_by_weight_when_something_is_missing() -> None:
    assert ask(PAIR).water_level == pytest.approx(0.8, abs=1e-6)


def test_water_level_is_infinite_when_all_are_at_minimum() -> None:
    assert math.isinf(ask(PAIR, 13).water_level)


@pytest.mark.parametrize(
    ("capacity", "soft_target", "expected"),
    [
        pytest.param(20, 0.85, 17, id="exact-in-decimal"),
        pytest.param(100, 0.85, 85, id="exact-hundred"),
        pytest.param(7, 0.85, 5, id="rounded-down"),
        pytest.param(0, 0.85, 0, id="nothing"),
        pytest.param(1000, 1.0, 1000, id="whole-capacity"),
        pytest.param(2**50, 0.85, 957014920816230, id="huge"),
    ],
)
def test_target_bytes_rounds_down_when_fraction_is_decimal(capacity: int, soft_target: float, expected: int) -> None:
    assert quality.target_bytes(capacity, soft_target) == expected


@examples(60)
@given(st.integers(min_value=0, max_value=2**47))
def test_target_bytes_is_85_percent_when_not_configured(capacity: int) -> None:
    assert quality.target_bytes(capacity) == capacity * 85 // 100
