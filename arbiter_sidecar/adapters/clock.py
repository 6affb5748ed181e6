"""The clocks of the machine."""

from __future__ import annotations

import time


class MonotonicClock:
    """Monotonic and wall time of this machine; implements the clock port."""

    __slots__ = ()

    def now(self) -> float:
        """Seconds since an arbitrary point, never going back; suspended time is not counted."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970, for people only."""
        return time.time()
