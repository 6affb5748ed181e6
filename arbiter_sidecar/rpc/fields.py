"""Checks the fields of a message and remembers every fault, so that a caller learns of all of them at once."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

from arbiter_sidecar import errors

if TYPE_CHECKING:
    from google.protobuf import duration_pb2

#: More bytes than any machine has; beyond it arithmetic of the caller went wrong.
MAX_BYTES = 1 << 53
#: Longest span a request may name, in seconds: ten years is what a mistake in units looks like.
MAX_SPAN_S = 315_360_000.0

_E = TypeVar("_E", bound=IntEnum)


class Fields:
    """Collects violations while fields are read; ``verify`` raises them together."""

    def __init__(self) -> None:
        self._violations: dict[str, str] = {}

    def fault(self, name: str, problem: str) -> None:
        """Notes a fault of a field. The first one counts, so that a long list of bad values names its field once."""
        self._violations.setdefault(name, problem)

    def verify(self) -> None:
        """Raises InvalidRequest with every fault noted so far, if any."""
        if self._violations:
            raise errors.InvalidRequest(list(self._violations.items()))

    def text(self, name: str, value: str, *, required: bool = False, limit: int = 128) -> str:
        """A name: printable, of bounded length."""
        if required and not value:
            self.fault(name, "is required")
        elif len(value) > limit:
            self.fault(name, f"has {len(value)} characters, at most {limit} are allowed")
        elif not value.isprintable():
            self.fault(name, "holds characters that cannot be printed")
        return value

    def integer(self, name: str, value: int, *, least: int, most: int = MAX_BYTES) -> int:
        """An integer within bounds."""
        if not least <= value <= most:
            self.fault(name, f"is {value}, must be between {least} and {most}")
        return value

    def quality(self, name: str, value: float) -> float:
        """A number in [0,1]."""
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            self.fault(name, f"is {value}, must be a number between 0 and 1")
        return value

    def enum(self, name: str, value: int, kind: type[_E], *, default: _E | None = None) -> _E:
        """A known value of an enumeration; unspecified means ``default``, or is a fault without one."""
        if value == 0 and default is not None:
            return default
        if value not in set(kind):
            self.fault(name, "is required" if value == 0 else f"has no value {value}")
            return next(iter(kind))
        return kind(value)

    def span(
        self, name: str, value: duration_pb2.Duration, *, positive: bool = False, most: float = MAX_SPAN_S
    ) -> float:
        """Seconds of a duration, not negative."""
        seconds = value.seconds + value.nanos / 1e9
        if seconds < 0 or value.nanos < 0 or abs(value.nanos) >= 1_000_000_000:
            self.fault(name, "is negative" if seconds < 0 else "is not a valid duration")
        elif positive and seconds == 0:
            self.fault(name, "must be longer than zero")
        elif seconds > most:
            self.fault(name, f"is {seconds:g} s, at most {most:g} s are allowed")
        return seconds
