"""Runs a command in a process namespace of its own, as in a container, without being root.

    python -m tests.faults.apart COMMAND ARGUMENT…

The command is process 1 there, sees no process but its own descendants, and is root towards its namespace only. SIGTERM
is passed on to it; it ends with us and we with its exit code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

# From the kernel's sched.h, mount.h and prctl.h.
_NEW_MOUNTS, _NEW_USER, _NEW_PIDS = 0x00020000, 0x10000000, 0x20000000
_RECURSIVE, _PRIVATE = 0x4000, 1 << 18
_DIE_WITH_PARENT = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _succeeded(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}; this machine does not allow namespaces to us")


def _leave() -> None:
    """The next child is the first process of a new namespace."""
    user, group = os.getuid(), os.getgid()
    _succeeded(_libc.unshare(_NEW_USER | _NEW_PIDS | _NEW_MOUNTS), "unshare")
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny", encoding="ascii")
    (own / "uid_map").write_text(f"0 {user} 1", encoding="ascii")
    (own / "gid_map").write_text(f"0 {group} 1", encoding="ascii")


def _become(command: list[str]) -> None:
    """Makes /proc show the new namespace and turns into the command."""
    _succeeded(_libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0), "prctl")
    _succeeded(_libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None), "mount /")
    _succeeded(_libc.mount(b"proc", b"/proc", b"proc", 0, None), "mount /proc")
    os.execvp(command[0], command)


def main(command: list[str]) -> int:
    """The exit code of the command, or 1 when a signal ended it."""
    _leave()
    child = os.fork()
    if child == 0:
        _become(command)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
