"""A real file whose disk can be made to hang, and to take nothing, and that counts its commits."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Literal

#: A guard against hanging, never a measure, seconds.
GUARD_S = 60.0

#: Where in a transaction SQLite finds that the disk takes nothing.
Where = Literal["BEGIN", "INSERT", "COMMIT"]


class Disk:
    """Opens the file of a journal, and stands between SQLite and its statements.

    It may be told something at any time, from any thread: SQLite asks it in the thread that writes.

    Attributes:
        commits: How many commits were begun.
        hung: Set while a commit hangs.
    """

    def __init__(self) -> None:
        self.commits = 0
        self.hung = threading.Event()
        self._free = threading.Event()
        self._free.set()
        self._closed: Where | None = None

    def connect(self, path: Path) -> sqlite3.Connection:
        """Opens the file."""
        # Every statement is prepared anew, because only then SQLite asks whether it may be carried out.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=0)
        connection.set_trace_callback(self._before)
        connection.set_authorizer(self._allow)
        return connection

    def hang(self) -> None:
        """The next commit hangs, before it reaches the disk."""
        self._free.clear()

    def go_on(self) -> None:
        """Commits go on."""
        self._free.set()

    def take_nothing(self, where: Where = "BEGIN") -> None:
        """Nothing can be written, as SQLite finds at this place."""
        self._closed = where

    def take_again(self) -> None:
        """Everything can be written."""
        self._closed = None

    def _allow(self, action: int, first: str | None, *_: str | None) -> int:
        if action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE):
            denied = self._closed == "INSERT"
        else:
            denied = action == sqlite3.SQLITE_TRANSACTION and first is not None and first == self._closed
        return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

    def _before(self, statement: str) -> None:
        if statement == "COMMIT":
            self.commits += 1
            if not self._free.is_set():
                self.hung.set()
                self._free.wait(GUARD_S)
                self.hung.clear()
