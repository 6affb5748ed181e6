"""Processes that write to a journal until they are killed. Run as a program; one line of words for each on its input.

    PATH SEED STATEMENT

A child is forked for each line. It tells the story of that seed to the journal at PATH and prints how many parts of it
are kept; before the given SQL statement it kills itself, with 0 it goes on for ever. The end of a child is told, too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from arbiter_sidecar.adapters import journal_schema
from arbiter_sidecar.adapters.journal import SqliteJournal
from tests.adapters import journal_script

if TYPE_CHECKING:
    import sqlite3

#: Parts of the story that are on their way to the disk at a time.
AHEAD = 8


def _connect(kill_at: int) -> journal_schema.Connect:
    statements = 0

    def count(_statement: str) -> None:
        nonlocal statements
        statements += 1
        if statements == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def connect(path: Path) -> sqlite3.Connection:
        connection = journal_schema.connect(path)
        connection.set_trace_callback(count)
        return connection

    return connect


async def _tell(path: Path, seed: int, kill_at: int) -> None:
    journal = SqliteJournal(path, connect=_connect(kill_at))
    before = journal.open()
    _say(f"epoch {before.epoch}")
    on_their_way: deque[asyncio.Future[None]] = deque()
    kept = 0
    for breath in journal_script.story(seed, before):
        on_their_way.append(journal.append(breath))
        if len(on_their_way) == AHEAD:
            await on_their_way.popleft()
            kept += 1
            _say(f"kept {kept}")


def _say(words: str) -> None:
    os.write(1, f"{words}\n".encode())


def main() -> None:
    """Forks a child for each line of the input, one after the other."""
    for line in sys.stdin:
        path, seed, kill_at = line.split()
        pid = os.fork()
        if not pid:
            asyncio.run(_tell(Path(path), int(seed), int(kill_at)))
        _say(f"child {pid}")
        os.waitpid(pid, 0)
        _say("over 0")


if __name__ == "__main__":
    main()
