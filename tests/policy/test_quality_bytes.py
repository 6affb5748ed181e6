"""How quality, bytes, weights and minima of one lease relate."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy import quality
from arbiter_sidecar.types import GIB, Priority, WorkloadType
from tests.thorough import examples

from .scenarios import Lease, Scenario, scenarios

LLM = WorkloadType.LLM_INFERENCE
IMAGE = WorkloadType.IMAGE_GENERATION
VIDEO = WorkloadType.VIDEO_GENERATION
OTHER = WorkloadType.OTHER
POLICIES = list(quality.QualityPolicy)
PLAIN = {
    Priority.BACKGROUND: 1,
    Priority.LOW: 2,
    Priority.NORMAL: 4,
    Priority.HIGH: 8,
    Priority.CRITICAL: 16,
}

SETTINGS = examples(80)
SIZES = st.integers(min_value=1, max_value=2**50)
QUALITIES = st.integers(min_value=0, max_value=100).map(lambda hundredths: hundredths / 100)


@pytest.mark.parametrize(("kind", "expected"), [(LLM, 0.4), (IMAGE, 0.3), (VIDEO, 0.25), (OTHER, 0.4)])
def test_minimum_comes_from_the_type_when_not_asked_for(kind: WorkloadType, expected: float) -> None:
    assert quality.DEFAULT_MIN_QUALITY[kind] == expected


def test_every_type_has_a_minimum_always() -> None:
    assert set(quality.DEFAULT_MIN_QUALITY) == set(WorkloadType)


def test_policies_are_these_five_always() -> None:
    assert {policy.value for policy in POLICIES} == {"adaptive", "llm_first", "diffusion_first", "balanced", "fixed"}


@pytest.mark.parametrize("priority", list(Priority), ids=lambda priority: priority.name.lower())
@pytest.mark.parametrize("kind", list(WorkloadType), ids=lambda kind: kind.name.lower())
def test_weight_doubles_with_each_tier_when_adaptive(kind: WorkloadType, priority: Priority) -> None:
    assert quality.weight(quality.QualityPolicy.ADAPTIVE, kind, priority) == PLAIN[priority]


@pytest.mark.parametrize("priority", list(Priority), ids=lambda priority: priority.name.lower())
@pytest.mark.parametrize(
    ("policy", "kind", "factor"),
    [
        pytest.param("llm_first", LLM, 4, id="llm-first-favours-llm"),
        pytest.param("llm_first", IMAGE, 1, id="llm-first-not-image"),
        pytest.param("llm_first", VIDEO, 1, id="llm-first-not-video"),
        pytest.param("llm_first", OTHER, 1, id="llm-first-not-other"),
        pytest.param("diffusion_first", LLM, 1, id="diffusion-first-not-llm"),
        pytest.param("diffusion_first", IMAGE, 4, id="diffusion-first-favours-image"),
        pytest.param("diffusion_first", VIDEO, 4, id="diffusion-first-favours-video"),
        pytest.param("diffusion_first", OTHER, 1, id="diffusion-first-not-other"),
    ],
)
def test_weight_is_four_times_larger_when_the_policy_favours_the_type(
    policy: str, kind: WorkloadType, factor: int, priority: Priority
) -> None:
    assert quality.weight(quality.QualityPolicy(policy), kind, priority) == factor * PLAIN[priority]


@pytest.mark.parametrize("priority", list(Priority), ids=lambda priority: priority.name.lower())
@pytest.mark.parametrize("kind", list(WorkloadType), ids=lambda kind: kind.name.lower())
def test_weight_is_one_when_balanced(kind: WorkloadType, priority: Priority) -> None:
    assert quality.weight(quality.QualityPolicy.BALANCED, kind, priority) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_minimum_is_raised_to_the_maximum_only_when_fixed(policy: quality.QualityPolicy) -> None:
    expected = 0.9 if policy is quality.QualityPolicy.FIXED else 0.3
    assert quality.effective_min(policy, 0.3, 0.9) == expected


@pytest.mark.parametrize(
    ("minimum", "least", "elasticity", "expected"),
    [
        pytest.param(0.4, 3 * GIB, 0.5, 3 * GIB, id="declared"),
        pytest.param(0.4, 0, 0.5, 0, id="declared-as-nothing"),
        pytest.param(0.4, 10 * GIB, 0.5, 10 * GIB, id="declared-inelastic"),
        pytest.param(0.4, None, 0.5, 7 * GIB, id="half-elastic"),
        pytest.param(0.4, None, 1.0, 4 * GIB, id="fully-elastic"),
        pytest.param(0.4, None, 0.0, 10 * GIB, id="inelastic"),
        pytest.param(0.0, None, 1.0, 0, id="down-to-nothing"),
        pytest.param(1.0, None, 1.0, 10 * GIB, id="no-room"),
    ],
)
def test_bytes_at_minimum_match_when_declared_or_assumed(
    minimum: float, least: int | None, elasticity: float, expected: int
) -> None:
    assert abs(quality.floor_bytes(10 * GIB, minimum, least, elasticity) - expected) <= 1


def test_half_of_the_memory_is_elastic_when_nothing_is_declared() -> None:
    assert abs(quality.floor_bytes(10 * GIB, 0.3, None) - (10 * GIB - 7 * GIB // 2)) <= 1


@SETTINGS
@given(SIZES, QUALITIES, st.sampled_from((0.0, 0.25, 0.5, 1.0)))
def test_assumed_bytes_at_minimum_never_promise_too_little_always(full: int, minimum: float, share: float) -> None:
    exact = full - Fraction(share) * full * (1 - Fraction(minimum))
    actual = quality.floor_bytes(full, minimum, None, share)
    assert 0 <= actual <= full
    noise = full * Fraction(1, 2**50)
    assert exact - noise <= actual <= exact + 1 + noise


def test_slope_is_bytes_per_whole_quality_when_there_is_room() -> None:
    lease = Lease(full=14 * GIB, floor=14 * GIB - 2 * GIB, minimum=0.5).elastic()
    assert lease.slope == pytest.approx(4 * GIB)


def test_slope_is_zero_when_the_minimum_is_full_quality() -> None:
    lease = Lease(full=8 * GIB, floor=8 * GIB, minimum=1.0).elastic()
    assert lease.slope == 0
    assert lease.bytes_at(1.0) == 8 * GIB


@SETTINGS
@given(scenarios(most=1))
def test_bytes_are_exact_when_at_full_quality_or_at_the_minimum(scenario: Scenario) -> None:
    lease = scenario.leases[0]
    assert lease.elastic().bytes_at(1.0) == lease.full
    assert lease.elastic().bytes_at(lease.minimum) == lease.floor


@SETTINGS
@given(SIZES, st.floats(min_value=0.0, max_value=1.0), QUALITIES, st.floats(min_value=0.0, max_value=1.0))
def test_bytes_are_never_less_than_exact_when_between(full: int, kept: float, minimum: float, height: float) -> None:
    floor = full if minimum == 1.0 else min(full, int(full * kept))
    lease = Lease(full=full, floor=floor, minimum=minimum)
    at = min(1.0, minimum + (1.0 - minimum) * height)
    exact = lease.claim().bytes_at(Fraction(at))
    actual = lease.elastic().bytes_at(at)
    noise = full * Fraction(1, 2**50)
    assert floor <= actual <= full
    assert exact - noise <= actual < exact + 1 + noise


@SETTINGS
@given(SIZES, st.floats(min_value=0.0, max_value=1.0), QUALITIES, QUALITIES)
def test_bytes_do_not_fall_when_quality_rises(full: int, kept: float, first: float, second: float) -> None:
    lease = Lease(full=full, floor=min(full, int(full * kept)), minimum=0.0).elastic()
    low, high = sorted((first, second))
    assert lease.bytes_at(low) <= lease.bytes_at(high)
