"""Processes that are seen but cannot be read: held for the lock delay, or by measurement once that works."""

from __future__ import annotations

from tests.arbiter.desk import Desk, wish


def test_bytes_come_back_after_the_lock_delay_when_nothing_could_ever_be_read(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(wish("a", 10, pids=(1,), rigid=True))
    desk.sample(held={1: None})
    desk.release(lease)
    waiting = desk.ask(wish("b", 20, rigid=True, wait=60))
    desk.live(29.9, held={1: None})
    assert desk.waits(waiting)
    desk.live(30.1, held={1: None})
    assert not desk.waits(waiting)


def test_lock_delay_frees_nothing_that_has_been_read_since(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(wish("a", 10, pids=(1,), rigid=True))
    desk.sample(held={1: None})
    desk.release(lease)
    waiting = desk.ask(wish("b", 20, rigid=True, wait=100))
    desk.live(35.0, held={1: 4})
    assert desk.waits(waiting)
    assert lease.residue_alarmed
    desk.live(40.0, held={1: 0})
    assert not desk.waits(waiting)
