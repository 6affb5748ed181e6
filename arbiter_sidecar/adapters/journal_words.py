"""Records of the journal as JSON and back: what has many fields and is read as a whole only.

What does not look as it was written raises ``ValueError``: the file is damaged then.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TypeVar

from arbiter_sidecar.ports import DonationRecord, PlanRecord
from arbiter_sidecar.requests import AllocationRequest, KvShare, ShardPlace
from arbiter_sidecar.types import DeviceId, LeaseId, Priority, Process, WorkloadType

_T = TypeVar("_T", bound=object)


def text(record: AllocationRequest | PlanRecord | Mapping[str, str]) -> str:
    """The record as JSON; enumerations are numbers."""
    return json.dumps(record, default=_plain, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def _plain(part: object) -> dict[str, object]:
    if isinstance(part, Mapping):
        return dict(part)
    if dataclasses.is_dataclass(part):
        return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    raise ValueError(f"{part!r} cannot be kept")


def mapping(content: str) -> dict[str, str]:
    """What ``text`` made of strings with names."""
    return _Fields(content).strings()


def request(content: str) -> AllocationRequest:
    """What ``text`` made of a request."""
    found = _Fields(content)
    kv, shard = found.part("kv"), found.part("shard")
    return AllocationRequest(
        holder=found.take("holder", str),
        workload=WorkloadType(found.take("workload", int)),
        memory_bytes=found.take("memory_bytes", int),
        request_id=found.take("request_id", str),
        namespace=found.take("namespace", str),
        pids=tuple(_whole(pid) for pid in found.several("pids")),
        processes=tuple(_process(each) for each in found.parts("processes")),
        priority=Priority(found.take("priority", int)),
        min_memory_bytes=found.perhaps("min_memory_bytes", int),
        min_quality=found.maybe_number("min_quality"),
        max_quality=found.number("max_quality"),
        device_id=found.take("device_id", str),
        ttl_s=found.number("ttl_s"),
        wait_s=found.number("wait_s"),
        startup_window_s=found.number("startup_window_s"),
        preemptible=found.take("preemptible", bool),
        may_preempt=found.take("may_preempt", bool),
        kv=_kv(kv) if kv is not None else None,
        shard=_shard(shard) if shard is not None else None,
        labels=_Fields(found.take("labels", dict)).strings(),
    )


def plan(content: str) -> PlanRecord:
    """What ``text`` made of a plan."""
    found = _Fields(content)
    return PlanRecord(
        plan_id=found.take("plan_id", str),
        device_id=DeviceId(found.take("device_id", str)),
        priority=Priority(found.take("priority", int)),
        need=found.take("need", int),
        opened_at=found.number("opened_at"),
        tokens=found.take("tokens", bool),
        requester=found.take("requester", str),
        request_id=found.take("request_id", str),
        partial=found.take("partial", bool),
        machine=found.take("machine", bool),
        grace_s=found.number("grace_s"),
        donations=tuple(_donation(each) for each in found.parts("donations")),
    )


def _process(found: _Fields) -> Process:
    return Process(pid=found.take("pid", int), start_time=found.take("start_time", int))


def _kv(found: _Fields) -> KvShare:
    return KvShare(
        share_weight=found.take("share_weight", int),
        min_tokens=found.take("min_tokens", int),
        max_tokens=found.perhaps("max_tokens", int),
        block_tokens=found.take("block_tokens", int),
    )


def _shard(found: _Fields) -> ShardPlace:
    return ShardPlace(
        group=found.take("group", str),
        name=found.take("name", str),
        position=found.take("position", int),
        layers=found.take("layers", int),
        bytes_per_layer=found.take("bytes_per_layer", int),
        max_layers=found.perhaps("max_layers", int),
    )


def _donation(found: _Fields) -> DonationRecord:
    return DonationRecord(
        reclaim_id=found.take("reclaim_id", str),
        lease_id=LeaseId(found.take("lease_id", str)),
        planned=found.take("planned", int),
        whole=found.take("whole", bool),
    )


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value


class _Fields:
    """A JSON object whose values are taken out by name and type."""

    def __init__(self, content: object) -> None:
        found = json.loads(content) if isinstance(content, str) else content
        if not isinstance(found, dict):
            raise ValueError(f"{content!r} is no object")
        self.content: dict[str, object] = found

    def strings(self) -> dict[str, str]:
        """All values, which must be strings."""
        return {name: self.take(name, str) for name in self.content}

    def take(self, name: str, kind: type[_T]) -> _T:
        """The value of this name, which must be there and exactly of this type."""
        value = self.content.get(name)
        if type(value) is not kind:
            raise ValueError(f"{name!r} is {value!r}, not {kind.__name__}")
        return value

    def perhaps(self, name: str, kind: type[_T]) -> _T | None:
        """The same where it may be nothing."""
        return None if self.content.get(name) is None else self.take(name, kind)

    def number(self, name: str) -> float:
        """The number of this name."""
        value = self.content.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name!r} is {value!r}, not a number")
        return float(value)

    def maybe_number(self, name: str) -> float | None:
        """The same where it may be nothing."""
        return None if self.content.get(name) is None else self.number(name)

    def several(self, name: str) -> list[object]:
        """The list of this name."""
        found: list[object] = self.take(name, list)
        return found

    def parts(self, name: str) -> list[_Fields]:
        """The list of objects of this name."""
        return [_Fields(each) for each in self.several(name)]

    def part(self, name: str) -> _Fields | None:
        """The object of this name; ``None`` where it is nothing."""
        value = self.content.get(name)
        return None if value is None else _Fields(value)
