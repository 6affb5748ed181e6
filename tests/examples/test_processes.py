"""Nothing that the demonstration starts outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import memory
from examples.first_light import leash
from examples.first_light.processes import Children, wait_for_line

#: A guard against hanging, ten times what a slow machine needs.
PATIENCE_S = 30.0


def gone(pid: int) -> bool:
    """Whether the process ends within the guard time; a zombie that nobody has waited for counts as ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_leashed_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep({PATIENCE_S})"
    parent = (
        "import os, subprocess, sys, time\n"
        f"leash = [sys.executable, {leash.__file__!r}, str(os.getpid())]\n"
        f"p = subprocess.Popen([*leash, sys.executable, '-c', {child!r}])\n"
        "print(p.pid, flush=True)\n"
        f"time.sleep({PATIENCE_S})\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        deadline = time.monotonic() + PATIENCE_S
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ready.exists()
        process.kill()

    assert gone(pid)


def test_leash_refuses_when_the_parent_is_gone_already() -> None:
    done = subprocess.run(
        [sys.executable, leash.__file__, "1", sys.executable, "-c", "print('ran')"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 1
    assert "gone" in done.stderr
    assert done.stdout == ""


def test_stop_all_ends_everything_when_children_are_willing(tmp_path: Path) -> None:
    children = Children(tmp_path)
    child = children.start("sleeper", "tests.examples.sleeper")
    wait_for_line(child, "asleep", PATIENCE_S)

    assert children.ended_unexpectedly() == []
    assert children.stop_all() == []
    assert child.exit_code == 0


def test_stop_all_tells_when_a_child_did_not_end_well(tmp_path: Path) -> None:
    children = Children(tmp_path)
    child = children.start("sleeper", "tests.examples.sleeper", "9")
    wait_for_line(child, "asleep", PATIENCE_S)

    assert children.stop_all() == ["sleeper ended with exit code 9 when it was asked to stop"]


def test_unexpected_end_is_noticed_when_a_child_dies(tmp_path: Path) -> None:
    children = Children(tmp_path)
    child = children.start("sleeper", "tests.examples.sleeper")
    wait_for_line(child, "asleep", PATIENCE_S)
    os.kill(child.pid, signal.SIGKILL)
    assert gone(child.pid)

    assert children.ended_unexpectedly() == [child]
    assert memory.tree_proportional_bytes(child.pid) == 0


def test_kill_is_no_surprise_when_it_was_ours(tmp_path: Path) -> None:
    children = Children(tmp_path)
    child = children.start("sleeper", "tests.examples.sleeper")
    wait_for_line(child, "asleep", PATIENCE_S)
    children.kill(child)
    assert gone(child.pid)

    assert child.exit_code == -signal.SIGKILL
    assert children.ended_unexpectedly() == []


def test_wait_for_line_shows_the_log_when_the_process_ends(tmp_path: Path) -> None:
    children = Children(tmp_path)
    child = children.start("broken", "tests.examples.no_such_module")

    with pytest.raises(RuntimeError, match=r"broken ended with exit code 1.*\n.*no_such_module"):
        wait_for_line(child, "ready", PATIENCE_S)


def test_tree_counts_children_when_a_process_has_some() -> None:
    with subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({PATIENCE_S})"]) as process:
        assert process.pid in memory.tree(os.getpid())
        assert memory.tree_proportional_bytes(os.getpid()) > memory.proportional_bytes(os.getpid())
        process.kill()
    assert process.pid not in memory.tree(os.getpid())


def test_resident_memory_is_at_least_the_proportional_one_when_measured() -> None:
    assert memory.resident_bytes() >= memory.proportional_bytes() > 0
