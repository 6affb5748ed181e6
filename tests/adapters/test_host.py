from __future__ import annotations

import os
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import host, procfs
from arbiter_sidecar.types import GIB, MIB, Attribution, DeviceKind, Guest, Process
from tests.adapters.child import Child, process_of, without_rights
from tests.adapters.proc_tree import ProcTree

_BLOCK = 32 * MIB
#: What the interpreters of a tree need beside the blocks that they were told to hold.
_SLACK = 24 * MIB


def _budgeted(foreign: str | None = None) -> host.HostMemoryProbe:
    return host.HostMemoryProbe(host.HostConfig(budget_bytes=GIB, foreign=foreign))


def _held(probe: host.HostMemoryProbe, process: Process) -> int:
    held = probe.sample([process]).held_bytes[process]
    assert held is not None
    return held


def test_capacity_is_exactly_the_budget() -> None:
    facts = _budgeted().facts
    assert (facts.device_id, facts.kind, facts.attribution) == ("host", DeviceKind.HOST, Attribution.PER_PROCESS)
    assert facts.total_bytes == facts.capacity_bytes == GIB


def test_capacity_is_the_machine_less_the_reserve_when_there_is_no_budget() -> None:
    facts = host.HostMemoryProbe(host.HostConfig()).facts
    assert 0 < facts.capacity_bytes <= facts.total_bytes * 9 // 10 + 1


def test_cap_still_takes_the_reserve() -> None:
    facts = host.HostMemoryProbe(host.HostConfig(cap_bytes=GIB)).facts
    assert facts.capacity_bytes == 512 * MIB
    assert facts.total_bytes > GIB


def test_budget_is_refused_when_it_is_not_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        host.HostMemoryProbe(host.HostConfig(budget_bytes=0))


def test_use_follows_what_the_tree_holds(child: Child) -> None:
    probe = _budgeted()
    child.tell(f"hold {_BLOCK}")
    alone = _held(probe, child.process)
    child.tell("hold 0")
    empty = _held(probe, child.process)
    child.tree(_BLOCK, depth=2)
    family = _held(probe, child.process)
    assert empty <= _SLACK
    assert _BLOCK <= alone <= _BLOCK + _SLACK
    assert 3 * _BLOCK <= family <= 3 * _BLOCK + _SLACK


def test_pages_that_a_tree_shares_count_once(child: Child) -> None:
    probe = _budgeted()
    child.tell(f"hold {_BLOCK}")
    child.tree(0, depth=3)
    assert _held(probe, child.process) <= _BLOCK + _SLACK


def test_used_is_the_sum_of_the_holders_with_a_budget(child: Child) -> None:
    (pid,) = child.tree(_BLOCK)
    inner = process_of(pid)
    sample = _budgeted().sample([child.process, inner])
    sizes = [sample.held_bytes[child.process], sample.held_bytes[inner]]
    assert None not in sizes
    assert sample.used_bytes == sum(size or 0 for size in sizes)
    assert sample.foreign_bytes == 0
    assert (sample.held_bytes[child.process] or 0) < _BLOCK <= (sample.held_bytes[inner] or 0)
    assert sample.machine_available_bytes == pytest.approx(procfs.ProcFs().meminfo("MemAvailable"), rel=0.5)


def test_holder_holds_nothing_when_it_was_killed(child: Child) -> None:
    probe = _budgeted()
    child.tell(f"hold {_BLOCK}")
    assert _held(probe, child.process) >= _BLOCK
    child.kill(reap=False)
    assert _held(probe, child.process) == 0


def test_orphans_of_a_killed_holder_are_still_charged_to_it(child: Child) -> None:
    probe = _budgeted()
    child.tree(_BLOCK, depth=1)
    assert _held(probe, child.process) >= 2 * _BLOCK
    child.kill()
    assert 2 * _BLOCK <= _held(probe, child.process) <= 2 * _BLOCK + _SLACK


def test_holder_is_unknown_when_it_cannot_be_read(child: Child) -> None:
    probe = _budgeted()
    child.tell("hide")
    with without_rights():
        sample = probe.sample([child.process])
    assert sample.held_bytes == {child.process: None}
    assert sample.used_bytes is None
    assert sample.foreign_bytes == 0
    assert f"process {child.pid} cannot be read" in sample.detail


def test_foreign_is_unknown_in_machine_mode_when_a_holder_is(child: Child) -> None:
    probe = host.HostMemoryProbe(host.HostConfig())
    assert probe.foreign_word == "machine"
    child.tell("hide")
    with without_rights():
        sample = probe.sample([child.process])
    assert sample.foreign_bytes is None
    assert sample.used_bytes is not None


def test_machine_mode_leaves_the_rest_to_strangers(child: Child) -> None:
    child.tell(f"hold {_BLOCK}")
    sample = _budgeted("machine").sample([child.process])
    held = sample.held_bytes[child.process]
    assert held is not None
    assert sample.foreign_bytes is not None
    assert sample.used_bytes == held + sample.foreign_bytes


