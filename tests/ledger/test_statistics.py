"""Means over time."""

from __future__ import annotations

import pytest

from arbiter_sidecar.ledger.statistics import QualityMean, Statistics, TimeMean
from arbiter_sidecar.types import WorkloadType


def test_mean_weighs_each_value_by_how_long_it_held() -> None:
    mean = TimeMean(1.0, now=10.0)
    mean.set(3.0, 11.0)
    mean.set(0.0, 14.0)
    assert mean.mean(20.0) == pytest.approx((1 * 1 + 3 * 3 + 0 * 6) / 10)
    assert mean.value == 0.0


def test_mean_is_the_present_value_when_no_time_has_passed() -> None:
    mean = TimeMean(0.5, now=10.0)
    assert mean.mean(10.0) == 0.5
    mean.set(0.7, 10.0)
    assert mean.mean(10.0) == 0.7


def test_quality_mean_leaves_out_time_without_leases() -> None:
    mean = QualityMean(0.0)
    assert mean.mean(5.0) == 1.0
    mean.move(leases=1, quality=0.4, now=5.0)
    assert mean.mean(5.0) == 0.4
    mean.move(leases=1, quality=0.8, now=15.0)
    assert mean.present == pytest.approx(0.6)
    mean.move(leases=0, quality=0.2, now=20.0)
    assert mean.present == pytest.approx(0.7)
    mean.move(leases=-2, quality=-1.4, now=30.0)
    assert mean.mean(1000.0) == pytest.approx((0.4 * 10 + 0.6 * 5 + 0.7 * 10) / 25)
    assert mean.present == 1.0


def test_rounding_does_not_pile_up_when_the_last_lease_leaves() -> None:
    mean = QualityMean(0.0)
    for _ in range(1000):
        mean.move(leases=1, quality=0.1, now=0.0)
        mean.move(leases=-1, quality=-0.3, now=0.0)
    mean.move(leases=1, quality=0.5, now=0.0)
    assert mean.present == 0.5


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        (WorkloadType.LLM_INFERENCE, "llm"),
        (WorkloadType.IMAGE_GENERATION, "diffusion"),
        (WorkloadType.VIDEO_GENERATION, "diffusion"),
        (WorkloadType.OTHER, None),
    ],
)
def test_kind_of_work_has_its_mean(workload: WorkloadType, name: str | None) -> None:
    stats = Statistics(0.0)
    assert stats.kind(workload) is (None if name is None else getattr(stats, name))
