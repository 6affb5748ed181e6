"""What a journal makes of the file it finds: its own, an older or newer one, a damaged one, one of another boot."""

from __future__ import annotations

import asyncio
import errno
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import journal_schema
from arbiter_sidecar.adapters.journal import SqliteJournal
from arbiter_sidecar.ports import JournalError, Recovered
from tests.adapters import journal_script
from tests.adapters.journal_script import happened, lease, opened

_PARTS = 400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


async def again(path: Path, *, boot: str | None = None, least_epoch: int = 1) -> Recovered:
    """What is known in that file."""
    journal = SqliteJournal(path, boot=boot, least_epoch=least_epoch)
    recovered = journal.open()
    await journal.close()
    return recovered


async def written(path: Path, *, boot: str | None = None) -> list[journal_script.Known]:
    """Tells a story; what is known after each part of it."""
    journal = SqliteJournal(path, boot=boot)
    before = journal.open()
    stages = [journal_script.Known(before)]
    waiting = []
    for breath in journal_script.story(3, before):
        stages.append(journal_script.Known(_as_recovered(stages[-1])))
        stages[-1].take(breath)
        waiting.append(journal.append(breath))
        if len(stages) > _PARTS:
            break
    await asyncio.gather(*waiting)
    await journal.close()
    return stages


def _as_recovered(known: journal_script.Known) -> Recovered:
    return Recovered(
        epoch=0,
        leases=tuple(known.leases.values()),
        graves=tuple(known.graves),
        requests=known.requests,
        fences=known.fences,
        plans=tuple(known.plans.values()),
        events=tuple(known.events.values()),
    )


async def _dirty_copy(path: Path, copy: Path) -> list[journal_script.Known]:
    """Tells a story and copies the file with its log, as a process that was killed leaves them."""
    journal = SqliteJournal(path)
    before = journal.open()
    stages = [journal_script.Known(before)]
    for breath in journal_script.story(5, before):
        if len(stages) > 120:
            break
        stages.append(journal_script.Known(_as_recovered(stages[-1])))
        stages[-1].take(breath)
        await journal.append(breath)
    copy.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        shutil.copy(path.parent / name, copy / name)
    await journal.close()
    return stages


async def test_epoch_grows_when_it_is_opened_and_follows_a_higher_one(path: Path) -> None:
    assert (await again(path)).epoch == 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert (await again(path)).epoch == 2
    assert (await again(path, least_epoch=40)).epoch == 40
    assert (await again(path, least_epoch=7)).epoch == 41
    with pytest.raises(JournalError, match="epoch") as raised:
        await again(path, least_epoch=1 << 31)
    assert raised.value.errno == errno.ERANGE
    assert (await again(path)).epoch == 42


async def test_leases_are_dropped_when_the_machine_was_started_anew(path: Path) -> None:
    stages = await written(path, boot="first")
    kept = await again(path, boot="first")
    assert stages[-1].is_what(kept)
    assert (kept.rebooted, kept.dropped) == (False, 0)
    after = await again(path, boot="second")
    assert (after.rebooted, after.dropped, after.epoch) == (True, len(kept.leases), kept.epoch + 1)
    assert (after.leases, after.graves, after.requests, after.plans) == ((), (), {}, ())
    assert (after.fences, after.events) == (kept.fences, kept.events)
    once_more = await again(path, boot="second")
    assert (once_more.rebooted, once_more.leases, once_more.fences) == (False, (), kept.fences)


