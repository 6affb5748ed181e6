"""How a quality is published, in whole hundredths and whole milliseconds, written from the definition alone."""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 2
"""Hundredths a target must be above the published value before it counts as a rise."""

DWELL_MS = 5_000
"""How long a rise must last before the first step."""

STEP_MS = 1_000
"""Time between two steps of one climb."""

LEAST_STEP = 5
"""Hundredths of the smallest step."""


@dataclass(slots=True)
class PublisherModel:
    """One published quality."""

    quality: int
    due: int | None = None

    def observe(self, target: int, now: int) -> int | None:
        """Takes the target that holds from ``now`` on; returns when it wants to be asked again."""
        gap = target - self.quality
        if gap < MARGIN:
            self.quality = min(self.quality, target)
            self.due = None
            return None
        if self.due is None:
            self.due = now + DWELL_MS
        if now < self.due:
            return self.due
        size = min(gap, max(gap // 4, LEAST_STEP))
        if gap - size < MARGIN:
            size = gap
        self.quality += size
        self.due = None if size == gap else now + STEP_MS
        return self.due
