from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import amd, drm, procfs
from arbiter_sidecar.types import GIB, MIB, Attribution, DeviceKind, Guest, Process
from tests.adapters import sysfs_cards
from tests.adapters.proc_tree import ProcTree

_PCI = "0000:00:00.0"
_HOLDER = Process(50, 1000)


def _fdinfo(client: int, size: str, *, pci: str = _PCI, key: str = "drm-memory-vram") -> str:
    return f"pos:\t0\ndrm-driver:\tamdgpu\ndrm-client-id:\t{client}\ndrm-pdev:\t{pci}\n{key}:\t{size}\n"


@pytest.fixture
def machine(tmp_path: Path) -> ProcTree:
    """One card with 16 GiB of which 6 are used, and a kernel that tells what processes use."""
    sysfs_cards.add_card(tmp_path / "drm", 0, total=16 * GIB, used=6 * GIB, unique_id="a1b2c3d4e5f60718")
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    tree = ProcTree(tmp_path / "proc")
    tree.process("self")
    tree.descriptor("self", 5, "/dev/dri/renderD128", _fdinfo(1, "0 KiB"))
    tree.process(50)
    return tree


def _probe(folder: Path) -> amd.SysfsProbe:
    probes, notes = amd.find(sysfs_cards.config(folder))
    assert notes == []
    (probe,) = probes
    return probe


def test_facts_are_what_the_kernel_says(machine: ProcTree, tmp_path: Path) -> None:
    facts = _probe(tmp_path).facts
    assert facts.device_id == "GPU-a1b2c3d4e5f60718"
    assert (facts.index, facts.kind, facts.total_bytes) == (0, DeviceKind.AMD, 16 * GIB)
    assert facts.capacity_bytes == 16 * GIB - 16 * GIB // 10
    assert facts.attribution is Attribution.PER_PROCESS


@pytest.mark.parametrize("unique_id", ["", "0000000000000000"])
def test_card_is_named_by_its_address_when_it_has_no_number(tmp_path: Path, unique_id: str) -> None:
    sysfs_cards.add_card(tmp_path / "drm", 1, total=16 * GIB, unique_id=unique_id, pci="0000:c3:00.0")
    assert _probe(tmp_path).facts.device_id == "0000:c3:00.0"


def test_card_is_named_by_its_folder_when_the_kernel_gives_no_address(tmp_path: Path) -> None:
    device = sysfs_cards.add_card(tmp_path / "drm", 1, total=16 * GIB, pci="0000:c3:00.0")
    (device / "uevent").unlink()
    assert _probe(tmp_path).facts.device_id == "0000:c3:00.0"


def test_holder_gets_the_clients_of_its_tree_and_the_rest_is_foreign(machine: ProcTree, tmp_path: Path) -> None:
    machine.process(51, parent=50)
    machine.descriptor(50, 3, "/dev/dri/renderD128", _fdinfo(7, "1048576 KiB"))
    machine.descriptor(50, 4, "/dev/dri/renderD128", _fdinfo(7, "1048576 KiB"))
    machine.descriptor(51, 3, "/dev/dri/renderD128", _fdinfo(7, "1048576 KiB"))
    machine.descriptor(51, 4, "/dev/dri/card0", _fdinfo(8, "512 MiB"))
    machine.descriptor(51, 5, "/dev/dri/renderD129", _fdinfo(9, "1 GiB", pci="0000:99:00.0"))
    machine.descriptor(51, 6, "/dev/null", _fdinfo(10, "1 GiB"))
    sample = _probe(tmp_path).sample([_HOLDER])
    held = GIB + 512 * MIB
    assert sample.held_bytes == {_HOLDER: held}
    assert sample.used_bytes == 6 * GIB
    assert sample.foreign_bytes == 6 * GIB - held


def test_guest_holds_what_it_holds_and_is_foreign_all_the_same(machine: ProcTree, tmp_path: Path) -> None:
    machine.process(60)
    machine.process(51, parent=50)
    machine.descriptor(60, 3, "/dev/dri/renderD128", _fdinfo(7, "1048576 KiB"))
    machine.descriptor(51, 3, "/dev/dri/renderD128", _fdinfo(8, "512 MiB"))
    guests = [Process(60, 1000), Process(51, 1000)]
    sample = _probe(tmp_path).sample([_HOLDER], guests)
    assert sample.held_bytes == {_HOLDER: 512 * MIB}
    assert sample.foreign_bytes == 6 * GIB - 512 * MIB
    assert sample.guests == {guests[0]: Guest(GIB, GIB), guests[1]: Guest(0, 0)}


