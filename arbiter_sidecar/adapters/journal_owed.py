"""Facts that the disk has not taken, in so little memory that they can all be kept until it does."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from arbiter_sidecar.adapters.journal_rows import MAX_EVENTS
from arbiter_sidecar.ports import (
    EventHappened,
    JournalOperation,
    LeaseConfirmed,
    LeaseDrained,
    LeaseEnded,
    LeaseOpened,
    LeaseResized,
    PlanEnded,
    PlanOpened,
)

_Key = tuple[str, str]


class Owed:
    """Facts in order, of which only the newest of each lease or plan counts; the oldest events are lost first.

    Holds at most four facts for each lease that is in the journal, one for each plan, and the events that a journal
    keeps anyway.
    """

    def __init__(self) -> None:
        self._facts: dict[_Key, JournalOperation] = {}
        self._events: deque[EventHappened] = deque(maxlen=MAX_EVENTS)

    def __len__(self) -> int:
        return len(self._facts) + len(self._events)

    def add(self, facts: Iterable[JournalOperation]) -> None:
        """Adds facts that are newer than all that are here. A lease cannot be owed: its opening is left out."""
        for fact in facts:
            if isinstance(fact, EventHappened):
                self._events.append(fact)
            elif (key := _key(fact)) is not None:
                # Taken out first, so that it stands behind whatever it may depend on.
                self._facts.pop(key, None)
                self._facts[key] = fact
                if isinstance(fact, LeaseDrained):
                    self._facts.pop(("resized", fact.lease_id), None)
                    self._facts.pop(("confirmed", fact.lease_id), None)

    def all(self) -> tuple[JournalOperation, ...]:
        """Everything, in an order in which it can be written."""
        return (*self._facts.values(), *self._events)


def _key(fact: JournalOperation) -> _Key | None:
    """What a newer fact of the same key makes superfluous."""
    match fact:
        case LeaseConfirmed(lease_id):
            return "confirmed", lease_id
        case LeaseResized():
            return "resized", fact.lease_id
        case LeaseEnded():
            return "ended", fact.lease_id
        case LeaseDrained(lease_id, _):
            return "drained", lease_id
        case PlanOpened(plan):
            return "plan", plan.plan_id
        case PlanEnded(plan_id):
            return "plan", plan_id
        case LeaseOpened() | EventHappened():
            return None
