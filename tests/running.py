"""A real arbiter in a process of its own, started as a person would start it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Lines of the log that are kept to tell a failure by.
KEPT_LINES = 200
#: Ten times what a start takes on a slow machine; a guard, not a promise.
GUARD_S = 60


class Log:
    """Takes in the log of a process, so that its pipe never fills, and knows when the process serves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._serving = threading.Event()
        self._ended = threading.Event()
        assert process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._lines.append(line)
            if '"event": "serving"' in line:
                self._serving.set()
        self._ended.set()
        self._serving.set()

    def wait_until_serving(self) -> None:
        """Returns when the process serves.

        Raises:
            AssertionError: It ended instead, or does not get there.
        """
        assert self._serving.wait(GUARD_S), f"does not serve: {self.text}"
        assert not self._ended.is_set(), f"ended: {self.text}"

    def wait_until_ended(self) -> None:
        """Returns when everything was read."""
        self._reader.join(GUARD_S)

    @property
    def text(self) -> str:
        """The last lines."""
        return "".join(self._lines)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that serves.

    Attributes:
        address: Its gRPC target.
        socket: Its Unix socket.
        process: Its process.
        log: What it says.
    """

    address: str
    socket: Path
    process: subprocess.Popen[str]
    log: Log


@contextmanager
def launched(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], Log]]:
    """Runs a server from when it serves until the block ends, however that is; leaves nothing behind."""
    process = subprocess.Popen(
        list(command),
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = Log(process)
    try:
        log.wait_until_serving()
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        log.wait_until_ended()
        assert process.stderr is not None
        process.stderr.close()


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Log]:
    """Runs a server until the block ends; it must end by itself, with exit code 0, when it is told to."""
    with launched(command, environment) as (process, log):
        yield log
        process.terminate()
        assert process.wait(GUARD_S) == 0, log.text


def serve_command(folder: Path, *flags: str) -> list[str]:
    """The command of an arbiter that keeps everything in ``folder``; without flags it shares 1 GiB of host memory."""
    chosen = flags or ("--devices", "host", "--host-budget", "1GiB")
    return [
        *(sys.executable, "-m", "arbiter_sidecar", "serve"),
        *("--socket", str(folder / "arbiter.sock"), "--state-dir", str(folder / "state")),
        *("--drain-timeout", "0s", *chosen),
    ]


@contextmanager
def running_server(folder: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A real server until the block ends; it must then end by itself, with exit code 0, when it is told to."""
    with launched(serve_command(folder, *flags), environment) as (process, log):
        socket = folder / "arbiter.sock"
        yield Running(f"unix:{socket}", socket, process, log)
        if process.poll() is None:
            process.terminate()
            assert process.wait(GUARD_S) == 0, log.text
