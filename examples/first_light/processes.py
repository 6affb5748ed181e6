"""Starts the arbiter and the workers as processes of their own and makes sure that none is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_LEASH = Path(__file__).with_name("leash.py")
_ROOT = Path(__file__).parents[2]
#: A worker looks up from its work about once a second, and the arbiter drains for a few seconds.
_POLITE_S = 15.0
_KILL_S = 5.0


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block has ended; for the main thread.

    Inside, what was begun is finished: no process is started that nobody knows, and none is half stopped.
    """
    came: list[tuple[int, FrameType | None]] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, lambda number, frame: came.append((number, frame))) for number in numbers}
    try:
        yield
    finally:
        for number, reaction in former.items():
            signal.signal(number, reaction)
    for received, frame in came:
        reaction = former[signal.Signals(received)]
        if callable(reaction):
            reaction(received, frame)


@dataclass(slots=True)
class Child:
    """A process that we started.

    Attributes:
        name: For people.
        process: The process.
        log: Where its output goes.
        may_end: Its end is expected from now on.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    may_end: bool = False

    @property
    def pid(self) -> int:
        """Its process id, also after it has ended."""
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.poll()


class Children:
    """Every process of the demonstration.

    Args:
        logs: Folder for their output.
    """

    __slots__ = ("_all", "_logs")

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._all: list[Child] = []

    def start(self, name: str, module: str, *arguments: str, piped: bool = False) -> Child:
        """Runs `python -m module arguments`; output goes to a log file that carries on where a former one ended.

        With `piped`, only its standard error goes there, and the caller reads and writes the pipes of the rest.

        Raises:
            OSError: The process could not be started.
        """
        log = self._logs / f"{name}.log"
        command = [sys.executable, str(_LEASH), str(os.getpid()), sys.executable, "-m", module, *arguments]
        # What this process can import its children can import, wherever the packages are.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with log.open("ab") as output, undisturbed():
            process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else output,
                stderr=output if piped else subprocess.STDOUT,
                # Ctrl-C in the terminal reaches this process alone, which then stops the others in order.
                start_new_session=True,
            )
            child = Child(name, process, log)
            self._all.append(child)
        return child

    def kill(self, child: Child) -> None:
        """Ends a process without giving it a chance to say anything."""
        child.may_end = True
        child.process.kill()

    def ask_to_stop(self, child: Child) -> None:
        """Asks a process to stop and does not wait for it."""
        child.may_end = True
        child.process.terminate()

    def stop(self, child: Child) -> int:
        """Asks a process to stop, waits, and kills it when it does not; returns its exit code."""
        self.ask_to_stop(child)
        try:
            return child.process.wait(_POLITE_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            return child.process.wait(_KILL_S)

    def ended_unexpectedly(self) -> list[Child]:
        """Processes whose end nobody asked for."""
        return [child for child in self._all if not child.may_end and child.exit_code is not None]

    def stop_all(self) -> list[str]:
        """Stops what still runs, newest first, so that the arbiter outlives the workers; returns what went wrong."""
        troubles = []
        for child in reversed(self._all):
            if child.exit_code is not None:
                continue
            code = self.stop(child)
            if code != 0:
                troubles.append(f"{child.name} ended with exit code {code} when it was asked to stop")
        return troubles


def wait_for_line(child: Child, text: str, limit_s: float) -> None:
    """Returns when the process has written a line with `text`.

    Raises:
        RuntimeError: It ended, or did not write it in time; the message shows what it wrote last.
    """
    deadline = time.monotonic() + limit_s
    while True:
        code = child.exit_code
        written = child.log.read_text(encoding="utf-8", errors="replace")
        if text in written:
            return
        if code is not None or time.monotonic() > deadline:
            state = f"ended with exit code {code}" if code is not None else f"was not ready within {limit_s:.0f} s"
            raise RuntimeError(f"{child.name} {state}; it wrote:\n{written[-2000:]}")
        time.sleep(0.05)
