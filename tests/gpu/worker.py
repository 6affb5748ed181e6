"""A process that holds CUDA memory and does what it is told on its standard input."""

from __future__ import annotations

import subprocess
import sys

from tests.gpu import cuda


def _start_child(size: str) -> subprocess.Popen[str]:
    # A context does not survive a fork, so the child is a new process.
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    child.stdin.write(f"take {size}\n")
    child.stdin.flush()
    assert child.stdout.readline().strip() == "done"
    return child


def main() -> None:
    """Serves ``take BYTES``, ``give-back`` and ``child BYTES`` until the input ends."""
    context = cuda.Cuda()
    children: list[subprocess.Popen[str]] = []
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        if word == "take":
            context.take(int(argument))
        elif word == "give-back":
            context.give_back()
        elif word == "child":
            children.append(_start_child(argument))
        print("done", flush=True)
    for child in children:
        child.communicate()


if __name__ == "__main__":
    main()
