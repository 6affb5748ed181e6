"""The file of the journal: how it is opened, checked, brought up to date, or moved aside when it is damaged."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arbiter_sidecar.adapters import journal_rows
from arbiter_sidecar.adapters.instance import MAX_EPOCH
from arbiter_sidecar.ports import JournalError, Recovered

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: How long SQLite waits for a program that reads or copies the file.
BUSY_MS = 2000
#: Pages of 4 KiB that gather before they are moved into the main file.
CHECKPOINT_PAGES = 1000

#: What each version of the file adds to the one before; a file of version n has had the first n. Never changed, only
#: added to.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), schema INTEGER NOT NULL, epoch INTEGER NOT NULL,"
        " boot_id TEXT NOT NULL)",
        "INSERT INTO meta (one, schema, epoch, boot_id) VALUES (1, 0, 0, '')",
        "CREATE TABLE fence (device_id TEXT PRIMARY KEY, reserved INTEGER NOT NULL)",
        "CREATE TABLE lease (number INTEGER PRIMARY KEY AUTOINCREMENT, lease_id TEXT NOT NULL UNIQUE,"
        " handle TEXT NOT NULL UNIQUE, fence INTEGER NOT NULL, device_id TEXT NOT NULL, namespace TEXT NOT NULL,"
        " request TEXT NOT NULL, created_at REAL NOT NULL, quality REAL NOT NULL, limit_bytes INTEGER NOT NULL,"
        " charged_bytes INTEGER NOT NULL, credit_bytes INTEGER NOT NULL, kv_budget INTEGER NOT NULL,"
        " kv_charged INTEGER NOT NULL, confirmed INTEGER NOT NULL, end_reason INTEGER NOT NULL, ended_at REAL NOT NULL,"
        " residue_bytes INTEGER NOT NULL, UNIQUE (device_id, fence))",
        "CREATE TABLE idempotency (namespace TEXT NOT NULL, request_id TEXT NOT NULL,"
        " lease_id TEXT NOT NULL REFERENCES lease (lease_id) ON DELETE CASCADE, PRIMARY KEY (namespace, request_id))",
        "CREATE INDEX idempotency_lease ON idempotency (lease_id)",
        "CREATE TABLE grave (number INTEGER PRIMARY KEY AUTOINCREMENT, lease_id TEXT NOT NULL, handle TEXT NOT NULL,"
        " fence INTEGER NOT NULL, device_id TEXT NOT NULL, namespace TEXT NOT NULL, end_reason INTEGER NOT NULL,"
        " drained_at REAL NOT NULL)",
        "CREATE TABLE plan (plan_id TEXT PRIMARY KEY, content TEXT NOT NULL)",
        "CREATE TABLE event (number INTEGER PRIMARY KEY AUTOINCREMENT, sequence INTEGER NOT NULL UNIQUE,"
        " wall_time REAL NOT NULL, kind INTEGER NOT NULL, lease_id TEXT NOT NULL, request_id TEXT NOT NULL,"
        " device_id TEXT NOT NULL, holder TEXT NOT NULL, namespace TEXT NOT NULL, fields TEXT NOT NULL)",
    ),
)

_TABLES = frozenset({"meta", "fence", "lease", "idempotency", "grave", "plan", "event"})
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
}


#: Opens the file for use by one thread at a time, with transactions begun by hand.
Connect = Callable[[Path], sqlite3.Connection]


class _DamagedError(Exception):
    """The file is no journal, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file, and what was in it."""

    connection: sqlite3.Connection
    recovered: Recovered


def connect(path: Path) -> sqlite3.Connection:
    """Opens the file as SQLite does."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def boot_id() -> str:
    """The name of this run of the kernel. Raises OSError when it cannot be read."""
    return BOOT_ID.read_text(encoding="ascii").strip()


