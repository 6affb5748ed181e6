"""The journal on disk: one thread writes, many operations share a commit, and nobody on the event loop waits for it."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog

from arbiter_sidecar.adapters import journal_rows, journal_schema
from arbiter_sidecar.adapters.journal_line import Entry, JournalStatistics, Line, again
from arbiter_sidecar.ports import JournalError, JournalOperation, Recovered

#: Operations that share a commit, at most; what was said in one breath is never torn apart.
GROUP_OPERATIONS = 64
#: A commit lets no more join after so many seconds; it never waits for them.
GROUP_S = 0.002

#: What is wrong with an operation, not with the disk.
_REJECTED = (
    *(sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError),
    *(ValueError, TypeError, OverflowError),
)
_Outcome = tuple["asyncio.Future[None]", JournalError | None]

_log = structlog.get_logger("arbiter")


class SqliteJournal:
    """Implements the journal port with an SQLite file.

    Args:
        path: The file; its folder exists and is no network file system.
        least_epoch: The epoch is at least this, for where the file was lost.
        full: Every commit waits for the disk; without it what was committed survives the end of the process, but not
            that of the machine, which no holder of a lease survives either.
        max_queued: Operations that may wait for the writer.
        slow_after_s: A transaction that takes longer is trouble, seconds.
        retry_s: How often a disk in trouble is tried, seconds.
        boot: Name of this run of the kernel; ``None``: ask it.
        connect: Opens the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        least_epoch: int = 1,
        full: bool = False,
        max_queued: int = 10_000,
        slow_after_s: float = 1.0,
        retry_s: float = 0.5,
        boot: str | None = None,
        connect: journal_schema.Connect = journal_schema.connect,
    ) -> None:
        self._path = path
        self._least_epoch = least_epoch
        self._full = full
        self._boot = boot
        self._connect = connect
        self._line = Line(str(path), max_queued=max_queued, slow_after_s=slow_after_s, retry_s=retry_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = threading.Lock()
        self._ended: asyncio.Future[None] | None = None
        #: What ``close`` ends in, once the writer has ended.
        self._outcome: tuple[JournalError | None] | None = (None,)

    @property
    def healthy(self) -> bool:
        """Whether the disk takes what it is given, and soon."""
        return self._line.healthy

    @property
    def statistics(self) -> JournalStatistics:
        """What was done until now."""
        return self._line.statistics

    def open(self) -> Recovered:
        """Reads the file, begins an epoch and starts the writer. Raises JournalError as the port says."""
        try:
            boot = self._boot if self._boot is not None else journal_schema.boot_id()
        except OSError as error:
            raise JournalError(error.errno, "the kernel does not tell its boot id", str(error.filename)) from error
        found = journal_schema.open_file(
            self._path, least_epoch=self._least_epoch, boot=boot, connect=self._connect, full=self._full
        )
        self._line.begin(found.recovered)
        self._outcome = None
        threading.Thread(target=self._work, args=(found.connection,), name="journal", daemon=True).start()
        return found.recovered

    def append(self, operations: Sequence[JournalOperation]) -> asyncio.Future[None]:
        """Takes operations in; what the future says is what the port promises. Never blocks."""
        self._loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = self._loop.create_future()
        error = self._line.join(operations, waiter)
        if error is not None:
            _finish([(waiter, error)])
        return waiter

    async def close(self, timeout_s: float = 10.0) -> None:
        """Writes what is left, also what is owed, and merges it into the main file.

        Raises:
            JournalError: Something could not be written, or the disk has not answered for ``timeout_s`` seconds.
        """
        self._loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = self._loop.create_future()
        self._line.end()
        with self._ending:
            self._ended, outcome = ended, self._outcome
        if outcome is not None:
            _finish([(ended, outcome[0])])
        try:
            async with asyncio.timeout(timeout_s):
                await ended
        except TimeoutError:
            raise self._trouble(
                errno.ETIMEDOUT, f"the disk has not answered for {timeout_s:g} s, what waits for it is lost"
            ) from None

    # In the thread ----------------------------------------------------------------------------------------------------

    def _work(self, connection: sqlite3.Connection) -> None:
        try:
            while (entry := self._line.next()) is not None:
                self._transact(connection, entry)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
            error = self._line.lost()
        except sqlite3.Error as caught:
            error = journal_schema.trouble(caught, self._path)
        except Exception as defect:
            _log.error("journal_stopped", error=repr(defect), exc_info=defect)
            error = self._trouble(errno.EIO, f"the journal has stopped: {defect!r}")
            self._line.end()
        with self._ending:
            self._outcome, ended = (error,), self._ended
        if ended is not None:
            self._tell([(ended, error)])

    def _transact(self, connection: sqlite3.Connection, first: Entry) -> None:
        # It counts from the start: even the beginning of a transaction can fail.
        entries, outcomes, count = [first], list[_Outcome](), 0
        begun_at = time.monotonic()
        self._line.started()
        entry: Entry | None = first
        try:
            connection.execute("BEGIN IMMEDIATE")
            while entry is not None:
                count += len(entry.operations)
                error = self._write(connection, entry)
                if entry.waiter is not None:
                    outcomes.append((entry.waiter, error))
                in_time = time.monotonic() - begun_at < GROUP_S
                if entry := self._line.more(GROUP_OPERATIONS - count) if in_time else None:
                    entries.append(entry)
            connection.execute("COMMIT")
        except sqlite3.Error as caught:
            _roll_back(connection)
            self._fail(entries, journal_schema.trouble(caught, self._path))
        except Exception as defect:
            self._fail(entries, self._trouble(errno.EIO, f"the journal has stopped: {defect!r}"))
            raise
        else:
            self._line.written(count)
            self._tell(outcomes)

    def _write(self, connection: sqlite3.Connection, entry: Entry) -> JournalError | None:
        """Writes what was said in one breath, or nothing of it; returns why it can never be written."""
        if entry.waiter is not None:
            return self._write_whole(connection, entry.operations)
        # Even with nothing owed the disk is tried.
        connection.execute("UPDATE meta SET epoch = epoch")
        for operation in entry.operations:
            self._write_whole(connection, [operation])
        return None

    def _write_whole(
        self, connection: sqlite3.Connection, operations: Sequence[JournalOperation]
    ) -> JournalError | None:
        connection.execute("SAVEPOINT breath")
        rejected: JournalError | None = None
        try:
            for operation in operations:
                journal_rows.write(connection, operation)
        except _REJECTED as error:
            connection.execute("ROLLBACK TO breath")
            self._line.rejected(operations)
            _log.error("journal_rejected", error=repr(error), operations=[type(each).__name__ for each in operations])
            rejected = self._trouble(errno.EINVAL, f"this cannot be written: {error}")
        connection.execute("RELEASE breath")
        return rejected

    def _fail(self, entries: Sequence[Entry], error: JournalError) -> None:
        self._tell([(waiter, again(error)) for waiter in self._line.failed(entries, error)])

    def _tell(self, outcomes: list[_Outcome]) -> None:
        """Answers those who wait, with one call for all of them."""
        if not outcomes or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(_finish, outcomes)
        except RuntimeError as error:
            _log.warning("journal_waiters_gone", waiters=len(outcomes), error=str(error))

    def _trouble(self, number: int, message: str) -> JournalError:
        return JournalError(number, message, str(self._path))


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        # The next transaction will fail for the same reason, and say so.
        _log.error("journal_not_rolled_back", error=str(error))


def _finish(outcomes: Iterable[_Outcome]) -> None:
    for waiter, error in outcomes:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
            # Nobody has to ask: what became of it shows in the journal's health, too.
            waiter.exception()
