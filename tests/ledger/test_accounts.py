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


def test_account_touched_longest_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_ACCOUNTS", 2)
    books = Accounts()
    for holder in ("a", "b", "a", "c"):
        books.of("default", holder)
    assert [each.holder for each in books] == ["a", "c"]
