"""Stopping when asked: SIGTERM and Ctrl-C end a worker between two units of work, or at once while it only waits."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


class StopAsked(BaseException):
    """Somebody asked the process to stop while it was waiting for something."""


class Stop:
    """Remembers that SIGTERM or SIGINT has come; install it in the main thread."""

    __slots__ = ("_raising", "asked")

    def __init__(self) -> None:
        self.asked = False
        self._raising = False

    def install(self) -> None:
        """Takes over SIGTERM and SIGINT.

        Raises:
            ValueError: Called outside the main thread.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._notice)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[contextlib.ExitStack]:
        """Inside, being asked raises StopAsked wherever the main thread is; closing the stack ends that earlier.

        Raises:
            StopAsked: The process is asked to stop, or had been asked before.
        """
        with contextlib.ExitStack() as stack:
            self._raising = True
            stack.callback(self._calm)
            if self.asked:
                raise StopAsked
            yield stack

    def _calm(self) -> None:
        self._raising = False

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._raising:
            self._raising = False
            raise StopAsked
