"""Working under a lease: obey the newest directive first, then work, until asked to stop or the lease is lost."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Protocol

import arbiter_client
from examples import memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from examples.journal import Journal
    from examples.rungs import SizedRung
    from examples.stop import Stop

#: The kernel takes pages back within microseconds of an unmap; seconds are for a machine that is very busy.
_SETTLE_S = 2.0
_SETTLE_PAUSE_S = 0.02
#: A small worker could produce far more than anybody looks at; the rest of the time is left to its neighbours.
_UNIT_S = 0.8
_LOOK_UP_S = 0.05


class Workload(Protocol):
    """What a worker does with its memory."""

    @property
    def rungs(self) -> Sequence[SizedRung]:
        """Every size it can run at, largest first."""

    def resize(self, rung: SizedRung, quality: float) -> None:
        """Becomes that size; frees what it has before it takes anything new.

        Raises:
            RuntimeError: It cannot run at that size.
        """

    def work(self, interrupted: Callable[[], bool]) -> None:
        """One unit of work; stops early, losing the unit, soon after `interrupted` says so.

        Raises:
            RuntimeError: The work failed.
            OSError: A result could not be written.
        """

    def close(self) -> None:
        """Frees everything."""


class Holding:
    """A lease that is being worked under."""

    __slots__ = ("_journal", "_ladder", "_lease", "_obeyed", "_rung", "_stop", "_worked", "_workload")

    def __init__(
        self,
        workload: Workload,
        sizes: arbiter_client.Ladder[SizedRung],
        lease: arbiter_client.BlockingLease,
        journal: Journal,
        stop: Stop,
    ) -> None:
        self._workload = workload
        self._ladder = sizes
        self._lease = lease
        self._journal = journal
        self._stop = stop
        self._obeyed: arbiter_client.Directive | None = None
        self._rung: SizedRung | None = None
        #: Whether anything was produced since the last directive: growing step by step must not be all it does.
        self._worked = True

    def last(self) -> None:
        """Works until `stop` is asked.

        Raises:
            LeaseLost: The arbiter took the lease, or could not be reached in time to keep it.
        """
        try:
            while not self._stop.asked:
                self._lease.check()
                directive = self._in_force()
                if self._is_new(directive) and (self._worked or self._is_urgent(directive)):
                    self._obey(directive)
                else:
                    self._work()
        finally:
            # Freed before the lease is given back: nobody is granted bytes that are still in use here.
            self._workload.close()

    def _work(self) -> None:
        until = time.monotonic() + _UNIT_S
        self._workload.work(self._interrupted)
        self._worked = True
        while time.monotonic() < until and not self._interrupted() and not self._is_new(self._in_force()):
            time.sleep(_LOOK_UP_S)

    def _in_force(self) -> arbiter_client.Directive:
        """The newest directive, at the safe quality when the arbiter has been silent for too long."""
        directive, quality = self._lease.directive, self._lease.quality
        return directive if quality >= directive.quality else dataclasses.replace(directive, quality=quality)

    def _is_new(self, directive: arbiter_client.Directive) -> bool:
        obeyed = self._obeyed
        return obeyed is None or directive.replaces(obeyed) or directive.quality != obeyed.quality

    def _is_urgent(self, directive: arbiter_client.Directive) -> bool:
        """Whether others wait for it: shrinking cannot wait, growing can until something has been produced."""
        if self._obeyed is None or self._rung is None:
            return True
        return directive.quality < self._obeyed.quality or directive.memory_limit_bytes < self._rung.memory_bytes

    def _interrupted(self) -> bool:
        if self._stop.asked or self._lease.lost:
            return True
        directive = self._in_force()
        return self._is_new(directive) and self._is_urgent(directive)

    def _obey(self, directive: arbiter_client.Directive) -> None:
        self._obeyed = directive
        self._worked = False
        began = time.monotonic()
        try:
            chosen = self._ladder.for_directive(directive).settings
        except arbiter_client.NoRungFits:
            # As small as it gets; what is then in use is told below, as a refusal.
            chosen = list(self._ladder)[-1].settings
        if self._rung is None or chosen.name != self._rung.name:
            self._workload.resize(chosen, directive.quality)
            self._rung = chosen
        used = _settled(directive.memory_limit_bytes)
        if used <= directive.memory_limit_bytes:
            self._lease.applied(directive, used_memory_bytes=used)
        else:
            self._lease.refused(directive, achievable_quality=self._lowest_quality_for(used))
        self._journal.say(
            "rung",
            rung=chosen.name,
            quality=directive.quality,
            limit_bytes=directive.memory_limit_bytes,
            used_bytes=used,
            applied=used <= directive.memory_limit_bytes,
            seconds=round(time.monotonic() - began, 3),
        )

    def _lowest_quality_for(self, used: int) -> float:
        """The quality whose memory limit covers `used` bytes; 1 when none does."""
        covering = [rung.min_quality for rung in self._ladder if (rung.memory_bytes or 0) >= used]
        return min(covering, default=1.0)


def _settled(limit: int) -> int:
    """Bytes in use now, after giving freed pages some time to arrive below `limit`."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        memory.return_freed_pages()
        used = memory.proportional_bytes()
        if used <= limit or time.monotonic() > deadline:
            return used
        time.sleep(_SETTLE_PAUSE_S)
