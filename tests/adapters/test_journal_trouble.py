"""A disk that is full, slow or takes nothing: promises are refused, facts are kept, and it ends by itself."""

from __future__ import annotations

import asyncio
import errno
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from arbiter_sidecar.adapters import journal_rows
from arbiter_sidecar.adapters.journal import SqliteJournal
from arbiter_sidecar.ports import JournalError, JournalFull, JournalOperation, LeaseOpened, Recovered
from arbiter_sidecar.types import EndReason
from tests.adapters import journal_script
from tests.adapters.journal_disk import GUARD_S, Disk, Where
from tests.adapters.journal_script import drained, ended, happened, opened, resized


async def until_healthy(journal: SqliteJournal) -> None:
    """Waits for the disk to work again."""
    async with asyncio.timeout(GUARD_S):
        while not journal.healthy:
            await asyncio.sleep(0.005)


async def again(path: Path) -> Recovered:
    """What is known in that file."""
    journal = SqliteJournal(path)
    recovered = journal.open()
    await journal.close()
    return recovered


PLACES: tuple[Where, ...] = ("BEGIN", "INSERT", "COMMIT")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


@pytest.fixture
async def disk() -> AsyncIterator[Disk]:
    subject = Disk()
    yield subject
    subject.go_on()


def make(path: Path, disk: Disk, *, max_queued: int = 10_000, slow_after_s: float = 60.0) -> SqliteJournal:
    """A journal on that disk that tries again soon."""
    return SqliteJournal(path, max_queued=max_queued, slow_after_s=slow_after_s, retry_s=0.02, connect=disk.connect)


async def refused(journal: SqliteJournal, operations: Sequence[JournalOperation]) -> JournalError:
    """The error that saying this ends in."""
    with pytest.raises(JournalError) as raised:
        await asyncio.wait_for(journal.append(operations), GUARD_S)
    return raised.value


@pytest.mark.parametrize("where", PLACES)
async def test_promises_are_refused_and_facts_kept_when_the_disk_takes_nothing(
    path: Path, disk: Disk, where: Where
) -> None:
    journal = make(path, disk)
    journal.open()
    await journal.append([opened("a", 1), opened("b", 2), opened("c", 3)])
    disk.take_nothing(where)
    with capture_logs() as logs:
        error = await refused(journal, [opened("never", 4), resized("never", 1), resized("a", 5)])
        assert (error.errno, error.filename) == (errno.EIO, str(path))
        assert not journal.healthy
        for fact in (resized("a", 6), ended("b", EndReason.RELEASED), ended("c"), drained("c"), happened(1)):
            assert (await refused(journal, [fact])).errno == errno.EIO
        assert (await refused(journal, [opened("nor this", 5)])).errno == errno.EIO
        for _ in range(200):
            if journal.statistics.failures > 3:
                break
            await asyncio.sleep(0.02)
        assert not journal.healthy
        disk.take_again()
        await until_healthy(journal)
    assert [entry["event"] for entry in logs] == ["journal_behind", "journal_recovered"], "one line for each turn"
    assert journal.statistics.failures > 3, "it was tried again and again"
    await journal.append([opened("later", 6)])
    await journal.close()
    after = await again(path)
    assert [each.lease_id for each in after.leases] == ["a", "b", "later"]
    assert [each.lease_id for each in after.graves] == ["c"]
    assert after.leases[0].limit_bytes == 6
    assert after.leases[1].end_reason is EndReason.RELEASED
    assert [event.sequence for event in after.events] == [1]


async def test_nothing_is_owed_for_a_lease_when_its_opening_has_failed(path: Path, disk: Disk) -> None:
    journal = SqliteJournal(path, retry_s=3600, connect=disk.connect)
    journal.open()
    disk.take_nothing()
    await refused(journal, [opened("never", 1), resized("never", 1)])
    await refused(journal, [resized("never", 2), ended("never")])
    await refused(journal, [drained("never")])
    assert journal.statistics.owed == 0
    disk.take_again()
    await journal.close()
    assert (await again(path)).leases == ()


