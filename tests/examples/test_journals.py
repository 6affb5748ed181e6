"""The demonstration understands what the workers write, also over restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from examples.first_light.journals import Follower
from examples.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path


def test_follower_adds_up_when_a_worker_is_restarted(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    follower = Follower(path)
    follower.read()
    for counts in ((2, 4), (1, 3)):
        with path.open("a", encoding="utf-8") as file:
            journal = Journal(file, "worker")
            journal.say("asking", memory_bytes=500, min_memory_bytes=100, min_quality=0.4)
            journal.say("rung", rung="large", quality=1.0, limit_bytes=500, used_bytes=480, applied=True, seconds=0.1)
            for count in counts:
                journal.say("made", count=count, rung="large", quality=1.0)
        follower.read()

    said = follower.said
    assert (said.full_bytes, said.rung, said.obeyed_quality) == (500, "large", 1.0)
    assert said.made == 4 + 3
    assert said.made_at_rung == 3


def test_follower_counts_anew_when_a_directive_was_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    with path.open("w", encoding="utf-8") as file:
        journal = Journal(file, "worker")
        journal.say("made", count=3, rung="large", quality=1.0)
        journal.say("rung", rung="small", quality=0.5, limit_bytes=1, used_bytes=1, applied=False, seconds=0.1)
        journal.say("made", count=5, rung="small", quality=0.5)
    follower = Follower(path)
    follower.read()

    assert follower.said.made == 5
    assert follower.said.made_at_rung == 2
    assert follower.said.last == "could not obey 0.50"


def test_follower_waits_for_the_rest_when_a_line_is_half_written(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    path.write_bytes(b'not json\n[1]\n{"event": "made", "cou')
    follower = Follower(path)
    follower.read()
    assert follower.said.made == 0
    with path.open("ab") as file:
        file.write(b'nt": 1}\n')
    follower.read()

    assert follower.said.made == 1


def test_follower_keeps_the_reason_when_a_worker_gives_up(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    with path.open("w", encoding="utf-8") as file:
        Journal(file, "worker").say("lease_lost", detail="expired")
    follower = Follower(path)
    follower.read()

    assert follower.said.failure == "lease_lost: expired"