async def test_boot_is_asked_of_the_kernel(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert re.fullmatch(r"[0-9a-f-]{36}", journal_schema.boot_id())
    await written(path)
    assert not (await again(path)).rebooted
    elsewhere = tmp_path / "boot_id"
    elsewhere.write_text("another run\n")
    monkeypatch.setattr(journal_schema, "BOOT_ID", elsewhere)
    assert (await again(path)).rebooted
    monkeypatch.setattr(journal_schema, "BOOT_ID", tmp_path / "missing")
    with pytest.raises(JournalError, match="boot id"):
        SqliteJournal(path).open()


def _overwrite(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def _run(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        connection = sqlite3.connect(path)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return damage


def _replaced(path: Path) -> None:
    path.unlink()
    _run("CREATE TABLE recipe (name TEXT)", "INSERT INTO recipe VALUES ('soup')")(path)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b"not a database, and long enough to be one " * 200), id="garbage"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), id="half"),
        pytest.param(_overwrite, id="overwritten"),
        pytest.param(_replaced, id="foreign"),
        pytest.param(_run("DROP TABLE grave"), id="table-missing"),
        pytest.param(_run("DELETE FROM meta"), id="no-version"),
        pytest.param(_run("UPDATE lease SET request = '{}'"), id="no-request"),
        pytest.param(_run("UPDATE lease SET request = 'x'"), id="no-json"),
        pytest.param(_run("UPDATE lease SET end_reason = 99"), id="no-reason"),
        pytest.param(_run("UPDATE event SET fields = '{\"a\": 1}'"), id="no-fields"),
        pytest.param(_run("UPDATE lease SET handle = 'x' || fence"), id="no-number"),
    ],
)
async def test_file_is_moved_aside_when_it_is_damaged(path: Path, damage: Callable[[Path], None]) -> None:
    journal = SqliteJournal(path)
    journal.open()
    for number in range(1, 200):
        journal.append([opened(str(number), number), happened(number)])
    await journal.close()
    damage(path)
    content = path.read_bytes()
    journal = SqliteJournal(path, least_epoch=12)
    found = journal.open()
    assert found == Recovered(epoch=12, set_aside=found.set_aside)
    assert re.fullmatch(r"journal\.sqlite3\.damaged-\d{8}T\d{6}Z", Path(found.set_aside).name)
    assert Path(found.set_aside).read_bytes() == content
    await journal.append([opened("new", 1)])
    await journal.close()
    after = await again(path)
    assert (after.epoch, after.set_aside, [each.lease_id for each in after.leases]) == (13, "", ["new"])


async def test_damaged_files_have_names_of_their_own_when_they_come_at_once(path: Path) -> None:
    names = set()
    for _ in range(3):
        path.write_bytes(b"garbage" * 1000)
        names.add((await again(path)).set_aside)
    assert len(names) == 3
    assert all(Path(name).read_bytes() == b"garbage" * 1000 for name in names)