@pytest.mark.parametrize("seed", range(10))
async def test_story_is_known_without_refused_promises_when_the_disk_fails_now_and_then(
    path: Path, disk: Disk, seed: int
) -> None:
    chance = random.Random(seed)
    journal = make(path, disk, max_queued=chance.choice((20, 10_000)))
    before = journal.open()
    said = []
    for number, breath in enumerate(journal_script.story(seed, before)):
        if number == 600:
            break
        said.append((breath, journal.append(breath)))
        if chance.random() < 0.04:
            await asyncio.gather(*(waiter for _, waiter in said), return_exceptions=True)
            if chance.random() < 0.5:
                disk.take_nothing(chance.choice(PLACES))
            else:
                disk.take_again()
        elif chance.random() < 0.2:
            await asyncio.sleep(chance.choice((0.0, 0.001, 0.03)))
    await asyncio.gather(*(waiter for _, waiter in said), return_exceptions=True)
    disk.take_again()
    await until_healthy(journal)
    await journal.close()
    known, failed = journal_script.Known(before), 0
    for breath, waiter in said:
        error = waiter.exception()
        assert error is None or isinstance(error, JournalError)
        failed += error is not None
        known.take(each for each in breath if error is None or not isinstance(each, LeaseOpened))
    assert known.is_what(await again(path))
    assert 0 < failed < 600


async def test_nothing_piles_up_when_the_disk_takes_nothing_for_long(path: Path, disk: Disk) -> None:
    journal = make(path, disk)
    journal.open()
    await journal.append([opened(str(number), number) for number in range(1, 11)])
    disk.take_nothing()
    await refused(journal, [happened(1)])
    for number in range(100, 30_000):
        name = f"never {number}"
        journal.append([opened(name, number), resized(str(number % 10 + 1), number), happened(number)])
        journal.append([ended(name), drained(name)])
    assert journal.statistics.owed <= 10 + journal_rows.MAX_EVENTS
    assert journal.statistics.queued == 0
    disk.take_again()
    await until_healthy(journal)
    await journal.close()
    after = await again(path)
    assert [each.limit_bytes for each in after.leases] == [29_990 + (number + 9) % 10 for number in range(1, 11)]
    assert [event.sequence for event in after.events] == list(range(20_000, 30_000))
    assert after.graves == ()


async def test_promises_are_refused_when_too_much_waits_for_a_hanging_disk(path: Path, disk: Disk) -> None:
    journal = make(path, disk, max_queued=100)
    journal.open()
    await journal.append([opened("a", 1), opened("b", 2)])
    disk.hang()
    first = journal.append([happened(1)])
    await asyncio.to_thread(disk.hung.wait, GUARD_S)
    waiting = [journal.append([opened(f"in time {number}", number)]) for number in range(10, 110)]
    assert journal.healthy
    late = journal.append([opened("late", 200), resized("a", 9)])
    assert isinstance(late.exception(), JournalFull)
    assert not journal.healthy
    facts = [journal.append([ended("b")]), journal.append([resized("a", 10)])]
    assert all(isinstance(fact.exception(), JournalFull) for fact in facts)
    assert (journal.statistics.queued, journal.statistics.owed) == (100, 2)
    assert not any(waiter.done() for waiter in waiting)
    disk.go_on()
    await asyncio.gather(first, *waiting)
    await until_healthy(journal)
    await journal.append([opened("afterwards", 300)])
    await journal.close()
    after = await again(path)
    assert [each.lease_id for each in after.leases][2:] == [
        *(f"in time {number}" for number in range(10, 110)),
        "afterwards",
    ]
    assert (after.leases[0].limit_bytes, after.leases[1].end_reason) == (10, EndReason.RELEASED)


