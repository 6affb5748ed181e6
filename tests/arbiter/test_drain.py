"""Draining: nobody new is let in, those who wait are told, those who hold go on."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.types import EventKind, Verdict
from tests.arbiter.desk import Desk, qualities, wish


def test_waiting_requests_are_refused_and_leases_go_on(desk: Desk) -> None:
    device = desk.box(24)
    holder = desk.take(wish("a", 20))
    request = wish("b", 20, wait=60, request_id="r")
    tickets = [desk.ask(request), desk.ask(request), desk.ask(wish("c", 20, wait=60))]
    assert device.candidate is not None
    desk.arbiter.drain(desk.now)
    desk.collect()
    assert all(isinstance(desk.error(ticket), errors.ShuttingDown) for ticket in tickets)
    assert desk.books.stats.refused == 3
    assert device.candidate is None
    (event,) = desk.events(EventKind.DRAINING)
    assert event.fields == {"leases": "1"}
    assert desk.report(holder).verdict is Verdict.RENEWED
    desk.live(20.0, holder)
    assert qualities([holder]) == [1.0]
    assert desk.release(holder) is False


def test_nobody_is_let_in_while_draining(desk: Desk) -> None:
    desk.box(24)
    desk.take(wish("a", 4, request_id="r"))
    desk.arbiter.drain(desk.now)
    desk.arbiter.drain(desk.now)
    desk.collect()
    assert len(desk.events(EventKind.DRAINING)) == 1
    before = desk.picture()
    for request in (wish("b", 1), wish("a", 4, request_id="r")):
        with pytest.raises(errors.ShuttingDown):
            desk.arbiter.allocate(request, desk.now)
        with pytest.raises(errors.ShuttingDown):
            desk.arbiter.dry_run(request, desk.now)
    assert desk.picture() == before
