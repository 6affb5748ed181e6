"""A process that may do less than its parent with a journal. Run as a program.

open PATH   gives up every privilege, opens the journal and prints how that ended
full PATH   lets files grow no further for a while, and prints what became of what it said
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import sys
from pathlib import Path

from arbiter_sidecar.adapters.journal import SqliteJournal
from arbiter_sidecar.ports import JournalError, JournalOperation
from tests.adapters.journal_disk import GUARD_S
from tests.adapters.journal_script import drained, ended, happened, opened, resized

#: Third version of the kernel's structure.
_CAPABILITY_VERSION = 0x20080522
#: Grants until a disk counts as one that is never full.
_MANY = 100_000


def _give_up_privileges() -> None:
    """From here on the bits of files and folders hold, for root too."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


async def _open(path: Path) -> None:
    _give_up_privileges()
    try:
        SqliteJournal(path).open()
    except JournalError as error:
        print("refused", error.errno)
    else:
        print("opened")


async def _full(path: Path) -> None:
    journal = SqliteJournal(path, retry_s=0.05)
    journal.open()
    await journal.append([opened("before", 1), opened("going", 2), opened("gone", 3)])
    log = path.with_name(path.name + "-wal")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 65_536, hard))
    kept = list[int]()
    for number in range(10, _MANY):
        try:
            await journal.append([opened(f"grant {number}", number), happened(number)])
            kept.append(number)
        except JournalError as error:
            print("refused", error.errno, journal.healthy)
            break
    # A small commit might still fit where a large one did not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    facts: list[list[JournalOperation]] = [
        [resized("before", 77)],
        [ended("going")],
        [ended("gone"), drained("gone"), happened(_MANY)],
    ]
    outcomes = await asyncio.gather(*map(journal.append, facts), return_exceptions=True)
    print("facts", *(type(outcome).__name__ for outcome in outcomes), journal.statistics.owed)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    async with asyncio.timeout(GUARD_S):
        while not journal.healthy:
            await asyncio.sleep(0.01)
    await journal.append([opened("after", 2 * _MANY)])
    print("healthy", journal.statistics.owed)
    print("kept", *kept)
    sys.stdout.flush()
    # As after a kill: nothing is put in order.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run({"open": _open, "full": _full}[sys.argv[1]](Path(sys.argv[2])))