async def test_journal_is_unwell_and_the_loop_runs_on_when_a_commit_is_slow(path: Path, disk: Disk) -> None:
    journal = make(path, disk, slow_after_s=0.05)
    journal.open()
    assert journal.healthy
    disk.hang()
    waiter = journal.append([opened("a", 1)])
    turns = 0
    async with asyncio.timeout(GUARD_S):
        while journal.healthy:
            turns += 1
            await asyncio.sleep(0.001)
    assert turns > 1
    assert not waiter.done()
    disk.go_on()
    await waiter
    await until_healthy(journal)
    assert journal.statistics.longest_s >= 0.05
    await journal.close()
    assert [each.lease_id for each in (await again(path)).leases] == ["a"]


async def test_closing_gives_up_when_the_disk_hangs(path: Path, disk: Disk) -> None:
    journal = make(path, disk)
    journal.open()
    disk.hang()
    waiter = journal.append([opened("a", 1)])
    await asyncio.to_thread(disk.hung.wait, GUARD_S)
    with pytest.raises(JournalError, match="has not answered") as raised:
        await journal.close(timeout_s=0.05)
    assert raised.value.errno == errno.ETIMEDOUT
    disk.go_on()
    await waiter
    await journal.close()


async def test_closing_says_what_is_lost_when_the_disk_takes_nothing(path: Path, disk: Disk) -> None:
    journal = make(path, disk)
    journal.open()
    await journal.append([opened("a", 1)])
    disk.take_nothing()
    await refused(journal, [ended("a"), happened(1)])
    with pytest.raises(JournalError, match="2 operations are lost") as raised:
        await journal.close()
    assert raised.value.errno == errno.EIO


async def test_closing_writes_what_is_owed_when_the_disk_works_again(path: Path, disk: Disk) -> None:
    journal = SqliteJournal(path, retry_s=3600, connect=disk.connect)
    journal.open()
    await journal.append([opened("a", 1)])
    disk.take_nothing()
    await refused(journal, [ended("a")])
    disk.take_again()
    await journal.close()
    assert (await again(path)).leases[0].end_reason is EndReason.RELEASED


async def test_everybody_hears_of_it_when_the_writer_has_a_defect(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    journal = make(path, disk)
    journal.open()
    disk.hang()
    waiting = [journal.append([happened(1)])]
    await asyncio.to_thread(disk.hung.wait, GUARD_S)
    monkeypatch.setattr(journal_rows, "write", broken)
    waiting += [journal.append([opened(str(number), number)]) for number in range(1, 4)]
    with capture_logs() as logs:
        disk.go_on()
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), GUARD_S)
        with pytest.raises(JournalError, match="a defect"):
            await journal.close()
    assert [type(outcome) for outcome in outcomes] == [type(None), *[JournalError] * 3]
    assert "journal_stopped" in [entry["event"] for entry in logs]
    assert not journal.healthy
    await refused(journal, [happened(2)])


async def test_grants_are_refused_and_come_back_when_the_disk_was_full(path: Path, repository: Path) -> None:
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.adapters.journal_limited", "full", str(path)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    heard = dict(line.split(" ", 1) for line in result.stdout.splitlines() if not line.startswith("{"))
    number, health = heard["refused"].split()
    assert int(number) in (errno.ENOSPC, errno.EIO)
    assert health == "False"
    outcomes, owed = heard["facts"].rsplit(" ", 1)
    assert outcomes == "JournalError JournalError JournalError"
    assert int(owed) in (5, 6), "the event beside the refused grant may have found a last corner"
    assert heard["healthy"] == "0"
    kept = [int(word) for word in heard["kept"].split()]
    assert kept
    after = await again(path)
    assert [each.lease_id for each in after.leases] == ["before", "going", *(f"grant {each}" for each in kept), "after"]
    assert after.leases[0].limit_bytes == 77
    assert after.leases[1].end_reason is EndReason.RELEASED
    assert [each.lease_id for each in after.graves] == ["gone"]
