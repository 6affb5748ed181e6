"""What the runtime needs from the outside; adapters implement it, tests replace it at this height and no higher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from arbiter_sidecar.types import DeviceFacts, DeviceSample, Process


class Clock(Protocol):
    """The clocks of the machine."""

    def now(self) -> float:
        """Monotonic seconds; every decision uses this. Stands still while the machine sleeps, as its workers do."""

    def slept(self) -> float:
        """Seconds that the machine has been suspended since it booted; grows by each sleep, and only then."""

    def wall(self) -> float:
        """Seconds since 1970; shown to people, never decided upon."""


class DeviceProbe(Protocol):
    """Asks one device. Calls may block, so they are made in the probe thread only."""

    @property
    def facts(self) -> DeviceFacts:
        """What was found out when the probe was made."""

    def sample(self, holders: Sequence[Process]) -> DeviceSample:
        """Measures the device and the process trees under ``holders``.

        Raises:
            OSError: The driver or kernel could not be asked; the caller keeps the last sample and marks it stale.
        """

    def close(self) -> None:
        """Lets go of the driver."""


class ProcessWatch(Protocol):
    """Knows processes and notices their death. Used on the event loop's thread; never blocks."""

    def identify(self, pid: int) -> Process | None:
        """The process that has this id now; ``None`` when there is none that we can see."""

    def watch(self, process: Process, on_exit: Callable[[Process], None]) -> bool:
        """Calls ``on_exit`` once, on the event loop, when ``process`` has exited; False when it is gone already.

        Watching the same process twice is allowed and calls back twice.
        """

    def signal(self, process: Process, number: int) -> bool:
        """Sends a signal to a process; False when it has gone or may not be signalled. Never hits another process."""

    def unwatch(self, process: Process) -> None:
        """Forgets every watch of ``process``; unknown ones are fine."""

    def close(self) -> None:
        """Forgets everything."""
