"""A real arbiter in a process of its own, started as a person would start it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.contracts import checkout

#: Lines of the log that are kept to tell a failure by.
_KEPT_LINES = 200
#: Ten times what a start takes on a slow machine; a guard, not a promise.
_GUARD_S = 60


class Log:
    """Takes in the log of a process, so that its pipe never fills, and knows when the process serves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._serving = threading.Event()
        self._ended = threading.Event()
        assert process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, lines: Iterator[str]) -> None:
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
        assert self._serving.wait(_GUARD_S), f"does not serve: {self.text}"
        assert not self._ended.is_set(), f"ended: {self.text}"

    @property
    def text(self) -> str:
        """The last lines."""
        return "".join(self._lines)


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Log]:
    """Runs a server until the block ends; it must end by itself, with exit code 0, when it is told to."""
    process = subprocess.Popen(
        list(command),
        cwd=checkout.ROOT,
        env=dict(environment if environment is not None else os.environ),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log = Log(process)
        log.wait_until_serving()
        yield log
        process.terminate()
        assert process.wait(_GUARD_S) == 0, log.text
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def serve_command(folder: Path) -> list[str]:
    """The command of an arbiter that shares 1 GiB of host memory and keeps everything in ``folder``."""
    return [
        *(sys.executable, "-m", "arbiter_sidecar", "serve"),
        *("--socket", str(folder / "arbiter.sock"), "--state-dir", str(folder / "state")),
        *("--devices", "host", "--host-budget", "1GiB"),
    ]
