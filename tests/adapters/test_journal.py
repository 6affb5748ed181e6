"""The journal keeps what it is told, in order, together, and nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import journal_rows
from arbiter_sidecar.adapters.journal import GROUP_OPERATIONS, SqliteJournal
from arbiter_sidecar.adapters.journal_memory import MemoryJournal
from arbiter_sidecar.ports import (
    Journal,
    JournalError,
    JournalOperation,
    LeaseConfirmed,
    LeaseOpened,
    PlanEnded,
    PlanOpened,
    Recovered,
)
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import EndReason, LeaseId, WorkloadType
from tests.adapters import journal_script
from tests.adapters.journal_disk import GUARD_S, Disk
from tests.adapters.journal_script import drained, ended, happened, lease, opened, resized


async def again(path: Path) -> Recovered:
    """What is known in that file."""
    journal = SqliteJournal(path)
    recovered = journal.open()
    await journal.close()
    return recovered


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


async def test_story_is_known_when_it_is_opened_again(path: Path) -> None:
    journal = SqliteJournal(path)
    before = journal.open()
    known = journal_script.Known(before)
    waiting = []
    for number, breath in enumerate(journal_script.story(1, before)):
        if number == 3000:
            break
        known.take(breath)
        waiting.append(journal.append(breath))
    await asyncio.gather(*waiting)
    await journal.close()
    after = await again(path)
    assert known.is_what(after)
    assert min(map(len, (after.leases, after.graves, after.requests, after.plans, after.events))) > 0
    assert after.epoch == before.epoch + 1
    assert (after.rebooted, after.dropped, after.set_aside) == (False, 0, "")


async def test_every_field_is_kept_when_it_has_a_value_or_none(path: Path) -> None:
    plain = AllocationRequest(holder="", workload=WorkloadType.OTHER, memory_bytes=(1 << 63) - 1)
    full = replace(
        lease("full", 1),
        handle=1,
        credit_bytes=2,
        kv_budget=3,
        kv_charged=4,
        confirmed=True,
        residue_bytes=5,
        end_reason=EndReason.ORPHANED,
        ended_at=6.125,
        quality=0.1 + 0.2,
    )
    bare = replace(lease("bare", 2), request=plain, quality=0.0)
    journal = SqliteJournal(path)
    journal.open()
    plans = [journal_script.plan("first", "full", "bare"), journal_script.plan("second")]
    await journal.append([LeaseOpened(full), LeaseOpened(bare), *map(PlanOpened, plans), happened(1)])
    await journal.close()
    after = await again(path)
    assert after.leases == (full, bare)
    assert after.leases[0].request.processes == full.request.processes
    assert after.leases[0].request.wait_s == full.request.wait_s
    assert after.plans == tuple(plans)
    assert after.events == (happened(1).event,)
    assert after.requests == {("team", "request of full"): "full"}


async def test_request_leads_to_its_newest_lease_until_that_has_gone(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.open()
    first = lease("first", 1)
    second = replace(lease("second", 2), request=first.request)
    await journal.append([LeaseOpened(first), ended("first"), LeaseOpened(second), drained("first")])
    await journal.close()
    assert (await again(path)).requests == {("team", "request of first"): "second"}
    journal = SqliteJournal(path)
    journal.open()
    await journal.append([ended("second"), drained("second")])
    await journal.close()
    after = await again(path)
    assert after.requests == {}
    assert [grave.lease_id for grave in after.graves] == ["first", "second"]


async def test_ended_lease_does_not_change_when_late_facts_come(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.open()
    await journal.append([opened("a", 1), opened("b", 2), ended("a", EndReason.EXPIRED)])
    late: list[JournalOperation] = [
        LeaseConfirmed(LeaseId("a")),
        resized("a", 1),
        ended("a", EndReason.RELEASED),
        drained("b"),
    ]
    await journal.append(late)
    await journal.close()
    first, second = (await again(path)).leases
    assert first.end_reason is EndReason.EXPIRED
    assert (first.confirmed, first.limit_bytes) == (False, lease("a", 1).limit_bytes)
    assert second == lease("b", 2), "a lease that lives has no grave"


async def test_newest_events_and_graves_are_kept_when_there_are_too_many(path: Path) -> None:
    journal = SqliteJournal(path, max_queued=1_000_000)
    journal.open()
    events, graves = journal_rows.MAX_EVENTS + 1500, journal_rows.MAX_GRAVES + 1500
    last: list[asyncio.Future[None]] = []
    for number in range(1, graves + 1):
        name = str(number)
        breath: list[JournalOperation] = [opened(name, number), ended(name), drained(name)]
        if number <= events:
            breath.append(happened(3 * number))
        last = [journal.append(breath)]
        if number % 500 == 0:
            await last[0]
    await asyncio.gather(*last)
    await journal.close()
    reader = sqlite3.connect(path)
    rows = [reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("event", "grave")]
    reader.close()
    assert rows[0] < journal_rows.MAX_EVENTS + journal_rows.SPARE_ROWS
    assert rows[1] < journal_rows.MAX_GRAVES + journal_rows.SPARE_ROWS
    after = await again(path)
    newest = range(events - journal_rows.MAX_EVENTS + 1, events + 1)
    assert [event.sequence for event in after.events] == [3 * number for number in newest], "gaps take no room"
    assert len(after.graves) == journal_rows.MAX_GRAVES
    assert after.graves[-1].lease_id == str(graves)


async def test_nothing_is_taken_in_when_a_lease_or_fence_comes_twice(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.open()
    await journal.append([opened("a", 5)])
    for wrong in ([opened("a", 6)], [opened("b", 5)], [opened("b", 4)], [opened("b", 6), opened("b", 7)]):
        with pytest.raises(ValueError, match=r"twice|not above"):
            journal.append([happened(1), *wrong])
    with pytest.raises(ValueError, match="not above"):
        journal.append([opened("b", 6), opened("c", 6)])
    await journal.append([opened("b", 6)])
    await journal.close()
    after = await again(path)
    assert [each.lease_id for each in after.leases] == ["a", "b"]
    assert after.events == ()
    assert after.fences == {journal_script.GPU: 5 + 1023}, "fences are reserved in blocks"
    reopened = SqliteJournal(path)
    reopened.open()
    with pytest.raises(ValueError, match="twice"):
        reopened.append([opened("a", 1 << 40)])
    with pytest.raises(ValueError, match="not above"):
        reopened.append([opened("c", after.fences[journal_script.GPU])])
    await reopened.close()


async def test_breath_that_cannot_be_written_fails_alone(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.open()
    wrong = (
        replace(lease("same handle", 2), handle=lease("good", 1).handle),
        replace(lease("no number", 3), quality=float("nan")),
        replace(lease("too large", 4), limit_bytes=1 << 63),
        replace(lease("no text \ud800", 5), request=journal_script.REQUEST),
    )
    breaths: list[list[JournalOperation]] = [[opened("good", 1)]]
    breaths += [[resized("good", number), LeaseOpened(each)] for number, each in enumerate(wrong)]
    breaths += [[opened("last", 6)]]
    outcomes = await asyncio.gather(*(journal.append(breath) for breath in breaths), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), *[JournalError] * 4, type(None)]
    assert journal.healthy
    await journal.append([resized("same handle", 7), PlanEnded("none")])
    await journal.close()
    assert (await again(path)).leases == (lease("good", 1), lease("last", 6))


async def test_commits_are_shared_when_many_ask_at_once(path: Path) -> None:
    disk = Disk()
    journal = SqliteJournal(path, connect=disk.connect)
    journal.open()
    disk.hang()
    first = journal.append([happened(1)])
    await asyncio.to_thread(disk.hung.wait, GUARD_S)
    before = disk.commits
    others = [journal.append([opened(str(number), number)]) for number in range(1, 1001)]
    assert journal.statistics.queued == 1000
    disk.go_on()
    await asyncio.gather(first, *others)
    statistics = journal.statistics
    assert statistics.operations == 1001
    assert 1000 / GROUP_OPERATIONS <= disk.commits - before < 250, "at most 64 at a time, and not one by one"
    assert statistics.transactions == disk.commits - before + 1
    assert statistics.queued == 0
    await journal.close()


async def test_loop_is_called_once_when_a_commit_answers_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real: Callable[..., asyncio.Handle] = loop.call_soon_threadsafe
    calls = 0

    def counted(callback: Callable[..., object], *words: object) -> asyncio.Handle:
        nonlocal calls
        calls += 1
        return real(callback, *words)

    disk = Disk()
    journal = SqliteJournal(path, connect=disk.connect)
    journal.open()
    disk.hang()
    waiting = [journal.append([happened(number)]) for number in range(1, 401)]
    await asyncio.to_thread(disk.hung.wait, GUARD_S)
    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    disk.go_on()
    await asyncio.gather(*waiting)
    monkeypatch.undo()
    assert calls == journal.statistics.transactions
    await journal.close()


async def test_breath_is_one_commit_when_it_is_larger_than_a_group(path: Path) -> None:
    disk = Disk()
    journal = SqliteJournal(path, connect=disk.connect)
    journal.open()
    before = disk.commits
    await journal.append([opened(str(number), number) for number in range(1, 3 * GROUP_OPERATIONS)])
    assert disk.commits == before + 1
    await journal.close()


async def test_operation_is_kept_when_nobody_waits_for_it(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.open()
    journal.append([opened("a", 1)])
    journal.append([opened("b", 2)]).cancel()
    await journal.close()
    assert [each.lease_id for each in (await again(path)).leases] == ["a", "b"]


async def test_nothing_is_taken_in_when_it_is_closed(path: Path) -> None:
    journal = SqliteJournal(path)
    await journal.close()
    journal = SqliteJournal(path)
    journal.open()
    await journal.close()
    await journal.close()
    assert not journal.healthy
    with pytest.raises(JournalError, match="closed"):
        await journal.append([opened("a", 1)])
    assert not path.with_name(path.name + "-wal").exists(), "everything is in one file"


async def test_journal_in_memory_takes_everything_and_keeps_nothing() -> None:
    journal: Journal = MemoryJournal(epoch=7)
    assert journal.open() == Recovered(epoch=7)
    await journal.append([opened("a", 1)])
    assert journal.healthy
    await journal.close()


async def test_journal_on_disk_is_what_the_port_asks_for(path: Path) -> None:
    journal: Journal = SqliteJournal(path)
    journal.open()
    await journal.append([])
    await journal.close()
