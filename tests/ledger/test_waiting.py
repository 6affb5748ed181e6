"""The admission queue: order of arrival, one place for each caller, and deadlines that are never late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.ledger.waiting import SPARE_DEADLINES, AdmissionQueue, Waiter
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import Ticket, WorkloadType
from tests.thorough import examples


def waiter(ticket: int, *, wait: float = 10.0, now: float = 0.0, request_id: str = "") -> Waiter:
    """Somebody who waits."""
    request = AllocationRequest(
        holder="w", workload=WorkloadType.OTHER, memory_bytes=1, request_id=request_id, wait_s=wait
    )
    return Waiter(request, Ticket(ticket), now)


def test_order_is_that_of_arrival() -> None:
    queue = AdmissionQueue()
    waiters = [waiter(number, wait=100 - number) for number in range(5)]
    for each in waiters:
        queue.add(each)
    assert list(queue) == waiters
    assert [each.arrival for each in queue] == [1, 2, 3, 4, 5]
    assert len(queue) == 5
    queue.check()


def test_name_is_the_id_or_the_number() -> None:
    queue = AdmissionQueue()
    named, unnamed = waiter(1, request_id="r"), waiter(2)
    queue.add(named)
    queue.add(unnamed)
    assert (named.name, unnamed.name) == ("r", "#2")


def test_walk_is_safe_when_somebody_is_removed_on_the_way() -> None:
    queue = AdmissionQueue()
    for number in range(4):
        queue.add(waiter(number))
    for each in queue:
        queue.remove(each)
    assert len(queue) == queue.callers == 0
    queue.check()


def test_request_stays_until_its_last_caller_leaves() -> None:
    queue = AdmissionQueue()
    first = waiter(1)
    queue.add(first)
    queue.join(first, Ticket(2), 20.0)
    assert (queue.callers, len(queue)) == (2, 1)
    assert queue.leave(Ticket(1)) is None
    assert queue.of(Ticket(1)) is None
    assert queue.of(Ticket(2)) is first
    assert queue.leave(Ticket(2)) is first
    assert len(queue) == 0
    assert queue.next_deadline() is None
    queue.check()


def test_any_caller_may_leave_first() -> None:
    queue = AdmissionQueue()
    first = waiter(1)
    queue.add(first)
    queue.join(first, Ticket(2), 20.0)
    assert queue.leave(Ticket(2)) is None
    assert (queue.of(Ticket(1)), queue.of(Ticket(2)), first.tickets) == (first, None, [Ticket(1)])
    queue.check()


def test_unknown_ticket_cannot_leave() -> None:
    with pytest.raises(KeyError):
        AdmissionQueue().leave(Ticket(1))


def test_deadline_is_the_latest_of_all_callers() -> None:
    queue = AdmissionQueue()
    first = waiter(1, wait=10)
    queue.add(first)
    queue.join(first, Ticket(2), 30.0)
    queue.join(first, Ticket(3), 5.0)
    assert queue.next_deadline() == 30.0
    assert queue.due(29.9) is None
    assert queue.due(30.0) is first


def test_due_is_the_earliest_deadline_first() -> None:
    queue = AdmissionQueue()
    late, early = waiter(1, wait=20), waiter(2, wait=10)
    queue.add(late)
    queue.add(early)
    assert queue.due(9.9) is None
    assert queue.due(50.0) is early
    queue.remove(early)
    assert queue.due(50.0) is late


def test_deadlines_of_the_gone_are_cleared_away() -> None:
    queue = AdmissionQueue()
    lasting = waiter(0, wait=500)
    queue.add(lasting)
    for number in range(1, 1000):
        queue.add(waiter(number, wait=1000))
        queue.leave(Ticket(number))
        assert len(queue._deadlines) <= 2 * len(queue) + SPARE_DEADLINES + 2
    assert queue.next_deadline() == 500.0


@examples(60)
@given(st.lists(st.tuples(st.sampled_from(("add", "join", "leave", "remove")), st.integers(0, 30)), max_size=40))
def test_next_deadline_is_that_of_a_plain_list(steps: list[tuple[str, int]]) -> None:
    queue = AdmissionQueue()
    model: list[Waiter] = []
    tickets = 0
    for verb, number in steps:
        if verb == "add":
            tickets += 1
            model.append(waiter(tickets, wait=float(number)))
            queue.add(model[-1])
        elif model:
            chosen = model[number % len(model)]
            if verb == "join":
                tickets += 1
                queue.join(chosen, Ticket(tickets), float(number * 2))
            elif verb == "remove" or len(chosen.tickets) == 1:
                queue.remove(chosen)
                model.remove(chosen)
            else:
                assert queue.leave(chosen.tickets[0]) is None
        queue.check()
        assert list(queue) == model
        assert queue.next_deadline() == min((each.deadline for each in model), default=None)
