"""Words that are numbers on the wire keep their numbers."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from arbiter_sidecar.requests import AllocationRequest, Beat, Report
from arbiter_sidecar.types import (
    GIB,
    MIB,
    DeviceId,
    DeviceSample,
    LeaseId,
    Priority,
    Process,
    ReportOutcome,
    WorkloadType,
)


def test_priorities_are_ordered_by_importance() -> None:
    assert list(Priority) == sorted(Priority)
    assert Priority.CRITICAL - Priority.BACKGROUND == 4


def test_units_are_binary() -> None:
    assert (MIB, GIB) == (2**20, 2**30)


def test_process_is_another_one_when_its_id_is_used_again() -> None:
    assert Process(7, 100) != Process(7, 101)
    assert len({Process(7, 100), Process(7, 100)}) == 1


def test_sample_knows_nothing_unless_told() -> None:
    sample = DeviceSample(DeviceId("gpu"), None)
    assert (sample.foreign_bytes, sample.machine_available_bytes, dict(sample.held_bytes)) == (None, None, {})


def test_request_is_the_same_when_only_the_wait_differs() -> None:
    request = AllocationRequest(holder="w", workload=WorkloadType.OTHER, memory_bytes=1)
    assert replace(request, wait_s=60.0) == request
    assert replace(request, memory_bytes=2) != request
    assert (request.priority, request.namespace, request.ttl_s) == (Priority.NORMAL, "default", 15.0)


def test_requests_cannot_be_changed() -> None:
    request = AllocationRequest(holder="w", workload=WorkloadType.OTHER, memory_bytes=1)
    name = "holder"
    with pytest.raises(FrozenInstanceError):
        setattr(request, name, "x")


def test_heartbeat_says_nothing_unless_told() -> None:
    report = Report(lease_id=LeaseId("a"), fence=1)
    assert (report.applied_revision, report.outcome, report.busy_for_s) == (0, ReportOutcome.NONE, 0.0)
    assert Beat() == Beat(worker="", handles=(), reports=())