async def test_beginning_is_known_when_the_log_was_cut_short(path: Path, tmp_path: Path) -> None:
    stages = await _dirty_copy(path, tmp_path / "dead")
    log = tmp_path / "dead" / f"{path.name}-wal"
    whole = log.read_bytes()
    known = []
    for number in range(25):
        copy = tmp_path / f"cut {number}"
        shutil.copytree(log.parent, copy)
        (copy / log.name).write_bytes(whole[: len(whole) * number // 24])
        found = await again(copy / path.name)
        if found.set_aside or found == Recovered(epoch=1):
            # Not even the tables had been moved out of the log.
            known.append(0)
        else:
            known.append(max(place for place, stage in enumerate(stages) if stage.is_what(found)))
    assert known == sorted(known)
    assert known[0] == 0
    assert known[-1] == len(stages) - 1
    assert len(set(known)) > 12


async def test_beginning_is_known_when_the_log_has_a_wrong_byte(path: Path, tmp_path: Path) -> None:
    stages = await _dirty_copy(path, tmp_path / "dead")
    log = tmp_path / "dead" / f"{path.name}-wal"
    whole = bytearray(log.read_bytes())
    whole[len(whole) * 2 // 3] ^= 0xFF
    log.write_bytes(whole)
    found = await again(tmp_path / "dead" / path.name)
    (place, *_) = [place for place, stage in enumerate(stages) if stage.is_what(found)]
    assert 0 < place < len(stages) - 1


async def test_journal_is_refused_and_left_alone_when_a_newer_release_wrote_it(path: Path) -> None:
    await written(path)
    _run("UPDATE meta SET schema = 9")(path)
    content = path.read_bytes()
    with pytest.raises(JournalError, match=r"newer release \(version 9, this one knows up to \d+\)") as raised:
        SqliteJournal(path).open()
    assert raised.value.errno == errno.ENOTSUP
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir() if "damaged" in each.name] == []


_NEXT = (*journal_schema.STEPS, ("ALTER TABLE lease ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'",))


def _open_with(path: Path, steps: tuple[tuple[str, ...], ...]) -> Recovered:
    opened = journal_schema.open_file(
        path, least_epoch=1, boot=journal_schema.boot_id(), connect=journal_schema.connect, full=False, steps=steps
    )
    opened.connection.close()
    return opened.recovered


async def test_journal_is_brought_up_to_date_when_an_older_release_wrote_it(path: Path) -> None:
    stages = await written(path)
    found = _open_with(path, _NEXT)
    assert stages[-1].is_what(found)
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT schema FROM meta").fetchone() == (len(_NEXT),)
    assert reader.execute("SELECT DISTINCT colour FROM lease").fetchall() == [("red",)]
    reader.close()
    assert stages[-1].is_what(_open_with(path, _NEXT))
    with pytest.raises(JournalError, match="newer release"):
        SqliteJournal(path).open()


async def test_journal_stays_as_it_was_when_it_cannot_be_brought_up_to_date(path: Path) -> None:
    stages = await written(path)
    with pytest.raises(JournalError, match="no such table: absent"):
        _open_with(path, (*_NEXT, ("DROP TABLE absent",)))
    found = await again(path)
    assert stages[-1].is_what(found)
    assert not found.set_aside


async def test_journal_is_refused_when_its_folder_is_missing_or_a_file(path: Path, tmp_path: Path) -> None:
    for wrong, number in ((tmp_path / "missing" / "journal", errno.ENOENT), (tmp_path, errno.EISDIR)):
        with pytest.raises(JournalError, match="cannot be opened") as raised:
            SqliteJournal(wrong).open()
        assert raised.value.errno == number
        assert raised.value.filename == str(wrong)


@pytest.mark.parametrize("there", ["nothing", "what may be read", "what may be written"])
async def test_journal_is_refused_when_its_folder_may_not_be_written(path: Path, repository: Path, there: bool) -> None:
    if there:
        await written(path)
        path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "tests.adapters.journal_limited", "open", str(path)],
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        path.parent.chmod(0o700)
    assert (result.returncode, result.stdout) == (0, f"refused {errno.EACCES}\n"), result.stderr
    assert [each.name for each in path.parent.iterdir() if "damaged" in each.name] == []


async def test_journal_is_refused_when_somebody_else_is_writing(path: Path) -> None:
    await written(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match="locked") as raised:
        SqliteJournal(path).open()
    assert raised.value.errno == errno.EBUSY
    other.execute("ROLLBACK")
    other.close()
    assert (await again(path)).leases


async def test_new_epoch_is_flushed_when_other_commits_are_not(path: Path) -> None:
    seen: list[str] = []

    def connect(at: Path) -> sqlite3.Connection:
        connection = journal_schema.connect(at)
        connection.set_trace_callback(seen.append)
        return connection

    for full in (False, True):
        seen.clear()
        journal = SqliteJournal(path, connect=connect, full=full)
        journal.open()
        await journal.append([replace(opened(str(full), 1 + 4096 * full), lease=lease(str(full), 1 + 4096 * full))])
        await journal.close()
        words = [word for word in seen if word.startswith(("PRAGMA synchronous", "UPDATE meta", "INSERT INTO lease"))]
        assert [word.split(" (")[0].split(" SET")[0] for word in words if "schema" not in word] == [
            "PRAGMA synchronous = FULL",
            "UPDATE meta",
            f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}",
            "INSERT INTO lease",
        ]
