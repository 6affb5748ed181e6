"""Locks keep a second server out, and the epoch only ever grows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import instance
from tests.running import ROOT


@pytest.fixture
def locks() -> Iterator[instance.InstanceLocks]:
    made = instance.InstanceLocks()
    yield made
    made.release()


def test_lock_names_its_holder_when_it_is_taken(tmp_path: Path, locks: instance.InstanceLocks) -> None:
    path = tmp_path / "lock"
    locks.take(path)
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    second = instance.InstanceLocks()
    with pytest.raises(instance.InstanceTakenError, match=f"is held by process {os.getpid()}"):
        second.take(path)
    second.release()
    with pytest.raises(instance.InstanceTakenError):
        instance.InstanceLocks().take(path)


def test_lock_is_free_when_it_was_released(tmp_path: Path, locks: instance.InstanceLocks) -> None:
    path = tmp_path / "lock"
    path.write_text("12345678901234567890 from somebody before\n")
    locks.take(path)
    locks.release()
    locks.release()
    assert path.exists()
    second = instance.InstanceLocks()
    second.take(path)
    assert path.read_text() == f"{os.getpid()}\n"
    second.release()


def test_lock_is_free_when_its_holder_was_killed(tmp_path: Path, locks: instance.InstanceLocks) -> None:
    path = tmp_path / "lock"
    program = (
        "import pathlib, sys, signal; from arbiter_sidecar.adapters import instance;"
        "locks = instance.InstanceLocks(); locks.take(pathlib.Path(sys.argv[1])); print('taken', flush=True);"
        "signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        with pytest.raises(instance.InstanceTakenError, match=str(holder.pid)):
            locks.take(path)
        holder.kill()
        holder.wait()
    locks.take(path)


def test_lock_cannot_be_taken_when_there_is_no_such_folder(tmp_path: Path, locks: instance.InstanceLocks) -> None:
    with pytest.raises(FileNotFoundError):
        locks.take(tmp_path / "none" / "lock")


def test_epoch_grows_by_one_with_each_start(tmp_path: Path) -> None:
    assert [instance.next_epoch(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert (tmp_path / "epoch").read_text() == "3\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch"]


def test_epoch_goes_on_when_a_former_start_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text(" 41\n")
    (tmp_path / "epoch.new").write_text("garbage")
    assert instance.next_epoch(tmp_path) == 42


@pytest.mark.parametrize(
    "content", [b"", b"-1", b"1.5", b"x", b"\xff", "²".encode(), b"1 2", b"9" * 5000, b"2147483647"], ids=repr
)
def test_epoch_is_not_guessed_when_its_file_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epoch").write_bytes(content)
    with pytest.raises(OSError, match="does not hold an epoch"):
        instance.next_epoch(tmp_path)
    assert (tmp_path / "epoch").read_bytes() == content


def test_fences_of_the_last_epoch_fit_into_the_wire(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text(str(instance.MAX_EPOCH - 1))
    epoch = instance.next_epoch(tmp_path)
    assert ((epoch + 1) << 32) - 1 <= (1 << 63) - 1
