"""What every worker does: lease, work, obey directives, and leave when asked or when the lease is lost.

One thread does it all. Work comes in units of at most about a second; between units, and inside them wherever the
workload looks, the newest directive is read from the lease (a plain attribute). Heartbeats are the client's business.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import arbiter_client
from examples import memory, rungs
from examples.rungs import SizedRung
from examples.stop import Stop, StopAsked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from examples.journal import Journal

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_LEASE_LOST = 3

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What to ask the arbiter for.

    Attributes:
        name: Holder, for people.
        workload_type: "llm" or "image".
        priority: "background", "low", "normal", "high" or "critical".
        min_quality: The lowest useful quality in [0,1].
        memory_bytes: Never lease more than this; None: what the largest size needs.
        address: Where the arbiter listens; None: the usual place.
    """

    name: str
    workload_type: str
    priority: str
    min_quality: float
    memory_bytes: int | None
    address: str | None


def run(
    workload: Workload,
    terms: Terms,
    journal: Journal,
    stop: Stop,
    connect: Callable[[str | None], arbiter_client.BlockingClient] = arbiter_client.connect_blocking,
) -> int:
    """Leases memory for `workload` and works until `stop` is asked or the lease is lost.

    Args:
        workload: What to do with the memory.
        terms: What to ask for.
        journal: Is told what happens.
        stop: Ends the work when asked.
        connect: Makes the client from an address.

    Returns:
        The exit code: EXIT_DONE, EXIT_FAILED or EXIT_LEASE_LOST.
    """
    try:
        sizes = rungs.up_to(workload.rungs, terms.memory_bytes)
        full, least = sizes[0].memory_bytes, sizes[-1].memory_bytes
        journal.say("asking", memory_bytes=full, min_memory_bytes=least, min_quality=terms.min_quality)
        with stop.interrupting() as interruptible, connect(terms.address) as client:
            with client.lease(
                terms.name,
                memory=full,
                min_memory=least,
                min_quality=terms.min_quality,
                workload_type=terms.workload_type,
                priority=terms.priority,
                pids=[os.getpid()],
            ) as lease:
                interruptible.close()
                journal.say("leased", lease_id=lease.lease_id, device=lease.device_id)
                _Holding(workload, rungs.to_ladder(sizes, terms.min_quality), lease, journal, stop).last()
            journal.say("released")
    except StopAsked:
        journal.say("stopped", detail="before the lease was granted")
    except arbiter_client.LeaseLost as error:
        journal.say("lease_lost", detail=error.message)
        return EXIT_LEASE_LOST
    except (arbiter_client.ArbiterClientError, ValueError, RuntimeError, OSError) as error:
        journal.say("failed", detail=f"{type(error).__name__}: {error}")
        return EXIT_FAILED
    return EXIT_DONE


class _Holding:
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