@pytest.mark.parametrize(("word", "counted"), [("none", False), ("machine", True)])
def test_guest_is_foreign_as_far_as_the_rule_says(child: Child, word: str, counted: bool) -> None:
    child.tree(_BLOCK)
    child.tell(f"hold {_BLOCK}")
    sample = _budgeted(word).sample([], [child.process])
    guest = sample.guests[child.process]
    assert 2 * _BLOCK <= guest.held_bytes <= 2 * _BLOCK + _SLACK
    assert guest.foreign_bytes == (guest.held_bytes if counted else 0)
    assert sample.held_bytes == {}


def test_guest_is_foreign_as_far_as_it_is_listed(child: Child, tmp_path: Path) -> None:
    (below,) = child.tree(_BLOCK)
    listing = tmp_path / "pids"
    listing.write_text(f"{below}\n")
    sample = _budgeted(f"pids:{listing}").sample([], [child.process])
    guest = sample.guests[child.process]
    assert sample.foreign_bytes is not None
    # Shares of pages are counted anew with each reading.
    assert abs(guest.foreign_bytes - sample.foreign_bytes) <= _SLACK
    assert _BLOCK <= guest.foreign_bytes < guest.held_bytes


def test_guest_below_a_holder_is_part_of_it_and_one_above_keeps_the_rest(child: Child) -> None:
    (below,) = child.tree(_BLOCK)
    inner = process_of(below)
    above = _budgeted().sample([inner], [child.process])
    assert above.guests[child.process].held_bytes <= _SLACK
    under = _budgeted().sample([child.process], [inner])
    held = under.held_bytes[child.process]
    assert held is not None
    assert held >= _BLOCK
    assert under.guests == {inner: Guest(0, 0)}


def test_guest_is_left_out_when_it_cannot_be_read(child: Child) -> None:
    probe = host.HostMemoryProbe(host.HostConfig())
    child.tell("hide")
    with without_rights():
        sample = probe.sample([], [child.process])
    assert sample.guests == {}
    assert (sample.foreign_bytes or 0) > 0, "others are measured all the same"
    assert sample.detail == ""


def test_estimate_is_said_when_the_kernel_has_no_proportional_share(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path / "proc")
    tree.meminfo(MemTotal=1024**2, MemAvailable=1024)
    (tree.process(7) / "statm").write_text("900 300 100 1 0 1 0\n")
    probe = host.HostMemoryProbe(host.HostConfig(budget_bytes=GIB, proc_root=tree.root))
    sample = probe.sample([Process(7, 1000)])
    assert sample.held_bytes[Process(7, 1000)] == 200 * os.sysconf("SC_PAGE_SIZE")
    assert "no proportional share" in sample.detail


@pytest.fixture
def limited(tmp_path: Path) -> ProcTree:
    """A machine with 64 GiB on which our control group's parent may use 16 GiB."""
    tree = ProcTree(tmp_path / "proc")
    tree.meminfo(MemTotal=64 * 1024**2, MemAvailable=60 * 1024**2)
    (tree.root / "self").mkdir()
    (tree.root / "self" / "cgroup").write_text("4:memory:/other\n0::/pod/arbiter\n")
    group = tmp_path / "cgroup" / "pod" / "arbiter"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text(f"{16 * GIB}\n")
    (group.parent / "memory.current").write_text(f"{3 * GIB}\n")
    return tree


def test_control_group_bounds_the_machine(limited: ProcTree, tmp_path: Path) -> None:
    config = host.HostConfig(proc_root=limited.root, cgroup_root=tmp_path / "cgroup")
    probe = host.HostMemoryProbe(config)
    assert probe.facts.total_bytes == 16 * GIB
    assert probe.facts.capacity_bytes == 16 * GIB - 16 * GIB // 10
    sample = probe.sample([])
    assert (sample.used_bytes, sample.foreign_bytes) == (3 * GIB, 3 * GIB)
    assert sample.machine_available_bytes == 60 * GIB


def test_control_group_does_not_matter_when_it_is_larger(limited: ProcTree, tmp_path: Path) -> None:
    (tmp_path / "cgroup" / "pod" / "memory.max").write_text(f"{128 * GIB}\n")
    probe = host.HostMemoryProbe(host.HostConfig(proc_root=limited.root, cgroup_root=tmp_path / "cgroup"))
    assert probe.facts.total_bytes == 64 * GIB
    assert probe.foreign_word == "machine"


@pytest.mark.parametrize("line", ["0::/../sibling", "4:memory:/only", ""])
def test_control_group_is_ignored_when_it_names_nothing_here(limited: ProcTree, tmp_path: Path, line: str) -> None:
    (limited.root / "self" / "cgroup").write_text(line + "\n")
    probe = host.HostMemoryProbe(host.HostConfig(proc_root=limited.root, cgroup_root=tmp_path / "cgroup"))
    assert probe.facts.total_bytes == 64 * GIB