def test_newer_kernels_key_is_understood(machine: ProcTree) -> None:
    machine.descriptor(50, 3, "/dev/dri/renderD128", _fdinfo(7, "64 MiB", key="drm-resident-vram"))
    assert drm.vram_bytes(procfs.ProcFs(machine.root), [50], _PCI) == 64 * MIB


@pytest.mark.parametrize("size", ["", "much", "3 TB", "-1"])
def test_client_is_left_out_when_its_size_is_no_size(machine: ProcTree, size: str) -> None:
    machine.descriptor(50, 3, "/dev/dri/renderD128", _fdinfo(7, size))
    assert list(drm.clients(procfs.ProcFs(machine.root), 50, _PCI)) == []


def test_holder_is_unknown_when_its_descriptors_are_refused(
    machine: ProcTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = _probe(tmp_path)

    def refuse(proc: procfs.ProcFs, pid: int) -> dict[int, str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), f"{proc.root}/{pid}/fd")

    monkeypatch.setattr(procfs.ProcFs, "open_files", refuse)
    sample = probe.sample([_HOLDER])
    assert sample.held_bytes == {_HOLDER: None}
    assert sample.foreign_bytes is None
    assert "run the arbiter as the same user" in sample.detail
    sample = probe.sample([], [_HOLDER])
    assert (sample.guests, sample.foreign_bytes, sample.detail) == ({}, 6 * GIB, "")


@pytest.mark.parametrize("missing", ["node", "folder", "memory"])
def test_only_the_device_is_measured_when_the_kernel_tells_nothing(
    machine: ProcTree, tmp_path: Path, missing: str
) -> None:
    if missing == "node":
        (tmp_path / "dri" / "renderD128").unlink()
    elif missing == "folder":
        (tmp_path / "devices" / _PCI / "drm" / "renderD128").rmdir()
    else:
        (machine.root / "self" / "fdinfo" / "5").write_text("pos:\t0\ndrm-pdev:\t0000:00:00.0\n")
    probe = _probe(tmp_path)
    assert probe.facts.attribution is Attribution.DEVICE_ONLY
    sample = probe.sample([_HOLDER])
    assert sample.used_bytes == 6 * GIB
    assert sample.held_bytes == {_HOLDER: None}
    assert sample.foreign_bytes is None


def test_other_cards_and_connectors_are_passed_over(tmp_path: Path) -> None:
    sysfs_cards.add_card(tmp_path / "drm", 2, total=16 * GIB)
    (tmp_path / "drm" / "card0" / "device").mkdir(parents=True)
    (tmp_path / "drm" / "card2-DP-1").mkdir()
    (tmp_path / "drm" / "version").touch()
    assert _probe(tmp_path).facts.index == 2


def test_card_that_fails_leaves_the_others(tmp_path: Path) -> None:
    sysfs_cards.add_card(tmp_path / "drm", 0, total="N/A")
    sysfs_cards.add_card(tmp_path / "drm", 1, total=16 * GIB)
    sysfs_cards.add_card(tmp_path / "drm", 2, total=512 * MIB)
    probes, notes = amd.find(sysfs_cards.config(tmp_path))
    assert [probe.facts.index for probe in probes] == [1]
    assert "AMD card 0 is left out" in notes[0]
    assert "'N/A', which is no number of bytes" in notes[0]
    assert "less than the reserve" in notes[1]


def test_nothing_is_found_when_there_are_no_cards(tmp_path: Path) -> None:
    assert amd.find(sysfs_cards.config(tmp_path)) == ([], [])


def test_card_is_lost_when_its_files_are_gone(machine: ProcTree, tmp_path: Path) -> None:
    probe = _probe(tmp_path)
    used = tmp_path / "devices" / _PCI / "mem_info_vram_used"
    used.write_text("?\n")
    with pytest.raises(OSError, match="no number of bytes"):
        probe.sample([])
    used.unlink()
    sample = probe.sample([_HOLDER])
    assert sample.lost
    assert sample.held_bytes == {_HOLDER: None}
    probe.close()


def test_cap_bounds_the_card(machine: ProcTree, tmp_path: Path) -> None:
    probes, _ = amd.find(sysfs_cards.config(tmp_path, cap_bytes=10 * GIB))
    assert probes[0].facts.capacity_bytes == 9 * GIB
