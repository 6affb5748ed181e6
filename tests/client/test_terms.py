"""What a worker asks for, as the request that says it."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from arbiter.v1 import arbiter_service_pb2, lease_pb2
from arbiter_client import terms
from arbiter_client.terms import Terms


def test_allocate_request_says_everything() -> None:
    request = terms.allocate_request(
        "w",
        Terms(
            memory="2GiB",
            min_memory="1GiB",
            workload_type="llm",
            priority="high",
            min_quality=0.4,
            max_quality=0.9,
            device="gpu1",
            ttl=30,
            wait=timedelta(seconds=1.5),
            request_id="r",
            namespace="n",
            labels={"a": "b"},
            pids=[1, 2],
            startup_window=60,
            preemptible=False,
            may_preempt=True,
            kv=arbiter_service_pb2.KvShare(share_weight=2),
            shard=arbiter_service_pb2.Shard(group="g"),
        ),
    )
    assert (request.holder, request.request_id, request.namespace, request.device_id) == ("w", "r", "n", "gpu1")
    assert (request.memory_bytes, request.min_memory_bytes) == (2 << 30, 1 << 30)
    assert (request.min_quality, request.max_quality) == (0.4, 0.9)
    assert request.workload_type == lease_pb2.WorkloadType.WORKLOAD_TYPE_LLM_INFERENCE
    assert request.priority == lease_pb2.Priority.PRIORITY_HIGH
    assert (request.ttl.seconds, request.startup_window.seconds) == (30, 60)
    assert (request.wait_timeout.seconds, request.wait_timeout.nanos) == (1, 500_000_000)
    assert list(request.pids) == [1, 2]
    assert dict(request.labels) == {"a": "b"}
    assert request.HasField("preemptible")
    assert not request.preemptible
    assert request.may_preempt
    assert (request.kv.share_weight, request.shard.group) == (2, "g")


def test_allocate_request_leaves_to_the_arbiter_what_was_not_said() -> None:
    request = terms.allocate_request("w", Terms(memory=1, workload_type="other", wait=None, ttl=None, min_memory=None))
    for name in (
        "min_memory_bytes",
        "min_quality",
        "max_quality",
        "ttl",
        "wait_timeout",
        "startup_window",
        "preemptible",
        "kv",
        "shard",
        "reattach",
    ):
        assert not request.HasField(name), name
    assert request.priority == lease_pb2.Priority.PRIORITY_NORMAL
    assert list(request.pids) == [os.getpid()]


def test_allocate_request_says_that_it_will_not_wait() -> None:
    request = terms.allocate_request("w", Terms(memory=1, workload_type="other", wait=0))
    assert request.HasField("wait_timeout")
    assert request.wait_timeout.ToNanoseconds() == 0


def test_allocate_request_has_an_id_of_its_own_each_time() -> None:
    wanted = Terms(memory=1, workload_type="other")
    first, second = (terms.allocate_request("w", wanted).request_id for _ in range(2))
    assert len(first) == 32
    assert first != second


def test_allocate_request_names_no_process_when_told_so() -> None:
    assert not terms.allocate_request("w", Terms(memory=1, workload_type="other", pids=())).pids


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("llm", 1),
        ("IMAGE", 2),
        ("video", 3),
        ("other", 4),
        ("llm_inference", 1),
        ("WORKLOAD_TYPE_OTHER", 4),
        (3, 3),
        (99, 99),
    ],
)
def test_workload_type_understands_names_and_values(given: str | int, value: int) -> None:
    assert terms.workload_type(given) == value


@pytest.mark.parametrize(
    ("given", "value"), [(None, 3), ("background", 1), ("Critical", 5), ("PRIORITY_LOW", 2), (4, 4)]
)
def test_priority_understands_names_and_values(given: str | int | None, value: int) -> None:
    assert terms.priority(given) == value


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="WORKLOAD_TYPE_PAINTING"):
        terms.workload_type("painting")
    with pytest.raises(ValueError, match="PRIORITY_URGENT"):
        terms.priority("urgent")


def test_duration_never_rounds_up_to_a_second_of_nanoseconds() -> None:
    assert terms.duration(1.9999999999).nanos == 999_999_999
