"""When a solved target becomes a published one: down at once, up slowly, never back and forth.

Published quality moves on a grid of hundredths. A worker that is told to shrink must hear it now; one that may grow can
wait, because growing and shrinking again costs it more than being small for some seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Steps per unit of quality.
GRID = 100
#: A rise smaller than this many steps is not worth telling.
MARGIN = 2
#: Seconds for which the target must have been higher before the first rise.
DWELL_S = 5.0
#: Seconds between two rises.
STEP_S = 1.0
#: A rise closes one part in this many of the gap …
GAP_DIVISOR = 4
#: … or this many steps, whichever is more.
MIN_STEP = 5
#: Tolerance for floating-point noise of the solver, far below a step of the grid.
_NOISE = 1e-9


@dataclass(frozen=True, slots=True)
class Published:
    """What one lease was told, and since when it could be told more.

    Attributes:
        quality: The published quality.
        rising_since: Monotonic seconds since which the target has been higher by the margin; ``None`` when it is not.
        next_step: Monotonic seconds of the next rise; ``None`` when none is due.
    """

    quality: float
    rising_since: float | None = None
    next_step: float | None = None


def quantise(target: float, *, minimum: float, maximum: float) -> float:
    """The target rounded down to the grid, never below ``minimum``, exactly ``maximum`` when it reaches that."""
    if target >= maximum - _NOISE:
        return maximum
    return max(minimum, math.floor(target * GRID + _NOISE * GRID) / GRID)


def step(state: Published, target: float, now: float) -> tuple[Published, float | None]:
    """The next state for a quantised ``target``, and when to ask again; ``None``: not before something changes."""
    if target < state.quality:
        return Published(target), None
    gap = (target - state.quality) * GRID
    if gap < MARGIN - _NOISE:
        return (state if state.rising_since is None else Published(state.quality)), None
    if state.rising_since is None or state.next_step is None:
        due = now + DWELL_S
        return Published(state.quality, now, due), due
    if now < state.next_step:
        return state, state.next_step
    raised = _raised(state.quality, target)
    if raised >= target:
        return Published(target), None
    due = now + STEP_S
    return Published(raised, state.rising_since, due), due


def _raised(quality: float, target: float) -> float:
    """One rise towards the target, on the grid; straight to it when what would be left is below the margin."""
    gap = (target - quality) * GRID
    rise = max(gap / GAP_DIVISOR, MIN_STEP)
    if gap - rise < MARGIN - _NOISE:
        return target
    return math.floor(quality * GRID + rise + _NOISE * GRID) / GRID
