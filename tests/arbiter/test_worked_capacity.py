"""The worked numbers of capacity and foreign use, met by real grants: to the byte, and one byte more is too much."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.policy import capacity
from arbiter_sidecar.types import GIB, PressureLevel
from tests.arbiter.desk import Desk, wish


@pytest.mark.parametrize(
    ("size", "cap", "expected"),
    [
        pytest.param("24GiB", None, 21.6, id="24-gib"),
        pytest.param("80GiB", None, 72.0, id="80-gib"),
        pytest.param("4GiB", None, 3.5, id="4-gib"),
        pytest.param("2GiB", None, 1.5, id="2-gib"),
        pytest.param("40GiB", "8g", 7.2, id="40-gib-capped"),
    ],
)
def test_whole_capacity_is_granted_and_not_a_byte_more(desk: Desk, size: str, cap: str | None, expected: float) -> None:
    usable = capacity.usable_bytes(capacity.parse_bytes(size), None if cap is None else capacity.parse_bytes(cap))
    assert usable / GIB == pytest.approx(expected, abs=1e-9)
    device = desk.card(usable / GIB)
    assert device.facts.capacity_bytes == usable
    before = desk.picture()
    with pytest.raises(errors.ExceedsCapacity):
        desk.arbiter.allocate(wish("a", (usable + 1) / GIB, rigid=True, wait=60), desk.now)
    assert desk.picture() == before
    assert desk.take(wish("a", usable / GIB, rigid=True, pids=(1,))).limit_bytes == usable
    assert device.available_bytes == 0


def test_two_cards_are_never_one_when_both_are_free(desk: Desk) -> None:
    for name in ("gpu0", "gpu1"):
        desk.card(21.6, name)
    with pytest.raises(errors.ExceedsCapacity) as refused:
        desk.arbiter.allocate(wish("a", 30, rigid=True, wait=60), desk.now)
    # 43.2 GiB are free in all.
    assert int(refused.value.metadata()["capacity_bytes"]) / GIB == pytest.approx(21.6, abs=1e-8)


def test_grants_follow_the_ceiling_when_a_stranger_comes_and_leaves(desk: Desk) -> None:
    device = desk.card(36)
    desk.sample({}, foreign=6.0)
    assert device.available_bytes == 30 * GIB
    desk.sample({}, foreign=12.0)
    assert device.available_bytes == 24 * GIB
    tickets = [desk.ask(wish("w", size, rigid=True, pids=(1,), wait=60)) for size in (27.0, 2.25)]
    assert [desk.waits(ticket) for ticket in tickets] == [True, True]
    # The stranger has gone; a quarter of the gap comes back with each sample.
    desk.sample({}, foreign=0.0)
    assert (device.ceiling_bytes, device.foreign_bytes) == (27 * GIB, 0)
    assert [desk.waits(ticket) for ticket in tickets] == [False, True]
    desk.sample({1: 27.0}, foreign=0.0)
    assert device.ceiling_bytes == 29.25 * GIB
    assert [desk.waits(ticket) for ticket in tickets] == [False, False]
    assert device.available_bytes == 0


def test_nothing_is_available_when_strangers_hold_more_than_there_is(desk: Desk) -> None:
    device = desk.card(36)
    desk.sample({}, foreign=40.0)
    assert (device.ceiling_bytes, device.available_bytes) == (0, 0)
    assert isinstance(desk.error(desk.ask(wish("a", 0.1, rigid=True))), errors.InsufficientMemory)


@pytest.mark.parametrize("told", [True, False], ids=["strangers-are-listed", "only-the-total-is-known"])
def test_a_promise_counts_before_it_is_used_when_pressure_is_told(desk: Desk, told: bool) -> None:
    """10 are granted, 6 are measured, the holders have 4 of them: the stranger has 2, and 12 of 24 are taken."""
    device = desk.card(24)
    desk.take(wish("a", 6, rigid=True, pids=(1,)))
    desk.take(wish("b", 4, rigid=True, pids=(2,)))
    desk.sample({1: 3.0, 2: 1.0}, foreign=2.0 if told else None, used=6.0)
    assert device.granted_bytes == 10 * GIB
    assert device.foreign_bytes == 2 * GIB
    assert device.pressure == 12 / 24
    assert device.level is PressureLevel.MODERATE
