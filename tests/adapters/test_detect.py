from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from arbiter_sidecar.adapters import detect, probing
from arbiter_sidecar.types import GIB, MIB, DeviceKind
from tests import fake_nvml
from tests.adapters import sysfs_cards
from tests.fake_nvml import FakeCard, FakeDriver

Insert = Callable[..., FakeDriver]


@pytest.fixture
def bare(driver: Insert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> detect.DetectConfig:
    """A machine without any card: the fake driver is loaded and has no state, nor are there tools."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(fake_nvml.STATE_VARIABLE, raising=False)
    return detect.DetectConfig(environ={}, drm_root=tmp_path / "drm", device_root=tmp_path / "dri")


def _kinds(found: detect.Detection) -> list[DeviceKind]:
    return [probe.facts.kind for probe in found.probes]


def test_host_memory_is_taken_when_there_is_no_gpu(bare: detect.DetectConfig) -> None:
    found = detect.detect(bare)
    assert _kinds(found) == [DeviceKind.HOST]
    assert found.notes[0] == "NVIDIA: no NVIDIA driver (libnvidia-ml.so.1 not found)"
    assert "no card found" in found.notes[1]
    assert found.notes[-1].startswith("host memory: host (host memory): ")
    assert found.notes[-1].endswith("foreign memory by rule machine")


def test_gpus_are_taken_and_host_memory_is_not(bare: detect.DetectConfig, driver: Insert) -> None:
    driver(FakeCard(uuid="GPU-1", total_bytes=24 * GIB), FakeCard(uuid="GPU-2", total_bytes=24 * GIB))
    found = detect.detect(bare)
    assert [probe.facts.device_id for probe in found.probes] == ["GPU-1", "GPU-2"]
    assert {probe.facts.capacity_bytes for probe in found.probes} == {24 * GIB - 24 * GIB // 10}
    assert "GPU-1 (Fake Card): 23192823399 of 25769803776 bytes to lease, measured per process" in found.notes[0]


def test_both_makes_of_cards_are_taken(bare: detect.DetectConfig, driver: Insert, tmp_path: Path) -> None:
    driver(FakeCard(uuid="GPU-1", total_bytes=24 * GIB))
    sysfs_cards.add_card(tmp_path / "drm", 1, total=16 * GIB)
    assert _kinds(detect.detect(bare)) == [DeviceKind.NVIDIA, DeviceKind.AMD]


def test_budget_asks_for_host_memory_beside_gpus(bare: detect.DetectConfig, driver: Insert) -> None:
    driver(FakeCard(uuid="GPU-1", total_bytes=24 * GIB))
    found = detect.detect(dataclasses.replace(bare, host_budget_bytes=GIB, host_foreign="machine"))
    assert _kinds(found) == [DeviceKind.NVIDIA, DeviceKind.HOST]
    assert found.probes[1].facts.capacity_bytes == GIB
    assert found.notes[-1].endswith("foreign memory by rule machine")


def test_static_devices_are_added_in_every_mode(bare: detect.DetectConfig) -> None:
    found = detect.detect(dataclasses.replace(bare, mode="host", static_devices=(("npu0", GIB),)))
    assert _kinds(found) == [DeviceKind.HOST, DeviceKind.STATIC]
    assert found.notes[-1] == f"static device npu0: {GIB} bytes by configuration, not measured"


def test_static_devices_are_alone_in_their_mode(bare: detect.DetectConfig, driver: Insert) -> None:
    driver(FakeCard(uuid="GPU-1", total_bytes=24 * GIB))
    config = dataclasses.replace(bare, mode="static", static_devices=(("a", GIB), ("b", MIB)), host_budget_bytes=GIB)
    found = detect.detect(config)
    assert [(probe.facts.device_id, probe.facts.capacity_bytes) for probe in found.probes] == [("a", GIB), ("b", MIB)]


def test_host_memory_is_taken_when_no_card_says_its_size(bare: detect.DetectConfig, driver: Insert) -> None:
    driver(FakeCard(uuid="GPU-1", total_bytes=None))
    found = detect.detect(bare)
    assert _kinds(found) == [DeviceKind.HOST, DeviceKind.NVIDIA]
    assert found.probes[1].facts.capacity_bytes == 0
    assert "nothing to lease of its 0 bytes" in found.notes[0]


def test_cap_reaches_every_discovered_device(bare: detect.DetectConfig, driver: Insert) -> None:
    driver(FakeCard(uuid="GPU-1", total_bytes=24 * GIB))
    found = detect.detect(dataclasses.replace(bare, cap_bytes=10 * GIB))
    assert found.probes[0].facts.capacity_bytes == 9 * GIB


@pytest.mark.parametrize("mode", ["nvidia", "amd"])
def test_mode_that_finds_nothing_names_what_was_tried(bare: detect.DetectConfig, mode: detect.Mode) -> None:
    config = dataclasses.replace(bare, mode=mode, static_devices=(("npu0", GIB),))
    with pytest.raises(detect.DetectionError, match="no device to arbitrate") as caught:
        detect.detect(config)
    text = str(caught.value)
    assert ("libnvidia-ml.so.1 not found" in text) is (mode == "nvidia")
    assert ("rocm-smi: the program is not installed" in text) is (mode == "amd")
    assert "configure a static device" in text


def test_static_mode_without_devices_names_what_is_missing(bare: detect.DetectConfig) -> None:
    with pytest.raises(detect.DetectionError, match="static devices: none configured"):
        detect.detect(dataclasses.replace(bare, mode="static"))


def test_host_that_cannot_be_read_is_named(bare: detect.DetectConfig, tmp_path: Path) -> None:
    with pytest.raises(detect.DetectionError, match=r"host memory: .*meminfo"):
        detect.detect(dataclasses.replace(bare, mode="host", proc_root=tmp_path))


def test_driver_that_hangs_is_passed_over(
    bare: detect.DetectConfig, driver: Insert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "FIND_TIMEOUT_S", 0.05)
    state = driver(FakeCard(uuid="GPU-1", total_bytes=24 * GIB))
    state.hangs_ms["init"] = 500
    state.write()
    found = detect.detect(bare)
    assert _kinds(found) == [DeviceKind.HOST]
    assert found.notes[0] == "NVIDIA: NVIDIA has not answered for 0.05 s"


async def test_driver_that_hangs_later_costs_only_its_own_device(bare: detect.DetectConfig, driver: Insert) -> None:
    slow, healthy = FakeCard(uuid="GPU-1", total_bytes=24 * GIB), FakeCard(uuid="GPU-2", total_bytes=24 * GIB)
    state = driver(slow, healthy)
    first, second = detect.detect(bare).probes
    slow.hangs_ms["memory_v2"] = 2000
    state.write()
    thread = probing.ProbeThread(timeout_s=0.5)
    with pytest.raises(TimeoutError, match="device GPU-1"):
        await thread.sample(first, [])
    assert (await thread.sample(second, [])).used_bytes == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"static_devices": (("a", 0),)}, "it must be positive"),
        ({"host_budget_bytes": -1}, "it must be positive"),
        ({"host_foreign": "all"}, "must be none, machine"),
        ({"static_devices": (("host", GIB),)}, "two devices are called host"),
    ],
)
def test_wrong_configuration_is_refused(bare: detect.DetectConfig, changes: dict[str, object], complaint: str) -> None:
    replace = cast("Callable[..., detect.DetectConfig]", dataclasses.replace)
    with pytest.raises(ValueError, match=complaint):
        detect.detect(replace(bare, **changes))


def test_wrong_cap_in_the_environment_is_refused(bare: detect.DetectConfig, driver: Insert) -> None:
    driver(FakeCard(uuid="GPU-1", total_bytes=24 * GIB))
    with pytest.raises(ValueError, match="CUDA_DEVICE_MEMORY_LIMIT"):
        detect.detect(dataclasses.replace(bare, environ={"CUDA_DEVICE_MEMORY_LIMIT": "?"}))


def test_mode_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match="must be one of auto, nvidia, amd, host, static"):
        detect.DetectConfig(mode=cast("detect.Mode", "tpu"))
    with pytest.raises(ValueError, match="same name"):
        detect.DetectConfig(static_devices=(("a", 1), ("a", 2)))
