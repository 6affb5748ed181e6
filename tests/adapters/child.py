"""Starts programs that hold memory, and ends them and everything below them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from arbiter_sidecar.adapters import procfs
from arbiter_sidecar.types import Process

if TYPE_CHECKING:
    from types import TracebackType

_PROGRAM = Path(__file__).with_name("program.py")
#: Somebody without rights over our processes.
_NOBODY = 65534
#: Seconds; a guard against hanging.
GUARD_S = 20.0


class Child:
    """A running program; its process group goes with it."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-S", "-E", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert self._answer() == "ready"
        self.pid = self._popen.pid
        stat = procfs.ProcFs().stat(self.pid)
        assert stat is not None
        self.process: Process = stat.process

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.communicate(timeout=GUARD_S)

    def tell(self, command: str) -> str:
        """Sends one command and returns the answer to it."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(command + "\n")
        self._popen.stdin.flush()
        return self._answer()

    def tree(self, size: int, depth: int = 0) -> list[int]:
        """Makes it fork a child holding ``size`` bytes with ``depth`` more below it; their ids."""
        return [int(word) for word in self.tell(f"tree {size} {depth}").split()]

    def kill(self, *, reap: bool = True) -> None:
        """Kills it alone with SIGKILL; without ``reap`` it stays a zombie."""
        self._popen.kill()
        if reap:
            self._popen.wait(GUARD_S)
        else:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def _answer(self) -> str:
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().strip()


def process_of(pid: int) -> Process:
    """The process that has this id now."""
    stat = procfs.ProcFs().stat(pid)
    assert stat is not None
    return stat.process


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for what the kernel does in its own time."""
    end = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.005)


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Takes root's rights from this process for a while; others have none to lose."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
