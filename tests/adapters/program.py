"""A process that does what it is told on its standard input, one word and one number a line, and answers in kind.

It imports nothing of ours: its size and its children are what the tests say they are.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PAGE_BYTES = 4096
_PR_SET_DUMPABLE = 4


def _filled(size: int) -> bytearray:
    block = bytearray(size)
    for offset in range(0, size, _PAGE_BYTES):
        block[offset] = 1
    return block


def _child(size: int, depth: int) -> list[int]:
    """Forks a child holding ``size`` bytes, with ``depth`` more below each other; their ids, the nearest first."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        with os.fdopen(reader) as answers:
            return [pid, *(int(word) for word in answers.readline().split())]
    below = _child(size, depth - 1) if depth else []
    block = _filled(size)
    os.write(writer, (" ".join(map(str, below)) + "\n").encode())
    os.close(writer)
    signal.pause()
    os._exit(len(block) & 1)


def _leave_leader() -> None:
    """Ends the main thread; another one keeps the process alive."""
    started = threading.Event()

    def stay() -> None:
        started.set()
        signal.pause()

    threading.Thread(target=stay).start()
    started.wait()
    print("left", flush=True)
    ctypes.CDLL(None).pthread_exit(None)


def main() -> None:
    """Serves commands until the input ends."""
    block = bytearray()
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        answer = "done"
        if word == "hold":
            block = bytearray()
            block = _filled(int(argument))
        elif word == "tree":
            size, depth = argument.split()
            answer = " ".join(map(str, _child(int(size), int(depth))))
        elif word == "call":
            with open("/proc/self/comm", "w") as file:
                file.write(argument)
        elif word == "hide":
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        elif word == "leave":
            _leave_leader()
        print(answer, flush=True)
    del block


if __name__ == "__main__":
    main()
