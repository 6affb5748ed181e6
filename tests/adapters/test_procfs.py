from __future__ import annotations

from pathlib import Path

import pytest

from arbiter_sidecar.adapters import procfs
from arbiter_sidecar.types import MIB, Process
from tests.adapters.child import Child, without_rights
from tests.adapters.proc_tree import ProcTree

_PROC = procfs.ProcFs()
_BLOCK = 32 * MIB
#: What an interpreter needs beside the block it was told to hold.
_SLACK = 16 * MIB


@pytest.mark.parametrize("name", ["a) S 1 (b", "two words", "((", "))"])
def test_stat_is_understood_when_the_name_has_spaces_and_parentheses(child: Child, name: str) -> None:
    before = _PROC.stat(child.pid)
    child.tell(f"call {name}")
    assert _PROC.stat(child.pid) == before


def test_stat_is_none_when_the_process_is_gone(child: Child) -> None:
    child.kill()
    assert _PROC.stat(child.pid) is None
    assert not _PROC.alive(child.process)
    assert _PROC.resident(child.pid).size_bytes == 0


def test_zombie_has_exited_and_holds_nothing(child: Child) -> None:
    child.kill(reap=False)
    stat = _PROC.stat(child.pid)
    assert stat is not None
    assert stat.exited
    assert stat.process == child.process
    assert _PROC.resident(child.pid).size_bytes == 0


def test_process_lives_when_only_its_leader_has_left(child: Child) -> None:
    assert child.tell("leave") == "left"
    assert _PROC.alive(child.process)


def test_process_is_not_alive_when_another_has_its_id(child: Child) -> None:
    assert not _PROC.alive(Process(child.pid, child.process.start_time - 1))


def test_resident_follows_what_a_process_holds(child: Child) -> None:
    child.tell(f"hold {_BLOCK}")
    full = _PROC.resident(child.pid)
    child.tell("hold 0")
    empty = _PROC.resident(child.pid)
    assert _BLOCK <= full.size_bytes <= _BLOCK + _SLACK
    assert empty.size_bytes <= _SLACK
    assert not full.estimated


def test_resident_is_refused_when_the_process_hides(child: Child) -> None:
    child.tell("hide")
    with without_rights(), pytest.raises(PermissionError):
        _PROC.resident(child.pid)


def test_resident_is_estimated_when_the_kernel_has_no_proportional_share(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path / "proc")
    (tree.process(7) / "statm").write_text("900 300 100 1 0 1 0\n")
    resident = procfs.ProcFs(tree.root).resident(7)
    assert resident.estimated
    assert resident.size_bytes % 200 == 0
    assert resident.size_bytes > 0


@pytest.mark.parametrize("lists_children", [True, False])
def test_children_are_found_either_way(child: Child, tmp_path: Path, lists_children: bool) -> None:
    pids = child.tree(0, depth=1)
    everyone = _PROC.all_children()
    direct = _PROC.children if lists_children and _PROC.lists_children else lambda pid: everyone.get(pid, [])
    assert direct(child.pid) == pids[:1]
    assert direct(pids[0]) == pids[1:]


def test_meminfo_complains_when_the_line_is_missing(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path / "proc")
    tree.meminfo(MemTotal=1024)
    assert procfs.ProcFs(tree.root).meminfo("MemTotal") == MIB
    with pytest.raises(OSError, match="no line MemAvailable"):
        procfs.ProcFs(tree.root).meminfo("MemAvailable")


def test_open_files_and_fdinfo_are_empty_when_the_process_is_gone(child: Child) -> None:
    assert _PROC.open_files(child.pid)
    child.kill()
    assert _PROC.open_files(child.pid) == {}
    assert _PROC.fdinfo(child.pid, 0) == ""
    assert _PROC.namespace_pids(child.pid) == []
