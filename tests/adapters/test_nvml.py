"""The real binding against a driver that is compiled for these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import nvml
from arbiter_sidecar.types import GIB, MIB, Attribution, DeviceKind, DeviceSample, Guest, Process
from tests import fake_nvml
from tests.adapters.child import Child, process_of
from tests.adapters.proc_tree import ProcTree
from tests.fake_nvml import FakeCard, FakeDriver

Insert = Callable[..., FakeDriver]

#: A number that no process has: above the kernel's highest.
_NOBODY = 2**22 + 1


def _card(**changes: object) -> FakeCard:
    card = FakeCard(uuid="GPU-1", total_bytes=24 * GIB, reserved_bytes=300 * MIB)
    for name, value in changes.items():
        setattr(card, name, value)
    return card


def _probe(config: nvml.NvmlConfig | None = None) -> nvml.NvmlProbe:
    probes, notes = nvml.find(config or nvml.NvmlConfig(environ={}))
    assert notes == []
    (probe,) = probes
    return probe


def test_facts_are_what_the_driver_says(driver: Insert) -> None:
    driver(_card(name="Fake A100 80GB"))
    facts = _probe().facts
    assert (facts.device_id, facts.name, facts.index, facts.kind) == ("GPU-1", "Fake A100 80GB", 0, DeviceKind.NVIDIA)
    assert facts.total_bytes == 24 * GIB
    assert facts.capacity_bytes == 24 * GIB - 24 * GIB // 10
    assert facts.attribution is Attribution.PER_PROCESS


def test_two_cards_are_two_devices(driver: Insert) -> None:
    driver(_card(), FakeCard(uuid="GPU-2", total_bytes=80 * GIB))
    probes, notes = nvml.find(nvml.NvmlConfig(environ={}))
    assert [(probe.facts.device_id, probe.facts.index) for probe in probes] == [("GPU-1", 0), ("GPU-2", 1)]
    assert notes == []


def test_use_leaves_out_the_drivers_reserve(driver: Insert) -> None:
    driver(_card(used_bytes=5 * GIB))
    assert _probe().sample([]).used_bytes == 5 * GIB


def test_use_contains_the_reserve_when_the_driver_is_old(driver: Insert) -> None:
    driver(_card(used_bytes=5 * GIB, errors={"memory_v2": fake_nvml.NOT_SUPPORTED}))
    assert _probe().sample([]).used_bytes == 5 * GIB + 300 * MIB


def test_holder_gets_the_bytes_of_its_tree_and_the_rest_is_foreign(driver: Insert, child: Child) -> None:
    (below,) = child.tree(0)
    driver(_card(used_bytes=6 * GIB, compute={child.pid: 3 * GIB, below: GIB, os.getpid(): 2 * GIB}))
    sample = _probe().sample([child.process])
    assert sample == DeviceSample(
        sample.device_id, used_bytes=6 * GIB, held_bytes={child.process: 4 * GIB}, foreign_bytes=2 * GIB
    )


def test_process_that_draws_and_computes_counts_once(driver: Insert, child: Child) -> None:
    driver(_card(compute={child.pid: GIB}, graphics={child.pid: GIB, os.getpid(): MIB}))
    sample = _probe().sample([child.process])
    assert sample.held_bytes == {child.process: GIB}


def test_holder_holds_nothing_when_it_is_not_listed(driver: Insert, child: Child) -> None:
    driver(_card(compute={os.getpid(): GIB}))
    sample = _probe().sample([child.process])
    assert sample.held_bytes == {child.process: 0}
    assert sample.foreign_bytes == GIB


def test_use_that_no_process_is_listed_for_is_foreign(driver: Insert, child: Child) -> None:
    driver(_card(used_bytes=6 * GIB, compute={child.pid: 4 * GIB}))
    assert _probe().sample([child.process]).foreign_bytes == 2 * GIB


def test_process_that_we_cannot_see_is_foreign(driver: Insert, child: Child) -> None:
    driver(_card(compute={child.pid: GIB, _NOBODY: 3 * GIB}))
    sample = _probe().sample([child.process])
    assert sample.held_bytes == {child.process: GIB}
    assert sample.foreign_bytes == 3 * GIB


def test_guest_holds_what_it_holds_and_is_foreign_all_the_same(driver: Insert, child: Child) -> None:
    (below,) = child.tree(0)
    driver(_card(used_bytes=7 * GIB, compute={child.pid: 3 * GIB, below: GIB, os.getpid(): 2 * GIB}))
    sample = _probe().sample([], [child.process])
    assert sample.guests == {child.process: Guest(4 * GIB, 4 * GIB)}
    assert (sample.held_bytes, sample.foreign_bytes) == ({}, 7 * GIB)


def test_guest_below_a_holder_is_part_of_it(driver: Insert, child: Child) -> None:
    (below,) = child.tree(0)
    guest = process_of(below)
    driver(_card(used_bytes=4 * GIB, compute={child.pid: 3 * GIB, below: GIB}))
    sample = _probe().sample([child.process], [guest])
    assert sample.held_bytes == {child.process: 4 * GIB}
    assert sample.guests == {guest: Guest(0, 0)}


def test_guest_is_left_out_when_the_driver_says_na(driver: Insert, child: Child) -> None:
    driver(_card(used_bytes=3 * GIB, compute={child.pid: None}))
    sample = _probe().sample([], [child.process])
    assert (sample.guests, sample.foreign_bytes) == ({}, 3 * GIB)


def test_memory_of_a_killed_holder_is_its_own_until_the_driver_forgets_it(driver: Insert, child: Child) -> None:
    card = _card(compute={child.pid: GIB})
    state = driver(card)
    probe = _probe()
    child.kill()
    assert probe.sample([child.process]).held_bytes == {child.process: GIB}
    card.compute.clear()
    state.write()
    assert probe.sample([child.process]).held_bytes == {child.process: 0}


def test_holder_is_unknown_when_the_driver_says_na(driver: Insert, child: Child) -> None:
    driver(_card(used_bytes=3 * GIB, compute={child.pid: None}))
    sample = _probe().sample([child.process])
    assert sample.held_bytes == {child.process: None}
    assert sample.used_bytes == 3 * GIB
    assert sample.foreign_bytes is None


def test_foreign_is_what_holders_leave_when_a_stranger_says_na(driver: Insert, child: Child) -> None:
    driver(_card(used_bytes=3 * GIB, compute={child.pid: GIB, os.getpid(): None}))
    assert _probe().sample([child.process]).foreign_bytes == 2 * GIB


def test_long_process_list_is_read_whole(driver: Insert, child: Child) -> None:
    driver(_card(compute={child.pid: GIB, **{_NOBODY + i: MIB for i in range(40)}}))
    sample = _probe().sample([child.process])
    assert sample.held_bytes == {child.process: GIB}
    assert sample.foreign_bytes == 40 * MIB


@pytest.mark.parametrize("code", [fake_nvml.NOT_SUPPORTED, fake_nvml.NO_PERMISSION])
def test_only_the_device_is_measured_when_the_process_list_is_na(driver: Insert, child: Child, code: int) -> None:
    driver(_card(used_bytes=3 * GIB, errors={"compute": code, "graphics": code}))
    probe = _probe()
    assert probe.facts.attribution is Attribution.DEVICE_ONLY
    sample = probe.sample([child.process])
    assert sample.used_bytes == 3 * GIB
    assert sample.held_bytes == {child.process: None}
    assert sample.foreign_bytes is None


def test_graphics_may_be_na_alone(driver: Insert, child: Child) -> None:
    driver(_card(compute={child.pid: GIB}, errors={"graphics": fake_nvml.NOT_SUPPORTED}))
    assert _probe().sample([child.process]).held_bytes == {child.process: GIB}


def test_holder_is_unknown_while_the_process_list_is_na_for_a_moment(driver: Insert, child: Child) -> None:
    card = _card(compute={child.pid: GIB})
    state = driver(card)
    probe = _probe()
    card.errors = {"compute": fake_nvml.NOT_SUPPORTED, "graphics": fake_nvml.NOT_SUPPORTED}
    state.write()
    sample = probe.sample([child.process])
    assert sample.held_bytes == {child.process: None}
    assert "lists no processes" in sample.detail


def test_lost_card_is_reported_and_found_again_by_its_uuid(driver: Insert, child: Child) -> None:
    card, other = _card(compute={child.pid: GIB}), FakeCard(uuid="GPU-2", total_bytes=GIB)
    state = driver(card)
    probe = _probe()
    card.errors["memory_v2"] = fake_nvml.GPU_IS_LOST
    state.write()
    sample = probe.sample([child.process])
    assert sample.lost
    assert sample.used_bytes is None
    assert sample.held_bytes == {child.process: None}
    assert "has lost the device" in sample.detail
    state.cards = [other]
    state.write()
    assert probe.sample([]).lost
    card.errors.clear()
    state.cards = [other, card]
    state.write()
    sample = probe.sample([child.process])
    assert not sample.lost
    assert sample.held_bytes == {child.process: GIB}


def test_other_failures_are_raised_and_pass(driver: Insert) -> None:
    card = _card(used_bytes=GIB)
    state = driver(card)
    probe = _probe()
    card.errors["memory_v2"] = fake_nvml.UNKNOWN
    state.write()
    with pytest.raises(OSError, match="could not say the memory in use: Unknown Error"):
        probe.sample([])
    card.errors.clear()
    state.write()
    assert probe.sample([]).used_bytes == GIB
    probe.close()


def test_card_that_fails_at_the_start_leaves_the_others(driver: Insert) -> None:
    driver(
        _card(errors={"memory_v2": fake_nvml.UNKNOWN}),
        FakeCard(uuid="GPU-2", total_bytes=GIB, errors={"handle": fake_nvml.GPU_IS_LOST}),
        FakeCard(uuid="GPU-3", total_bytes=24 * GIB),
    )
    probes, notes = nvml.find(nvml.NvmlConfig(environ={}))
    assert [probe.facts.device_id for probe in probes] == ["GPU-3"]
    assert [note.partition(":")[0] for note in notes] == ["GPU 0 is left out", "GPU 1 is left out"]


def test_card_without_a_size_leases_nothing_and_says_so(driver: Insert, child: Child) -> None:
    driver(_card(total_bytes=None, compute={child.pid: GIB}))
    probe = _probe()
    assert probe.facts.total_bytes == probe.facts.capacity_bytes == 0
    sample = probe.sample([child.process])
    assert sample.used_bytes is None
    assert sample.held_bytes == {child.process: GIB}
    assert sample.foreign_bytes == 0
    assert "configure a cap" in sample.detail


def test_card_without_a_name_is_a_device_all_the_same(driver: Insert) -> None:
    driver(_card(errors={"name": fake_nvml.NOT_SUPPORTED}))
    assert _probe().facts.name == "NVIDIA GPU"


def test_cap_gives_a_size_to_a_card_without_one(driver: Insert) -> None:
    driver(_card(total_bytes=None))
    facts = _probe(nvml.NvmlConfig(cap_bytes=10 * GIB, environ={})).facts
    assert (facts.total_bytes, facts.capacity_bytes) == (10 * GIB, 9 * GIB)


@pytest.mark.parametrize(
    ("cap", "environ", "capacity"),
    [
        (None, {"CUDA_DEVICE_MEMORY_LIMIT": "8g"}, 8 * GIB - 8 * GIB // 10),
        (None, {"CUDA_DEVICE_MEMORY_LIMIT": "8g", "CUDA_DEVICE_MEMORY_LIMIT_0": "4096m"}, 4 * GIB - 512 * MIB),
        (None, {"CUDA_DEVICE_MEMORY_LIMIT_0": "4194304k"}, 4 * GIB - 512 * MIB),
        (None, {"CUDA_DEVICE_MEMORY_LIMIT_1": "1g", "CUDA_DEVICE_MEMORY_LIMIT": ""}, 24 * GIB - 24 * GIB // 10),
        (4 * GIB, {"CUDA_DEVICE_MEMORY_LIMIT": "8g"}, 4 * GIB - 512 * MIB),
        (100 * GIB, {}, 24 * GIB - 24 * GIB // 10),
    ],
)
def test_cap_bounds_the_card(driver: Insert, cap: int | None, environ: dict[str, str], capacity: int) -> None:
    driver(_card())
    assert _probe(nvml.NvmlConfig(cap_bytes=cap, environ=environ)).facts.capacity_bytes == capacity


def test_cap_is_refused_when_it_is_no_size(driver: Insert) -> None:
    driver(_card())
    with pytest.raises(ValueError, match="CUDA_DEVICE_MEMORY_LIMIT_0: 'lots' is not a size"):
        nvml.find(nvml.NvmlConfig(environ={"CUDA_DEVICE_MEMORY_LIMIT_0": "lots"}))


def test_slices_are_devices_of_their_own(driver: Insert, child: Child) -> None:
    slices = [
        FakeCard(uuid="MIG-a", total_bytes=10 * GIB, name="Fake 1g.10gb", compute={child.pid: GIB}),
        FakeCard(uuid="MIG-b", total_bytes=20 * GIB, name="Fake 2g.20gb", compute={os.getpid(): 2 * GIB}),
    ]
    driver(_card(slices=slices), FakeCard(uuid="GPU-2", total_bytes=24 * GIB, slices=[]))
    probes, notes = nvml.find(nvml.NvmlConfig(environ={}))
    assert [(probe.facts.device_id, probe.facts.total_bytes) for probe in probes] == [
        ("MIG-a", 10 * GIB),
        ("MIG-b", 20 * GIB),
    ]
    assert notes == ["GPU 1 is left out: MIG is on and it has no slices"]
    assert [probe.sample([child.process]).held_bytes for probe in probes] == [{child.process: GIB}, {child.process: 0}]


@pytest.fixture
def container(tmp_path: Path) -> ProcTree:
    """What we see in a container that shares no process namespace with the host: process 7."""
    tree = ProcTree(tmp_path / "proc")
    tree.namespace(4026532000)
    tree.process(7, start_time=500)
    return tree


def test_only_the_device_is_measured_when_the_driver_counts_elsewhere(driver: Insert, container: ProcTree) -> None:
    driver(_card(used_bytes=2 * GIB, compute={1000: GIB, 7: GIB}))
    probe = _probe(nvml.NvmlConfig(environ={}, proc_root=container.root))
    assert probe.facts.attribution is Attribution.DEVICE_ONLY
    assert probe.sample([Process(7, 500)]) == DeviceSample(
        probe.facts.device_id, used_bytes=2 * GIB, held_bytes={Process(7, 500): None}
    )


def test_processes_are_measured_when_the_driver_counts_as_we_do(driver: Insert, container: ProcTree) -> None:
    container.descriptor(7, 9, "/dev/nvidia0")
    driver(_card(compute={7: GIB}))
    probe = _probe(nvml.NvmlConfig(environ={}, proc_root=container.root))
    assert probe.facts.attribution is Attribution.PER_PROCESS
    assert probe.sample([Process(7, 500)]).held_bytes == {Process(7, 500): GIB}


def test_processes_are_translated_when_the_hosts_proc_is_mounted(
    driver: Insert, container: ProcTree, tmp_path: Path
) -> None:
    host = ProcTree(tmp_path / "host")
    host.process("self", namespace_pids="2000 8")
    host.process(1000, start_time=500, namespace_pids="1000 7")
    card = _card(used_bytes=4 * GIB, compute={1000: GIB, 5000: 3 * GIB})
    state = driver(card)
    probe = _probe(nvml.NvmlConfig(environ={}, proc_root=container.root, host_proc=host.root))
    assert probe.facts.attribution is Attribution.TRANSLATED
    sample = probe.sample([Process(7, 500)])
    assert sample.held_bytes == {Process(7, 500): GIB}
    assert sample.foreign_bytes == 3 * GIB
    card.compute.clear()
    state.write()
    sample = probe.sample([Process(7, 500)])
    assert sample.held_bytes == {Process(7, 500): None}
    assert "although the device is in use" in sample.detail


def test_nested_holders_share_nothing(driver: Insert, child: Child) -> None:
    (below,) = child.tree(0)
    inner = process_of(below)
    driver(_card(compute={child.pid: GIB, below: 2 * GIB}))
    assert _probe().sample([child.process, inner]).held_bytes == {child.process: GIB, inner: 2 * GIB}


def test_driver_that_does_not_start_is_an_error(driver: Insert) -> None:
    state = driver(_card())
    state.errors["init"] = fake_nvml.UNKNOWN
    state.write()
    with pytest.raises(OSError, match="did not start: Unknown Error"):
        nvml.find(nvml.NvmlConfig(environ={}))


_FIND = """
from arbiter_sidecar.adapters import nvml
try:
    probes, notes = nvml.find(nvml.NvmlConfig(environ={}))
except OSError as error:
    print(error)
else:
    print([(probe.facts.device_id, probe.sample([]).used_bytes) for probe in probes], notes)
"""


def _find_elsewhere(repository: Path, **environ: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FIND],
        env={"PYTHONPATH": str(repository), **environ},
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stderr == ""
    return result.stdout.strip()


def test_driver_is_found_by_the_loader_in_a_fresh_process(nvml_library: Path, repository: Path, tmp_path: Path) -> None:
    state = FakeDriver(tmp_path / "nvml", _card(used_bytes=GIB))
    out = _find_elsewhere(
        repository, LD_LIBRARY_PATH=str(nvml_library.parent), **{fake_nvml.STATE_VARIABLE: str(state.path)}
    )
    assert out == f"[('GPU-1', {GIB})] []"


def test_absent_driver_is_one_plain_sentence(nvml_library: Path, repository: Path) -> None:
    out = _find_elsewhere(repository, LD_LIBRARY_PATH=str(nvml_library.parent))
    assert out == "no NVIDIA driver (libnvidia-ml.so.1 not found)"
