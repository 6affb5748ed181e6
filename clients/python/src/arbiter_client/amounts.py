"""Sizes and spans as people write them, as the numbers that travel."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from fractions import Fraction

#: Largest value of a signed 64-bit field.
MAX_BYTES = 2**63 - 1

_FACTORS = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
    "ti": 1024**4,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)


def parse_bytes(amount: int | str) -> int:
    """Bytes of an amount such as ``2147483648``, ``"2GiB"``, ``"512MiB"`` or ``"1.5GB"``.

    K, M, G and T count in thousands, Ki, Mi, Gi and Ti in 1024s, with or without a B, in any case. A fraction of a byte
    is cut off.

    Raises:
        ValueError: Not an amount, negative, or beyond 64 bits.
    """
    if isinstance(amount, bool):
        raise ValueError(f"{amount!r} is not an amount of memory")
    if isinstance(amount, int):
        size = amount
    else:
        match = _SIZE.fullmatch(amount.strip())
        if match is None:
            raise ValueError(f"{amount!r} is not an amount of memory; write it like 512MiB, 2GiB, 1.5GB or 1048576")
        size = int(Fraction(match[1]) * _FACTORS[(match[2] or "").lower()])
    if not 0 <= size <= MAX_BYTES:
        raise ValueError(f"{amount!r} is not between 0 and 2^63-1 bytes")
    return size


def parse_seconds(span: float | timedelta) -> float:
    """Seconds of a span given as a number or a ``timedelta``.

    Raises:
        ValueError: Not finite, or negative.
    """
    seconds = span.total_seconds() if isinstance(span, timedelta) else float(span)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{span!r} is not a span of time")
    return seconds


def format_bytes(size: int) -> str:
    """An amount for people: the largest binary unit in which it is at least 1, such as ``1.5GiB``."""
    for unit, factor in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if abs(size) >= factor:
            return f"{size / factor:.1f}{unit}"
    return f"{size}B"


def format_seconds(seconds: float) -> str:
    """A span for people in whole seconds, such as ``12s``, ``4m05s`` or ``2h03m``; never negative."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
