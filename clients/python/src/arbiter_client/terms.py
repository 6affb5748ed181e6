"""What a worker asks for, and the request that says it."""

from __future__ import annotations

import math
import os
import uuid
from typing import TYPE_CHECKING, Required, TypedDict

from google.protobuf import duration_pb2

from arbiter.v1 import arbiter_service_pb2, lease_pb2
from arbiter_client import amounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta


class Terms(TypedDict, total=False):
    """The keyword arguments of ``client.lease``. Only ``memory`` and ``workload_type`` are required.

    Sizes are bytes or texts such as ``"2GiB"``; spans are seconds or ``timedelta``; ``None`` is the same as absent.

    Attributes:
        memory: Device memory at quality 1.
        min_memory: Device memory at ``min_quality``; absent: half of the memory shrinks linearly with quality.
        workload_type: ``"llm"``, ``"image"``, ``"video"``, ``"other"``, or a value of ``WorkloadType``.
        priority: ``"background"``, ``"low"``, ``"normal"`` (default), ``"high"``, ``"critical"``, or a value of
            ``Priority``.
        min_quality: The lowest useful quality in [0, 1]; the arbiter has a default for each type.
        max_quality: The highest useful quality in [0, 1]; absent: 1.
        device: Device id; absent: the one that gives the best quality.
        ttl: Time to live without heartbeats; absent: 15 s. The arbiter clamps it to its bounds.
        wait: How long to wait for memory; 0: do not wait; absent: by type and priority, 15 s to 4 min.
        request_id: Makes a retry across restarts of the worker safe; absent: a new one.
        namespace: Namespace; absent: "default".
        labels: For people and dashboards, at most 16.
        pids: Processes that will hold the memory, as the arbiter sees them; absent: this process. Give ``()`` where the
            arbiter lives in another pid namespace and could mistake a stranger for this process.
        startup_window: Silence to tolerate while the worker loads, up to 15 min; needs pids that the arbiter can see.
        preemptible: Whether others may take the memory; absent: yes. No counts only at HIGH and above.
        may_preempt: Whether others may be preempted for this request.
        kv: Makes the lease a KV engine.
        shard: Makes the lease a shard of a split model.
    """

    memory: Required[int | str]
    min_memory: int | str | None
    workload_type: Required[int | str]
    priority: int | str | None
    min_quality: float | None
    max_quality: float | None
    device: str | None
    ttl: float | timedelta | None
    wait: float | timedelta | None
    request_id: str | None
    namespace: str
    labels: Mapping[str, str] | None
    pids: Iterable[int] | None
    startup_window: float | timedelta | None
    preemptible: bool | None
    may_preempt: bool
    kv: arbiter_service_pb2.KvShare | None
    shard: arbiter_service_pb2.Shard | None


_SHORT_TYPES = {
    "llm": lease_pb2.WorkloadType.WORKLOAD_TYPE_LLM_INFERENCE,
    "image": lease_pb2.WorkloadType.WORKLOAD_TYPE_IMAGE_GENERATION,
    "video": lease_pb2.WorkloadType.WORKLOAD_TYPE_VIDEO_GENERATION,
}


def workload_type(value: int | str) -> lease_pb2.WorkloadType.ValueType:
    """The enumeration value of ``"llm"``, ``"IMAGE_GENERATION"``, ``WORKLOAD_TYPE_OTHER`` and the like.

    Raises:
        ValueError: No such type.
    """
    if isinstance(value, int):
        return lease_pb2.WorkloadType.ValueType(value)
    short = _SHORT_TYPES.get(value.lower())
    return lease_pb2.WorkloadType.Value(_full_name(value, "WORKLOAD_TYPE_")) if short is None else short


def priority(value: int | str | None) -> lease_pb2.Priority.ValueType:
    """The enumeration value of ``"high"``, ``"PRIORITY_HIGH"`` and the like; NORMAL for ``None``.

    Raises:
        ValueError: No such priority.
    """
    if value is None:
        return lease_pb2.Priority.PRIORITY_NORMAL
    if isinstance(value, int):
        return lease_pb2.Priority.ValueType(value)
    return lease_pb2.Priority.Value(_full_name(value, "PRIORITY_"))


def duration(span: float | timedelta) -> duration_pb2.Duration:
    """The message of a span in seconds.

    Raises:
        ValueError: Not finite, or negative.
    """
    seconds = amounts.parse_seconds(span)
    whole = math.floor(seconds)
    return duration_pb2.Duration(seconds=whole, nanos=min(999_999_999, round((seconds - whole) * 1e9)))


def allocate_request(holder: str, terms: Terms) -> arbiter_service_pb2.AllocateRequest:
    """The request for a lease; always with a request id, so that it can be sent again safely.

    Raises:
        ValueError: A size, span, type or priority that cannot be read. Ranges are the arbiter's to judge.
    """
    pids = terms.get("pids")
    request = arbiter_service_pb2.AllocateRequest(
        request_id=terms.get("request_id") or uuid.uuid4().hex,
        holder=holder,
        namespace=terms.get("namespace") or "",
        pids=[os.getpid()] if pids is None else list(pids),
        workload_type=workload_type(terms["workload_type"]),
        priority=priority(terms.get("priority")),
        memory_bytes=amounts.parse_bytes(terms["memory"]),
        min_quality=terms.get("min_quality"),
        max_quality=terms.get("max_quality"),
        device_id=terms.get("device") or "",
        preemptible=terms.get("preemptible"),
        may_preempt=terms.get("may_preempt", False),
        kv=terms.get("kv"),
        shard=terms.get("shard"),
        labels=terms.get("labels") or {},
    )
    if (least := terms.get("min_memory")) is not None:
        request.min_memory_bytes = amounts.parse_bytes(least)
    if (ttl := terms.get("ttl")) is not None:
        request.ttl.CopyFrom(duration(ttl))
    if (wait := terms.get("wait")) is not None:
        request.wait_timeout.CopyFrom(duration(wait))
    if (window := terms.get("startup_window")) is not None:
        request.startup_window.CopyFrom(duration(window))
    return request


def _full_name(value: str, prefix: str) -> str:
    name = value.strip().upper().replace("-", "_")
    return name if name.startswith(prefix) else prefix + name
