"""A machine of its own in which process ids come again: a server, and processes that hold memory.

    python -m tests.faults.apart python -m tests.faults.reborn FOLDER [FLAG…]

The server keeps everything in FOLDER. Standard input says what happens then, each line is answered with one:

    hold MIB            a new process holds so much memory; answers "holding PID"
    reborn PID MIB      ends that process, and gives its id to a new one that holds so much; answers "holding PID"
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.faults.worker import fork_holder
from tests.running import GUARD_S, serve_command

#: The id that the kernel gave last; writing it needs to be root in this process namespace.
_LAST_ID = Path("/proc/sys/kernel/ns_last_pid")
#: A thread of the server may take the id before us; then it is tried again.
_ATTEMPTS = 50


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # Until then the id is not free.


def _holder_called(pid: int, memory_mib: int) -> None:
    for _ in range(_ATTEMPTS):
        _LAST_ID.write_text(str(pid - 1), encoding="ascii")
        child = fork_holder(memory_mib)
        if child == pid:
            return
        _end(child)
    raise OSError(f"process id {pid} does not come again")


def main(arguments: list[str]) -> None:
    """Serves and obeys until its input ends."""
    server = subprocess.Popen(serve_command(Path(arguments[0]), *arguments[1:]), stdin=subprocess.DEVNULL)
    for line in sys.stdin:
        match line.split():
            case ["hold", memory_mib]:
                pid = fork_holder(int(memory_mib))
            case ["reborn", former, memory_mib]:
                pid = int(former)
                _end(pid)
                _holder_called(pid, int(memory_mib))
            case words:
                raise ValueError(f"cannot do {words}")
        print("holding", pid, flush=True)
    server.terminate()
    server.wait(GUARD_S)


if __name__ == "__main__":
    main(sys.argv[1:])
