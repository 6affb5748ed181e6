"""The clocks of the machine, and clocks that a test moves from outside the process."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import structlog

from arbiter_sidecar.ports import Clock

#: Environment variable that names the file with which a test moves the clocks of a real server.
TEST_CLOCK = "ARBITER_TEST_CLOCK"
#: What such a file may move.
NAMES = frozenset({"monotonic", "boottime", "wall"})

_log = structlog.get_logger("arbiter")


class MonotonicClock:
    """Monotonic, suspended and wall time of this machine; implements the clock port."""

    __slots__ = ()

    def now(self) -> float:
        """Seconds since an arbitrary point, never going back; suspended time is not counted."""
        return time.monotonic()

    def slept(self) -> float:
        """Seconds that the machine has been suspended since it booted, to some microseconds."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

    def wall(self) -> float:
        """Seconds since 1970, for people only."""
        return time.time()


class MovedClock:
    """The clocks of this machine plus what a file says, read again whenever it has changed.

    The file is a JSON object with seconds: ``monotonic`` is added to the time that decides, ``wall`` to the time for
    people, and ``boottime`` is by how much the machine seems to have been suspended; what it does not name is left
    alone. Whoever moves the clocks replaces the file in one step. Monotonic time never goes back, whatever it says.

    Raises:
        OSError: The file cannot be read. So do all methods.
        ValueError: It is not such an object. So do all methods.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._machine = MonotonicClock()
        self._version: tuple[int, int] | None = None
        self._offsets: dict[str, float] = {}
        self._newest = 0.0
        self._moved("monotonic")

    def now(self) -> float:
        """Monotonic seconds."""
        self._newest = max(self._newest, self._machine.now() + self._moved("monotonic"))
        return self._newest

    def slept(self) -> float:
        """Seconds that the machine seems to have been suspended."""
        return self._machine.slept() + self._moved("boottime")

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._machine.wall() + self._moved("wall")

    def _moved(self, name: str) -> float:
        found = self._path.stat()
        if self._version != (found.st_ino, found.st_mtime_ns):
            self._offsets = _offsets(self._path)
            self._version = (found.st_ino, found.st_mtime_ns)
        return self._offsets.get(name, 0.0)


def _offsets(path: Path) -> dict[str, float]:
    try:
        offsets = json.loads(path.read_text())
        if isinstance(offsets, dict) and offsets.keys() <= NAMES:
            return {key: float(value) for key, value in offsets.items()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} moves no clock: {error}") from error
    raise ValueError(f"{path} moves no clock: it is no object with some of {', '.join(sorted(NAMES))}")


def chosen() -> Clock:
    """The clock of this machine; one that a test moves where the environment asks for it.

    Raises:
        OSError: The file that it names cannot be read.
        ValueError: The file does not say by how much.
    """
    path = os.environ.get(TEST_CLOCK)
    if path is None:
        return MonotonicClock()
    _log.warning("clock_is_moved_by_a_file", variable=TEST_CLOCK, path=path)
    return MovedClock(Path(path))
