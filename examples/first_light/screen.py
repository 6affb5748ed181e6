"""Shows the demonstration: a table that stays in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TextIO

from examples.first_light import table
from examples.first_light.timeline import Observation

#: Seconds between two lines where nobody watches live.
_LINE_PAUSE_S = 2.0
_UP_AND_CLEAR = "\x1b[{lines}A\x1b[J"


class Screen:
    """Draws to one stream.

    Args:
        out: The stream; a terminal gets the table.
        budget_bytes: Capacity of the device.
    """

    __slots__ = ("_budget", "_drawn", "_next_line", "_out", "_terminal")

    def __init__(self, out: TextIO, *, budget_bytes: int) -> None:
        self._out = out
        self._budget = budget_bytes
        self._terminal = out.isatty()
        self._drawn = 0
        self._next_line = 0.0

    def say(self, text: str) -> None:
        """Prints lines that stay."""
        self._erase()
        self._out.write(text + "\n")
        self._out.flush()

    def show(self, seen: Observation, said: Mapping[str, str], newest: str) -> None:
        """Shows one moment."""
        if self._terminal:
            # A line that wraps would take two rows and leave a piece behind when it is erased.
            width = shutil.get_terminal_size().columns - 1
            lines = [line[:width] for line in table.table(seen, budget_bytes=self._budget, said=said, newest=newest)]
            self._erase()
            self._out.write("\n".join(lines) + "\n")
            self._out.flush()
            self._drawn = len(lines)
        elif seen.at >= self._next_line:
            self._next_line = seen.at + _LINE_PAUSE_S
            self._out.write(table.compact(seen, budget_bytes=self._budget) + "\n")
            self._out.flush()

    def _erase(self) -> None:
        if self._drawn:
            self._out.write(_UP_AND_CLEAR.format(lines=self._drawn))
            self._drawn = 0
