"""The accounts of the holders are found by name and bounded in number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arbiter_sidecar.ledger import accounts
from arbiter_sidecar.ledger.accounts import Accounts

if TYPE_CHECKING:
    import pytest


def test_account_is_the_same_whenever_it_is_asked_for() -> None:
    books = Accounts()
    books.of("default", "a").reclaims += 1
    assert books.of("default", "a").reclaims == 1
    assert books.of("other", "a").reclaims == 0
    assert [(each.namespace, each.holder) for each in books] == [("default", "a"), ("other", "a")]


def test_account_touched_longest_ago_makes_room_when_nobody_lives_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_FORMER", 2)
    books = Accounts()
    for holder in ("a", "b", "a", "c"):
        books.of("default", holder)
    assert [each.holder for each in books] == ["a", "c"]


def test_account_is_kept_while_its_holder_has_a_living_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_FORMER", 1)
    books = Accounts()
    for holder in ("a", "b", "b", "c"):
        books.open("default", holder)
    books.of("default", "a").reclaims = 3
    assert [(each.holder, each.leases, each.blank) for each in books] == [
        ("a", 1, False),
        ("b", 2, True),
        ("c", 1, True),
    ]
    books.close("default", "b")
    books.close("default", "a")
    assert [each.holder for each in books] == ["a", "b", "c"]
    # It comes back with what it had, as long as it is remembered.
    books.open("default", "a")
    assert books.of("default", "a").reclaims == 3
    books.close("default", "b")
    books.close("default", "c")
    assert [each.holder for each in books] == ["c", "a"]
