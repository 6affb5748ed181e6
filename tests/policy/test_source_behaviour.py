"""Promises about quality that the programs this one replaces made or tested, and those it deliberately breaks.

The sources computed one quality for each kind of workload from the pressure at the moment of a request. Here it is
solved for all leases, so their statements are made on leases instead of on a type, a priority and a pressure.
"""

from __future__ import annotations

import pytest

from arbiter_sidecar.policy import quality
from arbiter_sidecar.types import GIB, Priority, WorkloadType

from .scenarios import Lease, Scenario, gib

LLM = WorkloadType.LLM_INFERENCE
IMAGE = WorkloadType.IMAGE_GENERATION
VIDEO = WorkloadType.VIDEO_GENERATION
ADAPTIVE = quality.QualityPolicy.ADAPTIVE
POLICIES = list(quality.QualityPolicy)

type_and_priority = pytest.mark.parametrize("priority", list(Priority), ids=lambda priority: priority.name.lower())
each_policy = pytest.mark.parametrize("policy", POLICIES)


def worker(kind: WorkloadType, priority: Priority, size: float, policy: quality.QualityPolicy = ADAPTIVE) -> Lease:
    """A lease of ``size`` GiB with its type's minimum that can shrink in proportion to its quality."""
    minimum = quality.effective_min(policy, quality.DEFAULT_MIN_QUALITY[kind], 1.0)
    return Lease(
        full=gib(size),
        floor=quality.floor_bytes(gib(size), minimum, None, 1.0),
        minimum=minimum,
        weight=quality.weight(policy, kind, priority),
    )


def targets(capacity_gib: int, *leases: Lease, foreign: float = 0.0) -> tuple[float, ...]:
    """Targets on a device whose capacity was configured, so that no reserve is taken."""
    capacity = capacity_gib * GIB
    return (
        Scenario(leases=leases, capacity=capacity, target=quality.target_bytes(capacity), foreign=gib(foreign))
        .solve()
        .targets
    )


def test_llm_is_not_below_image_when_both_fit() -> None:
    llm, image = targets(24, worker(LLM, Priority.HIGH, 10), worker(IMAGE, Priority.NORMAL, 8))
    assert llm >= image
    assert (llm, image) == (1.0, 1.0)


def test_llm_is_not_below_image_when_they_degrade_a_little() -> None:
    found = targets(16, worker(LLM, Priority.HIGH, 8), worker(IMAGE, Priority.NORMAL, 6))
    assert found == pytest.approx((0.98, 0.96), abs=1e-7)


def test_image_is_degraded_when_the_llm_fills_the_card() -> None:
    _, image = targets(16, worker(LLM, Priority.HIGH, 12), worker(IMAGE, Priority.NORMAL, 3))
    assert image == pytest.approx(0.8444, abs=5e-5)


def test_images_are_at_full_quality_when_the_llm_has_left() -> None:
    assert targets(16, worker(IMAGE, Priority.NORMAL, 3), worker(IMAGE, Priority.NORMAL, 3)) == (1.0, 1.0)


@type_and_priority
def test_quality_falls_when_pressure_rises(priority: Priority) -> None:
    lease = worker(LLM, priority, 10)
    assert targets(16, lease, foreign=5.0)[0] < targets(16, lease)[0] == 1.0


@each_policy
@type_and_priority
def test_minima_are_respected_when_pressure_is_hopeless(policy: quality.QualityPolicy, priority: Priority) -> None:
    """The sources' policies scaled a result below its minimum; no policy may."""
    leases = [worker(kind, priority, 10, policy) for kind in WorkloadType]
    found = targets(16, *leases, foreign=16.0)
    assert found == tuple(lease.minimum for lease in leases)


def test_video_keeps_its_own_minimum_when_pressure_is_hopeless() -> None:
    """The sources gave video the minimum of images."""
    assert targets(16, worker(VIDEO, Priority.NORMAL, 10), foreign=16.0) == (0.25,)


def test_everybody_keeps_full_quality_when_adaptation_is_off() -> None:
    fixed = quality.QualityPolicy.FIXED
    found = targets(16, worker(LLM, Priority.HIGH, 12, fixed), worker(IMAGE, Priority.LOW, 12, fixed), foreign=4.0)
    assert found == (1.0, 1.0)


@type_and_priority
def test_llm_is_above_image_when_llm_goes_first(priority: Priority) -> None:
    policy = quality.QualityPolicy.LLM_FIRST
    llm, image = targets(24, worker(LLM, priority, 12, policy), worker(IMAGE, priority, 12, policy))
    assert llm > image


@type_and_priority
def test_image_is_above_llm_when_diffusion_goes_first(priority: Priority) -> None:
    policy = quality.QualityPolicy.DIFFUSION_FIRST
    llm, image = targets(24, worker(LLM, priority, 12, policy), worker(IMAGE, priority, 12, policy))
    assert image > llm


@each_policy
@type_and_priority
def test_lone_worker_has_full_quality_when_there_is_room(policy: quality.QualityPolicy, priority: Priority) -> None:
    """The sources gave it 0.87 or less, background never more than 0.6, and the balanced policy never 1."""
    assert targets(24, worker(LLM, priority, 10, policy)) == (1.0,)


def test_priority_changes_nothing_when_half_of_the_device_is_used() -> None:
    """A deliberate difference: below the target nobody is reduced, whatever the priority."""
    found = targets(24, worker(LLM, Priority.CRITICAL, 6), worker(IMAGE, Priority.BACKGROUND, 6))
    assert found == (1.0, 1.0)


def test_priorities_are_strictly_ordered_when_the_target_is_passed() -> None:
    found = targets(24, *(worker(LLM, priority, 5) for priority in Priority))
    assert list(found) == sorted(found)
    assert len(set(found)) == len(found)


def test_quality_belongs_to_the_lease_when_another_of_its_kind_arrives() -> None:
    """In the sources the latest request overwrote the quality of every lease of its kind."""
    critical, background = targets(24, worker(LLM, Priority.CRITICAL, 12), worker(LLM, Priority.BACKGROUND, 12))
    assert critical > 0.97
    assert background < 0.75


def test_earlier_holder_is_lowered_too_when_another_arrives() -> None:
    """In the sources the earlier one kept a stale value."""
    first = worker(LLM, Priority.NORMAL, 12)
    assert targets(24, first) == (1.0,)
    assert targets(24, first, worker(IMAGE, Priority.NORMAL, 12))[0] < 1.0


def test_images_stay_reduced_when_the_last_llm_leaves_a_crowded_device() -> None:
    """In the sources this set their quality to 1 at any pressure."""
    images = (worker(IMAGE, Priority.NORMAL, 12), worker(IMAGE, Priority.NORMAL, 12))
    with_llm = targets(24, worker(LLM, Priority.NORMAL, 4), *images)
    without = targets(24, *images)
    assert all(before < after < 1.0 for before, after in zip(with_llm[1:], without, strict=True))


def test_strangers_count_when_they_use_the_device() -> None:
    """The sources saw their own ledger only."""
    lease = worker(LLM, Priority.NORMAL, 10)
    assert targets(24, lease, foreign=12.0)[0] < 1.0
