"""What sharing cost each holder: how often it had to give, how long that took, and what it lost.

Kept for each namespace and holder, bounded; of those without a living lease the one touched longest ago makes room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

#: Holders without a living lease whose account is kept.
MAX_FORMER = 1_000


class Account:
    """One holder's account.

    Attributes:
        leases: How many living leases it has.
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
        "leases",
        "namespace",
        "overuses",
        "quality_seconds_lost",
        "reclaim_seconds",
        "reclaims",
    )

    def __init__(self, namespace: str, holder: str) -> None:
        self.namespace = namespace
        self.holder = holder
        self.leases = 0
        self.floor_breaches = 0
        self.reclaims = 0
        self.reclaim_seconds = 0.0
        self.quality_seconds_lost = 0.0
        self.ghost_byte_seconds = 0.0
        self.overuses = 0

    @property
    def blank(self) -> bool:
        """Whether sharing has cost it nothing yet."""
        times = self.reclaims + self.floor_breaches + self.overuses
        return not (times or self.quality_seconds_lost or self.ghost_byte_seconds)


class Accounts:
    """The accounts of all holders."""

    def __init__(self) -> None:
        self._living: dict[tuple[str, str], Account] = {}
        self._former: OrderedDict[tuple[str, str], Account] = OrderedDict()

    def __iter__(self) -> Iterator[Account]:
        yield from self._former.values()
        yield from self._living.values()

    def open(self, namespace: str, holder: str) -> None:
        """The holder has one more living lease."""
        account = self.of(namespace, holder)
        account.leases += 1
        key = (namespace, holder)
        if self._former.pop(key, None) is not None:
            self._living[key] = account

    def close(self, namespace: str, holder: str) -> None:
        """The holder has one living lease less."""
        key = (namespace, holder)
        account = self._living[key]
        account.leases -= 1
        if not account.leases:
            del self._living[key]
            self._keep(key, account)

    def of(self, namespace: str, holder: str) -> Account:
        """The account of a holder, opened when there is none."""
        key = (namespace, holder)
        account = self._living.get(key)
        if account is None:
            account = self._former.pop(key, None) or Account(namespace, holder)
            self._keep(key, account)
        return account

    def _keep(self, key: tuple[str, str], account: Account) -> None:
        self._former[key] = account
        if len(self._former) > MAX_FORMER:
            self._former.popitem(last=False)
