from __future__ import annotations

import os
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import pid_translation, procfs
from tests.adapters.child import Child, without_rights
from tests.adapters.proc_tree import ProcTree

_FIRST = 4026531836


@pytest.fixture
def ours(tmp_path: Path) -> ProcTree:
    """What we see in a container: process 7 and ourselves."""
    tree = ProcTree(tmp_path / "proc")
    tree.process(7, start_time=500)
    tree.process(8, start_time=600)
    return tree


@pytest.fixture
def host(tmp_path: Path) -> ProcTree:
    """What the host sees of the same machine."""
    tree = ProcTree(tmp_path / "host")
    tree.process("self", namespace_pids="2000 8")
    tree.process(2000, start_time=600, namespace_pids="2000 8")
    tree.process(1000, start_time=500, namespace_pids="1000 7")
    tree.process(3000, start_time=900, namespace_pids="3000 7")
    tree.process(4000, start_time=100)
    return tree


def _translation(ours: ProcTree, host: ProcTree) -> pid_translation.HostIds:
    return pid_translation.HostIds(procfs.ProcFs(ours.root), procfs.ProcFs(host.root))


def test_host_ids_become_ours(ours: ProcTree, host: ProcTree) -> None:
    assert _translation(ours, host).ours([1000, 2000]) == {1000: 7, 2000: 8}


def test_process_of_another_container_is_missing_when_it_has_the_same_small_id(ours: ProcTree, host: ProcTree) -> None:
    assert _translation(ours, host).ours([3000]) == {}


def test_process_of_the_host_itself_is_missing(ours: ProcTree, host: ProcTree) -> None:
    assert _translation(ours, host).ours([4000, 5000]) == {}


def test_exited_process_keeps_its_id_while_it_is_listed(ours: ProcTree, host: ProcTree) -> None:
    translation = _translation(ours, host)
    translation.ours([1000])
    (host.root / "1000" / "stat").unlink()
    assert translation.ours([1000]) == {1000: 7}
    assert translation.ours([]) == {}
    assert translation.ours([1000]) == {}


def test_translation_is_refused_when_the_mount_does_not_show_us(ours: ProcTree, tmp_path: Path) -> None:
    empty = ProcTree(tmp_path / "empty")
    with pytest.raises(OSError, match="does not show this process"):
        _translation(ours, empty)
    assert pid_translation.host_ids(procfs.ProcFs(ours.root), empty.root) is None
    assert pid_translation.host_ids(procfs.ProcFs(ours.root), None) is None


def test_own_proc_translates_to_itself() -> None:
    translation = pid_translation.host_ids(procfs.ProcFs(), Path("/proc"))
    assert translation is not None
    assert translation.ours([os.getpid()]) == {os.getpid(): os.getpid()}


@pytest.mark.parametrize(("inode", "expected"), [(_FIRST, True), (4026532000, False)])
def test_first_namespace_is_known_by_its_inode(ours: ProcTree, inode: int, expected: bool) -> None:
    ours.namespace(inode)
    assert pid_translation.in_first_namespace(procfs.ProcFs(ours.root)) is expected


def test_namespace_is_not_the_first_when_it_cannot_be_read(ours: ProcTree) -> None:
    assert not pid_translation.in_first_namespace(procfs.ProcFs(ours.root))


def test_listed_ids_are_ours_when_one_has_a_device_file_open(ours: ProcTree) -> None:
    proc = procfs.ProcFs(ours.root)
    ours.descriptor(8, 3, "/dev/null")
    assert not pid_translation.listed_are_ours([7, 8, 9], proc, "/dev/nvidia")
    ours.descriptor(7, 4, "/dev/nvidia0")
    assert pid_translation.listed_are_ours([9, 7], proc, "/dev/nvidia")


def test_listed_ids_prove_nothing_when_the_process_hides(child: Child) -> None:
    child.tell("hide")
    with without_rights():
        assert not pid_translation.listed_are_ours([child.pid], procfs.ProcFs(), "pipe:")
    with open("/dev/null"):
        assert pid_translation.listed_are_ours([os.getpid()], procfs.ProcFs(), "/dev/null")