def trouble(error: sqlite3.Error, path: Path) -> JournalError:
    """The same error in the words of the port."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return JournalError(_ERRNO.get(code, errno.EIO), f"the journal cannot be written or read: {error}", str(path))


def open_file(
    path: Path,
    *,
    least_epoch: int,
    boot: str,
    connect: Connect,
    full: bool,
    steps: Sequence[Sequence[str]] = STEPS,
) -> Opened:
    """Opens the file, or makes it, and begins an epoch of at least ``least_epoch``, above every one in the file.

    A damaged file is moved aside, under its name with what happened and when.

    Args:
        boot: Name of this run of the kernel; leases of another one are dropped.
        connect: Opens the file.
        full: Every commit waits for the disk, not the new epoch alone.

    Raises:
        JournalError: It cannot be read or written, or a newer release has written it.
    """
    set_aside = ""
    try:
        try:
            found, content = _sound(path, connect, steps)
        except _DamagedError:
            set_aside = _move_aside(path)
            found, content = _sound(path, connect, steps)
        try:
            recovered = _begin(found, content, least_epoch, boot, path, set_aside)
            found.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
        except BaseException:
            found.close()
            raise
    except _DamagedError as error:
        raise JournalError(errno.EIO, f"the journal is damaged although it is new: {error}", str(path)) from error
    except JournalError:
        raise
    except sqlite3.Error as error:
        raise trouble(error, path) from error
    except OSError as error:
        raise JournalError(error.errno, f"the journal cannot be opened: {error.strerror}", str(path)) from error
    return Opened(found, recovered)


def _sound(
    path: Path, connect: Connect, steps: Sequence[Sequence[str]]
) -> tuple[sqlite3.Connection, journal_rows.Content]:
    # Made here, for SQLite says neither why it cannot nor lets us choose who may read it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    found = connect(path)
    try:
        _upgrade(found, path, _prepare(found, path, len(steps)), steps)
        return found, journal_rows.read(found)
    except BaseException as error:
        found.close()
        damaged = isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
        if damaged or isinstance(error, ValueError):
            raise _DamagedError(str(error)) from error
        raise


def _prepare(connection: sqlite3.Connection, path: Path, newest: int) -> int:
    """Looks at the file, and sets it up if it is ours; returns its version."""
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    faults = [str(row[0]) for row in connection.execute("PRAGMA quick_check")]
    if faults != ["ok"]:
        raise _DamagedError("; ".join(faults[:3]))
    version = _version(connection)
    if version > newest:
        raise JournalError(
            errno.ENOTSUP,
            f"the journal was written by a newer release (version {version}, this one knows up to {newest}):"
            " start that release, or move the file away and lose the leases in it",
            str(path),
        )
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise JournalError(errno.ENOTSUP, f"this file system keeps no write-ahead log (mode {mode})", str(path))
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    return version


def _upgrade(connection: sqlite3.Connection, path: Path, version: int, steps: Sequence[Sequence[str]]) -> None:
    """Brings the file from its version to the newest, in one transaction."""
    if version == len(steps):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in steps[version:]:
            for statement in step:
                connection.execute(statement)
        connection.execute("UPDATE meta SET schema = ?", (len(steps),))
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise trouble(error, path) from error


def _version(connection: sqlite3.Connection) -> int:
    tables = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return 0
    row = connection.execute("SELECT schema FROM meta").fetchone() if tables >= _TABLES else None
    if row is None or not isinstance(row[0], int) or row[0] < 1:
        raise _DamagedError("it holds no journal")
    return row[0]


def _begin(
    connection: sqlite3.Connection,
    content: journal_rows.Content,
    least_epoch: int,
    boot: str,
    path: Path,
    set_aside: str,
) -> Recovered:
    """Begins an epoch, on the disk before anybody hears of it; drops what another run of the kernel has left."""
    last_epoch, last_boot = connection.execute("SELECT epoch, boot_id FROM meta").fetchone()
    epoch = max(last_epoch + 1, least_epoch)
    if epoch > MAX_EPOCH:
        raise JournalError(errno.ERANGE, f"epoch {epoch} is above {MAX_EPOCH}", str(path))
    rebooted = last_boot not in ("", boot)
    connection.execute("BEGIN IMMEDIATE")
    if rebooted:
        for table in ("idempotency", "lease", "grave", "plan"):
            connection.execute(f"DELETE FROM {table}")
    connection.execute("UPDATE meta SET epoch = ?, boot_id = ?", (epoch, boot))
    connection.execute("COMMIT")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    kept = Recovered(epoch=epoch, fences=content.fences, events=content.events, set_aside=set_aside)
    if rebooted:
        return replace(kept, rebooted=True, dropped=len(content.leases))
    return replace(kept, leases=content.leases, graves=content.graves, requests=content.requests, plans=content.plans)


def _move_aside(path: Path) -> str:
    """Moves the file and its log away, so that they can still be read together; returns the new name."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target, number = path.with_name(f"{path.name}.damaged-{stamp}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    # SQLite takes its log away when it closes a file, but one that was left must not be read into the new file.
    for ending in ("-wal", "-journal"):
        if (log := path.with_name(path.name + ending)).exists():
            log.rename(target.with_name(target.name + ending))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    path.rename(target)
    return str(target)
