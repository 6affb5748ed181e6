"""A writer that is killed at any moment: what it was told is kept is kept, nothing is torn, doubled or used twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from arbiter_sidecar.adapters.journal import SqliteJournal
from arbiter_sidecar.ports import GraveRecord, LeaseOpened, LeaseRecord, Recovered
from tests.adapters import journal_script, journal_victim

_KILLS = 200
#: A new file after so many, so that files are also made anew again and again.
_LIVES = 20
#: SQL statements of an opening and a few dozen commits.
_STATEMENTS = 600
#: Longest life of a writer that does not kill itself, seconds.
_LIFE_S = 0.15


class Victims:
    """Writers, one at a time."""

    def __init__(self, repository: Path) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.adapters.journal_victim"],
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{repository}:{repository / 'clients/python/src'}"},
        )

    def live(self, path: Path, seed: int, *, kill_at: int, life_s: float) -> tuple[int, int]:
        """One life: the epoch it has seen, 0 for none, and how many parts of its story it was told are kept."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{path} {seed} {kill_at}\n")
        self._program.stdin.flush()
        heard = {"epoch": 0, "kept": 0}
        for line in self._program.stdout:
            word, _, number = line.partition(" ")
            if word == "over":
                return heard["epoch"], heard["kept"]
            heard[word] = int(number)
            if word == "child" and not kill_at:
                time.sleep(life_s)
                os.kill(heard["child"], signal.SIGKILL)
        raise AssertionError("the writers' program has ended")

    def close(self) -> None:
        """Ends the program."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        self._program.wait(60)
        self._program.stdout.close()


@pytest.fixture
def victims(repository: Path) -> Iterator[Victims]:
    subject = Victims(repository)
    yield subject
    subject.close()


async def _look(path: Path, copy: Path) -> Recovered:
    """What a journal would find; the file itself is left as the dead have left it."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in (path.name, f"{path.name}-wal", f"{path.name}-journal"):
        if (path.parent / name).exists():
            shutil.copy(path.parent / name, copy / name)
    journal = SqliteJournal(copy / path.name)
    recovered = journal.open()
    await journal.close()
    return replace(recovered, epoch=recovered.epoch - 1)


def _parts_kept(seed: int, before: Recovered, after: Recovered, acknowledged: int) -> int:
    """How many parts of the story the journal knows, no fewer than were acknowledged; fails when that is not so.

    Some parts change nothing, so the first that fits is not always the last.
    """
    known = journal_script.Known(before)
    for number, breath in enumerate(journal_script.story(seed, before)):
        if number >= acknowledged and known.is_what(after):
            return number
        assert number <= acknowledged + journal_victim.AHEAD, (
            f"part {acknowledged} was acknowledged, what is known is no part up to {number - 1}:"
            f" {len(before.leases)} leases before, {len(after.leases)} after, last events {after.events[-2:]}"
        )
        known.take(breath)
    raise AssertionError("stories have no end")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["clock", "statement"])
async def test_what_was_acknowledged_is_kept_when_the_writer_is_killed(
    tmp_path: Path, victims: Victims, by: str
) -> None:
    chance = random.Random(by)
    acknowledged, granted, silent, unanswered = 0, 0, 0, 0
    before = Recovered(epoch=0)
    path = tmp_path / "0"
    for life in range(_KILLS // 2):
        if life % _LIVES == 0:
            before = Recovered(epoch=0)
            path = tmp_path / str(life) / "journal.sqlite3"
            path.parent.mkdir()
        kill_at = chance.randint(1, _STATEMENTS) if by == "statement" else 0
        epoch, kept = victims.live(path, life, kill_at=kill_at, life_s=chance.uniform(0.0, _LIFE_S))
        after = await _look(path, tmp_path / "copy")
        assert not after.set_aside
        assert not after.rebooted
        assert after.epoch >= max(before.epoch, epoch), f"life {life}: the epoch went back"
        assert not list(path.parent.glob("*damaged*"))
        unanswered += _parts_kept(life, before, after, kept) > kept
        _assert_single(before, after)
        acknowledged, silent = acknowledged + kept, silent + (epoch == 0)
        granted += sum(lease.lease_id.startswith(f"{life}-") for lease in after.leases)
        before = after
    print(f"\n{_KILLS // 2} killed by {by}, {silent} before an epoch; {acknowledged} answers, {unanswered} late")
    assert acknowledged
    assert granted


def _assert_single(before: Recovered, after: Recovered) -> None:
    everyone: list[LeaseRecord | GraveRecord] = [*after.leases, *after.graves]
    assert len({lease.lease_id for lease in everyone}) == len(everyone)
    assert len({(lease.device_id, lease.fence) for lease in everyone}) == len(everyone)
    assert len({lease.handle for lease in after.leases}) == len(after.leases)
    earlier: list[LeaseRecord | GraveRecord] = [*before.leases, *before.graves]
    known = {lease.lease_id for lease in earlier}
    for lease in everyone:
        assert lease.fence <= after.fences[lease.device_id]
        if lease.lease_id not in known:
            assert lease.fence > before.fences.get(lease.device_id, 0), "a fence was used again"


def test_story_is_the_same_when_it_is_told_again() -> None:
    before = Recovered(epoch=1)
    first, second = journal_script.story(7, before), journal_script.story(7, before)
    breaths = [next(first) for _ in range(300)]
    assert breaths == [next(second) for _ in range(300)]
    assert any(isinstance(operation, LeaseOpened) for breath in breaths for operation in breath)
