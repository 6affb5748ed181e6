"""What is still there after the end has a name: a ghost while a process lives, a zombie when none does."""

from __future__ import annotations

from arbiter_sidecar.arbiter import explain
from tests.arbiter.desk import Desk, gib, wish


def test_bytes_of_a_living_process_are_a_ghost_and_of_a_dead_one_a_zombie(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(wish("a", 4, pids=(1,), rigid=True))
    desk.sample(held={1: 4})
    desk.release(lease)
    assert not lease.ghost
    assert not lease.zombie
    desk.live(11.0, held={1: 4})
    assert lease.ghost
    desk.exit(1)
    assert not lease.ghost
    assert lease.zombie


def test_unused_bytes_are_known_only_where_use_is(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(wish("a", 4, pids=(1,), rigid=True))
    assert lease.unused_bytes == 0
    desk.sample(held={1: 1})
    assert lease.unused_bytes == gib(3)


def test_use_beyond_the_charge_is_explained(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(wish("a", 4, pids=(1,), rigid=True))
    desk.sample(held={1: 5})
    told = explain.lease(desk.books, lease.lease_id, desk.now)
    assert told.summary.endswith(f"it uses {gib(1)} bytes more than it is charged, which are kept from others")
