from __future__ import annotations

import pytest

from arbiter_sidecar.adapters import clock, static
from arbiter_sidecar.types import GIB, Attribution, DeviceKind, Process


def test_device_is_exactly_what_was_configured() -> None:
    probe = static.StaticProbe(name="npu0", size_bytes=3 * GIB + 1, index=2)
    assert probe.facts.device_id == probe.facts.name == "npu0"
    assert probe.facts.total_bytes == probe.facts.capacity_bytes == 3 * GIB + 1
    assert probe.facts.kind is DeviceKind.STATIC
    assert probe.facts.attribution is Attribution.SELF_REPORTED
    assert probe.facts.index == 2


def test_everything_is_unknown_when_nothing_can_be_measured() -> None:
    probe = static.StaticProbe(name="npu0", size_bytes=GIB)
    sample = probe.sample([Process(1, 2)])
    assert sample.used_bytes is None
    assert sample.foreign_bytes is None
    assert sample.held_bytes == {Process(1, 2): None}
    probe.close()


@pytest.mark.parametrize(("name", "size"), [("", GIB), ("npu0", 0), ("npu0", -1)])
def test_device_is_refused_when_it_is_nothing(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="static device"):
        static.StaticProbe(name=name, size_bytes=size)


def test_monotonic_time_never_goes_back() -> None:
    times = [clock.MonotonicClock().now() for _ in range(1000)]
    assert times == sorted(times)
    assert clock.MonotonicClock().wall() > 1_700_000_000
