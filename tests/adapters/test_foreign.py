from __future__ import annotations

import os
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import foreign, procfs
from arbiter_sidecar.types import MIB
from tests.adapters.child import Child, without_rights
from tests.adapters.proc_tree import ProcTree

_PROC = procfs.ProcFs()


def _machine(tmp_path: Path) -> procfs.ProcFs:
    tree = ProcTree(tmp_path / "proc")
    tree.meminfo(MemTotal=1000, MemAvailable=400)
    return procfs.ProcFs(tree.root)


def test_nothing_is_foreign_by_rule_none() -> None:
    assert foreign.parse("none", _PROC).measure(None, set()) == foreign.Measured(0, looked_at=frozenset())


@pytest.mark.parametrize(
    ("held", "expected", "used"),
    [(0, 600 * 1024, 600 * 1024), (200 * 1024, 400 * 1024, 600 * 1024), (900 * 1024, 0, 900 * 1024)],
)
def test_machine_counts_what_holders_do_not_use(tmp_path: Path, held: int, expected: int, used: int) -> None:
    measured = foreign.parse("machine", _machine(tmp_path)).measure(held, set())
    assert measured == foreign.Measured(expected, used_bytes=used)


def test_machine_is_unknown_when_a_holder_is(tmp_path: Path) -> None:
    measured = foreign.parse("machine", _machine(tmp_path)).measure(None, set())
    assert measured == foreign.Measured(None, used_bytes=600 * 1024)


def test_cgroup_counts_what_holders_do_not_use(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "memory.current").write_text("5000\n")
    for place in ("group", f"{tmp_path}/group"):
        rule = foreign.parse(f"cgroup:{place}", _PROC, tmp_path)
        assert rule.measure(2000, set()) == foreign.Measured(3000, used_bytes=5000)


def test_cgroup_fails_when_it_cannot_be_read(tmp_path: Path) -> None:
    rule = foreign.parse("cgroup:absent", _PROC, tmp_path)
    with pytest.raises(FileNotFoundError):
        rule.measure(0, set())
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "memory.current").write_text("plenty\n")
    with pytest.raises(OSError, match="no number of bytes"):
        rule.measure(0, set())


def test_listed_processes_count_unless_they_are_a_holders(child: Child, tmp_path: Path) -> None:
    child.tell(f"hold {32 * MIB}")
    listing = tmp_path / "pids"
    listing.write_text(f"{child.pid}\n\n  {2**22 + 1}\n{os.getpid()}\n")
    rule = foreign.parse(f"pids:{listing}", _PROC)
    both = rule.measure(0, set()).size_bytes
    one = rule.measure(0, {os.getpid()}).size_bytes
    assert both is not None
    assert one is not None
    assert both > one >= 32 * MIB
    assert rule.measure(0, {os.getpid(), child.pid}).size_bytes == 0


def test_listed_processes_are_unknown_when_one_hides(child: Child, tmp_path: Path) -> None:
    child.tell("hide")
    listing = tmp_path / "pids"
    listing.write_text(f"{child.pid}\n")
    # The folder of a test is its owner's alone; an open descriptor is readable without rights over it.
    with listing.open() as file, without_rights():
        measured = foreign.parse(f"pids:/proc/self/fd/{file.fileno()}", _PROC).measure(0, set())
    assert measured.size_bytes is None
    assert f"listed process {child.pid} cannot be read" in measured.detail


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("1\nme\n", "line 2: 'me' is not a process id"), ("-1\n", "line 1"), ("1\n" * 5000, "longer than 4096 lines")],
)
def test_list_is_refused_when_it_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    listing = tmp_path / "pids"
    listing.write_text(text)
    with pytest.raises(OSError, match=complaint):
        foreign.parse(f"pids:{listing}", _PROC).measure(0, set())


@pytest.mark.parametrize("text", ["", "all", "none:x", "machine:x", "cgroup:", "pids:", "cgroup", "pids"])
def test_rule_is_refused_when_it_is_unknown(text: str) -> None:
    with pytest.raises(ValueError, match="must be none, machine, cgroup:PATH or pids:FILE"):
        foreign.parse(text, _PROC)
