"""What sharing cost each holder: how often it had to give, how long that took, and what it lost.

Kept for each namespace and holder, bounded; the account that was touched longest ago makes room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

#: Holders whose account is kept.
MAX_ACCOUNTS = 1_000


class Account:
    """One holder's account.

    Attributes:
        namespace: Its namespace.
        holder: Its name.
        floor_breaches: Leases taken although their minimum had been agreed.
        reclaims: Orders to give memory back.
        reclaim_seconds: Σ of the time from order to confirmation, of those that were confirmed.
        quality_seconds_lost: Σ over its leases of the time below the best quality, times how far below.
        ghost_byte_seconds: Σ of bytes it kept after the drain grace of an ended lease, times how long.
        overuses: How often it was found to use clearly more than it leased.
    """

    __slots__ = (
        "floor_breaches",
        "ghost_byte_seconds",
        "holder",
        "namespace",
        "overuses",
        "quality_seconds_lost",
        "reclaim_seconds",
        "reclaims",
    )

    def __init__(self, namespace: str, holder: str) -> None:
        self.namespace = namespace
        self.holder = holder
        self.floor_breaches = 0
        self.reclaims = 0
        self.reclaim_seconds = 0.0
        self.quality_seconds_lost = 0.0
        self.ghost_byte_seconds = 0.0
        self.overuses = 0


class Accounts:
    """The accounts of all holders."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[tuple[str, str], Account] = OrderedDict()

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts.values())

    def of(self, namespace: str, holder: str) -> Account:
        """The account of a holder, opened when there is none."""
        key = (namespace, holder)
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(namespace, holder)
            if len(self._accounts) > MAX_ACCOUNTS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(key)
        return account
