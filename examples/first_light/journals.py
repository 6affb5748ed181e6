"""Follows what the workers write about themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

#: A line that never ends is no journal; it is dropped at this length.
_LONGEST_LINE = 65536


@dataclass(slots=True)
class Said:
    """What a worker has said so far.

    Attributes:
        full_bytes: What it asked for at full quality.
        rung: The size it runs at.
        obeyed_quality: The target it obeyed last.
        made: Results over all its processes.
        made_at_rung: Results since it last obeyed.
        last: The newest event, for people.
        failure: Why it gave up; empty when it did not.
    """

    full_bytes: int = 0
    rung: str = ""
    obeyed_quality: float | None = None
    made: int = 0
    made_at_rung: int = 0
    last: str = ""
    failure: str = ""


class Follower:
    """Reads one worker's log as it grows, over restarts of the worker.

    Args:
        path: The log; may not exist yet.
    """

    __slots__ = ("_made_before", "_made_now", "_offset", "_path", "_rest", "said")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self._made_before = 0
        self._made_now = 0
        self.said = Said()

    def read(self) -> None:
        """Takes in what has been written since the last call.

        Raises:
            OSError: The log cannot be read.
        """
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, rest = (self._rest + new).split(b"\n")
        self._rest = rest if len(rest) <= _LONGEST_LINE else b""
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            # A library's own words, or a traceback: it stays in the log for people.
            return
        said = self.said
        match event:
            case {"event": "asking", "memory_bytes": int(size)}:
                self._made_before, self._made_now = said.made, 0
                said.full_bytes, said.rung, said.obeyed_quality, said.made_at_rung = size, "", None, 0
                said.last = "asks for a lease"
            case {
                "event": "rung",
                "rung": str(rung),
                "quality": float(quality) | int(quality),
                "applied": bool(applied),
            }:
                said.rung, said.obeyed_quality, said.made_at_rung = rung, quality, 0
                said.last = f"{'obeyed' if applied else 'could not obey'} {quality:.2f}"
            case {"event": "made", "count": int(count)}:
                said.made_at_rung += count - self._made_now
                self._made_now = count
                said.made = self._made_before + count
            case {"event": "failed" | "lease_lost" as name, "detail": str(detail)}:
                said.failure = f"{name}: {detail}"
                said.last = name
            case {"event": str(name)}:
                said.last = name
            case _:
                return
