from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import lineage, procfs
from arbiter_sidecar.types import Process
from tests.adapters.child import Child, eventually, process_of
from tests.adapters.proc_tree import ProcTree

_PROC = procfs.ProcFs()


@pytest.fixture
def family() -> lineage.Lineage:
    return lineage.Lineage(_PROC)


def test_tree_holds_every_descendant(child: Child, family: lineage.Lineage) -> None:
    pids = child.tree(0, depth=2)
    assert family.trees([child.process]) == {child.process: {child.pid, *pids}}


def test_tree_is_the_same_when_the_kernel_does_not_list_children(child: Child, tmp_path: Path) -> None:
    pids = child.tree(0, depth=1)
    tree = ProcTree(tmp_path / "proc")
    tree.process(child.pid, start_time=child.process.start_time)
    tree.process(pids[0], parent=child.pid)
    tree.process(pids[1], parent=pids[0])
    tree.process(99999, parent=1)
    proc = procfs.ProcFs(tree.root)
    assert not proc.lists_children
    assert lineage.Lineage(proc).trees([child.process]) == {child.process: {child.pid, *pids}}


def test_process_belongs_to_its_nearest_holder(child: Child, family: lineage.Lineage) -> None:
    first, second, third = child.tree(0, depth=2)
    inner = process_of(second)
    assert family.trees([child.process, inner]) == {child.process: {child.pid, first}, inner: {second, third}}
    assert family.owners([child.pid, first, second, third], [child.process, inner]) == {
        child.pid: child.process,
        first: child.process,
        second: inner,
        third: inner,
    }


def test_orphans_stay_with_a_holder_that_was_killed(child: Child, family: lineage.Lineage) -> None:
    pids = child.tree(0, depth=1)
    me = process_of(os.getpid())
    family.trees([me, child.process])
    child.kill()
    assert family.trees([me, child.process])[child.process] == set(pids)
    os.kill(pids[1], signal.SIGKILL)
    eventually(lambda: family.trees([child.process])[child.process] == {pids[0]})


def test_orphans_stay_when_the_process_between_dies(child: Child, family: lineage.Lineage) -> None:
    first, second = child.tree(0, depth=1)
    family.trees([child.process])
    os.kill(first, signal.SIGKILL)
    eventually(lambda: family.trees([child.process])[child.process] == {child.pid, second})


def test_tree_is_empty_when_the_holder_is_a_zombie_without_children(child: Child, family: lineage.Lineage) -> None:
    child.kill(reap=False)
    assert family.trees([child.process]) == {child.process: set()}


def test_tree_is_empty_when_the_id_belongs_to_a_later_process(child: Child, family: lineage.Lineage) -> None:
    earlier = Process(child.pid, child.process.start_time - 1)
    assert family.trees([earlier]) == {earlier: set()}
    assert family.owners([child.pid], [earlier]) == {}


def test_owner_is_remembered_when_a_listed_process_has_exited(child: Child, family: lineage.Lineage) -> None:
    me = process_of(os.getpid())
    assert family.owners([child.pid], [me]) == {child.pid: me}
    child.kill()
    assert family.owners([child.pid], [me]) == {child.pid: me}
    assert family.owners([child.pid], [me]) == {child.pid: me}
    assert family.owners([child.pid], []) == {}


def test_owner_is_the_holder_itself_when_it_has_exited_and_is_listed(child: Child, family: lineage.Lineage) -> None:
    child.kill()
    assert family.owners([child.pid], [child.process]) == {child.pid: child.process}


def test_owner_is_remembered_when_the_holder_has_exited(child: Child, family: lineage.Lineage) -> None:
    (pid,) = child.tree(0)
    assert family.owners([pid], [child.process]) == {pid: child.process}
    child.kill()
    assert family.owners([pid], [child.process]) == {pid: child.process}


def test_owner_is_nobody_when_the_process_is_a_stranger(child: Child, family: lineage.Lineage) -> None:
    assert family.owners([os.getpid(), 1, 2**22 + 1], [child.process]) == {}


def test_ancestors_that_form_a_ring_are_given_up(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path / "proc")
    tree.process(5, parent=6)
    tree.process(6, parent=5)
    assert lineage.Lineage(procfs.ProcFs(tree.root)).owners([5], [Process(9, 1)]) == {}
