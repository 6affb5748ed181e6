"""Bounds what workers can make of labels: their names are made harmless, and only so many get a series of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter

from arbiter_sidecar.ledger.accounts import Account
from arbiter_sidecar.metrics import catalogue
from arbiter_sidecar.rpc.status import printable

#: Longest value of a label that somebody else has chosen.
MAX_LABEL = 64
#: Holders that are shown by name.
MAX_HOLDERS = 100
#: Where everybody is counted who has no series of his own.
OTHERS = ("other", "other")

#: A namespace and a holder, as the books have them.
Key = tuple[str, str]
#: The same, as they are shown.
Shown = tuple[str, str]

#: What is kept of an account, and which metric shows it.
FIGURES = {
    catalogue.RECLAIMS: "reclaims",
    catalogue.RECLAIM_SECONDS: "reclaim_seconds",
    catalogue.FLOOR_BREACHES: "floor_breaches",
    catalogue.QUALITY_LOST: "quality_seconds_lost",
    catalogue.GHOST_BYTE_SECONDS: "ghost_byte_seconds",
    catalogue.OVERUSES: "overuses",
}
_figures = attrgetter(*FIGURES.values())


def harmless(name: str) -> str:
    """A name that cannot break a line or a terminal, and is not long; what can be printed stays as it is."""
    if not name.isprintable():
        return printable(name, MAX_LABEL)
    return name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"


class HolderNames:
    """Who is shown by name: first come, first served, for as long as there is room or a lease of theirs lives.

    A holder that has no living lease any more makes room only when somebody else wants it, so that series do not come
    and go for nothing.
    """

    def __init__(self, limit: int = MAX_HOLDERS) -> None:
        self._limit = limit
        self._shown: dict[Key, Shown] = {}
        self._wanted = False
        self._living: set[Key] = set()

    def begin(self) -> None:
        """A new scrape: those who were not alive in the last one make room, if room was wanted."""
        if self._wanted:
            self._shown = {key: shown for key, shown in self._shown.items() if key in self._living}
        self._wanted = False
        self._living = set()

    def living(self, key: Key) -> Shown:
        """How the holder of a living lease is shown."""
        self._living.add(key)
        return self.shown(key)

    def shown(self, key: Key) -> Shown:
        """How a holder is shown."""
        shown = self._shown.get(key)
        if shown is None:
            if len(self._shown) >= self._limit:
                self._wanted = True
                return OTHERS
            namespace, holder = key
            shown = self._shown[key] = (harmless(namespace), harmless(holder))
        return shown

    def __contains__(self, shown: Shown) -> bool:
        return shown == OTHERS or shown in self._shown.values()


class Charges:
    """Accounts as counters that never fall, whoever is shown by name and whichever accounts are forgotten."""

    def __init__(self, names: HolderNames) -> None:
        self._names = names
        self._seen: dict[Key, tuple[float, ...]] = {}
        self._totals: dict[Shown, tuple[float, ...]] = {}

    def update(self, accounts: Iterable[Account]) -> Mapping[Shown, tuple[float, ...]]:
        """Adds what has come since the last time; returns all totals, in the order of ``FIGURES``."""
        nothing = (0.0,) * len(FIGURES)
        seen: dict[Key, tuple[float, ...]] = {}
        totals = self._totals
        for account in accounts:
            key = (account.namespace, account.holder)
            figures: tuple[float, ...] = _figures(account)
            before = self._seen.get(key, nothing)
            if any(now < then for now, then in zip(figures, before, strict=True)):
                # It was forgotten in between and begun anew.
                before = nothing
            seen[key] = figures
            shown = self._names.shown(key)
            sums = totals.get(shown, nothing)
            totals[shown] = tuple(total + now - then for total, now, then in zip(sums, figures, before, strict=True))
        self._seen = seen
        self._totals = {shown: sums for shown, sums in totals.items() if shown in self._names}
        return self._totals
