"""What keeping costs on this disk: measured and printed with ``-s``, never asserted."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import pytest

from arbiter_sidecar.adapters.journal import SqliteJournal
from tests.adapters.journal_script import opened, resized

_ALONE = 300
_TOGETHER = 3000
_CALLERS = 64


@pytest.mark.parametrize("full", [False, True], ids=["normal", "full"])
async def test_every_grant_is_kept_when_many_callers_grant(tmp_path: Path, full: bool) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite3", full=full)
    fence = max(journal.open().fences.values(), default=0)
    alone = []
    for _ in range(_ALONE):
        fence += 1
        begun = time.perf_counter()
        await journal.append([opened(str(fence), fence)])
        alone.append(time.perf_counter() - begun)
    before = journal.statistics

    async def grant() -> None:
        nonlocal fence
        for _ in range(_TOGETHER // _CALLERS):
            fence += 1
            await journal.append([opened(str(fence), fence)])

    begun = time.perf_counter()
    await asyncio.gather(*(grant() for _ in range(_CALLERS)))
    spent = time.perf_counter() - begun
    after = journal.statistics
    begun = time.perf_counter()
    await asyncio.gather(*(journal.append([resized(str(number), number)]) for number in range(1, _TOGETHER)))
    mass = time.perf_counter() - begun
    kept = after.operations - before.operations
    commits = after.transactions - before.transactions
    await journal.close()
    begun = time.perf_counter()
    journal = SqliteJournal(tmp_path / "journal.sqlite3")
    found = journal.open()
    opening = time.perf_counter() - begun
    await journal.close()
    assert len(found.leases) == fence
    cuts = statistics.quantiles(alone, n=100)
    print(
        f"\none caller: p50 {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms;"
        f" {_CALLERS} callers: {kept / spent:.0f} grants/s, {kept / commits:.1f} a commit;"
        f" {_TOGETHER} changes at once: {mass * 1e3:.0f} ms; opening {fence} leases: {opening * 1e3:.0f} ms"
    )
