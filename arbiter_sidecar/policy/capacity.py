"""How much of a device may be leased, and how full it is.

The reserve, the quarter-gap recovery and the level boundaries are the defaults of the systems this one learnt from;
docs/definitions.md has the worked numbers.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from arbiter_sidecar.types import MIB, PressureLevel

#: Bytes kept back on a discovered device: contexts, fragmentation and the driver's own needs.
MIN_RESERVE_BYTES = 512 * MIB
#: One part in this many is kept back when that is more.
RESERVE_DIVISOR = 10
#: A rise of the ceiling moves by one part in this many of the gap with each sample, so that a stranger who lets go for
#: a moment does not make everybody grow.
RECOVERY_DIVISOR = 4
#: A gap smaller than this is closed at once; otherwise the approach would never end.
SNAP_BYTES = 16 * MIB
#: Lower bounds of MODERATE, HIGH and CRITICAL.
LEVEL_BOUNDS = (0.50, 0.75, 0.90)
#: How far below a boundary the pressure must fall before the level does.
LEVEL_MARGIN = 0.03

_EXPONENT = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?:(?P<letter>[kmgt])(?P<unit>i?b)?)?\s*", re.IGNORECASE)


def usable_bytes(total_bytes: int, cap_bytes: int | None = None) -> int:
    """What may be leased of a discovered device: its size or the cap, less the reserve; never negative."""
    total = total_bytes if cap_bytes is None else min(total_bytes, cap_bytes)
    return max(0, total - max(MIN_RESERVE_BYTES, total // RESERVE_DIVISOR))


def parse_bytes(text: str) -> int:
    """Bytes from text such as ``8g``, ``512MiB``, ``1.5GB`` or ``123``.

    A bare suffix letter and ``KiB…TiB`` are powers of 1024, ``KB…TB`` powers of 1000.

    Raises:
        ValueError: The text is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number with an optional suffix, such as 512MiB, 8g or 1.5GB")
    number, letter, unit = match["number"], (match["letter"] or "").lower(), (match["unit"] or "").lower()
    factor: int = (1000 if unit == "b" else 1024) ** _EXPONENT[letter]
    return math.floor(Fraction(number) * factor)


def smooth_ceiling(previous: int | None, measured: int) -> int:
    """The next ceiling: a fall is taken at once, a rise a quarter of the gap at a time."""
    if previous is None or measured <= previous or measured - previous < SNAP_BYTES:
        return measured
    return previous + (measured - previous) // RECOVERY_DIVISOR


def pressure(granted: int, foreign: int, measured: int | None, capacity: int) -> float:
    """How full a device is, unclamped; 1.0 for a device without capacity. ``measured`` ``None`` is unknown."""
    if capacity <= 0:
        return 1.0
    return max(granted + foreign, measured or 0) / capacity


def level(previous: PressureLevel | None, pressure: float) -> PressureLevel:
    """The level of a pressure; going down needs a fall of a further margin below the boundary."""
    rising = PressureLevel(1 + sum(pressure >= bound for bound in LEVEL_BOUNDS))
    if previous is None or rising >= previous:
        return rising
    held = PressureLevel(1 + sum(pressure >= bound - LEVEL_MARGIN for bound in LEVEL_BOUNDS))
    return min(previous, held)
