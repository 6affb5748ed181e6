"""What a worker says about itself: one JSON object a line, for people with a pager and for programs that follow it."""

from __future__ import annotations

import json
import time
from typing import TextIO

Value = str | int | float | bool | None


class Journal:
    """Writes events as they happen.

    Args:
        out: Where to; flushed after each line, so that a follower sees it at once.
        worker: Name of the worker, in every line.
    """

    __slots__ = ("_out", "_worker")

    def __init__(self, out: TextIO, worker: str) -> None:
        self._out = out
        self._worker = worker

    def say(self, event: str, **fields: Value) -> None:
        """Writes one event.

        Raises:
            OSError: Nobody can be told any more, such as a closed pipe.
        """
        line = {"time": round(time.time(), 3), "worker": self._worker, "event": event, **fields}
        self._out.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._out.flush()
