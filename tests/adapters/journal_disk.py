"""A real file whose disk can be made to hang, and to take nothing, and that counts its commits."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from arbiter_sidecar.adapters import journal_schema

if TYPE_CHECKING:
    import sqlite3

#: A guard against hanging, never a measure, seconds.
GUARD_S = 60.0


class Disk:
    """Opens the file of a journal, and stands between SQLite and its statements.

    Attributes:
        commits: How many commits were begun.
        hung: Set while a commit hangs.
    """

    def __init__(self) -> None:
        self.commits = 0
        self.hung = threading.Event()
        self._free = threading.Event()
        self._free.set()
        self._connection: sqlite3.Connection | None = None

    def connect(self, path: Path) -> sqlite3.Connection:
        """Opens the file."""
        self._connection = journal_schema.connect(path)
        self._connection.set_trace_callback(self._before)
        return self._connection

    def hang(self) -> None:
        """The next commit hangs, before it reaches the disk."""
        self._free.clear()

    def go_on(self) -> None:
        """Commits go on."""
        self._free.set()

    def take_nothing(self) -> None:
        """Nothing can be written, as when the file system was mounted anew for reading only. Not while it writes."""
        self._tell("PRAGMA query_only = ON")

    def take_again(self) -> None:
        """Everything can be written. Not while it writes."""
        self._tell("PRAGMA query_only = OFF")

    def _tell(self, pragma: str) -> None:
        assert self._connection is not None
        self._connection.execute(pragma)

    def _before(self, statement: str) -> None:
        if statement == "COMMIT":
            self.commits += 1
            if not self._free.is_set():
                self.hung.set()
                self._free.wait(GUARD_S)
                self.hung.clear()
