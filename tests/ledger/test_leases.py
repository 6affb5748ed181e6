"""The book of leases: names that find them, fences that grow, and a look-out that is never late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.ledger import leases
from arbiter_sidecar.ledger.leases import SPARE_ENTRIES, Lease, LeaseBook
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import DeviceId, EndReason, LeaseId, LeaseState, Process, WorkloadType
from tests.thorough import examples

if TYPE_CHECKING:
    import pytest

BOX = DeviceId("box")
A, B = Process(1, 10), Process(2, 20)


def lease(
    number: int,
    *,
    book: LeaseBook | None = None,
    ttl: float = 10.0,
    window: float = 0.0,
    now: float = 0.0,
    processes: tuple[Process, ...] = (),
) -> Lease:
    """A lease that is in the book, if one is given."""
    request = AllocationRequest(
        holder="w",
        workload=WorkloadType.OTHER,
        memory_bytes=1,
        processes=processes,
        ttl_s=ttl,
        startup_window_s=window,
    )
    made = Lease(
        lease_id=LeaseId(f"lease-{number}"), handle=number, fence=number, device_id=BOX, request=request, now=now
    )
    if book is not None:
        book.add(made)
    return made


def test_lease_is_found_by_all_its_names() -> None:
    book = LeaseBook(first_fence=0)
    first, second = lease(1, book=book, processes=(A,)), lease(2, book=book, processes=(A, B))
    assert book.get("lease-1") is book.by_handle(1) is first
    assert book.holding(A) == (first, second)
    assert book.holding(B) == (second,)
    assert book.get("lease-3") is book.by_handle(3) is None
    assert (len(book), book.total, list(book)) == (2, 2, [first, second])
    book.check()


def test_ended_lease_is_found_until_it_is_forgotten() -> None:
    book = LeaseBook(first_fence=0)
    first, second = lease(1, book=book, processes=(A,)), lease(2, book=book, processes=(A,))
    book.end(first, EndReason.RELEASED, 5.0)
    assert (len(book), book.total) == (1, 2)
    assert book.get("lease-1") is first
    assert book.grave("lease-1") is None
    assert (first.state, first.ended_at, first.accounted_bytes) == (LeaseState.ENDED, 5.0, 0)
    book.forget(first, 6.0)
    assert book.get("lease-1") is book.by_handle(1) is None
    assert book.holding(A) == (second,)
    grave = book.grave("lease-1")
    assert grave is not None
    assert grave is book.grave_by_handle(1)
    assert (grave.fence, grave.end_reason, grave.buried_at) == (1, EndReason.RELEASED, 6.0)
    book.end(second, EndReason.EXPIRED, 6.0)
    book.forget(second, 6.0)
    assert book.holding(A) == ()
    book.check()


def test_graves_are_cleared_when_they_are_old() -> None:
    book = LeaseBook(first_fence=0)
    for number, now in enumerate((0.0, 1.0, 601.0)):
        each = lease(number, book=book)
        book.end(each, EndReason.RELEASED, now)
        book.forget(each, now)
    assert [book.grave(f"lease-{number}") is not None for number in range(3)] == [False, True, True]
    assert book.grave_by_handle(0) is None


def test_graves_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "MAX_GRAVES", 20)
    book = LeaseBook(first_fence=0)
    for number in range(22):
        each = lease(number, book=book)
        book.end(each, EndReason.RELEASED, 0.0)
        book.forget(each, 0.0)
    assert [book.grave(f"lease-{number}") is not None for number in range(3)] == [False, False, True]
    assert book.grave_by_handle(1) is None


def test_fences_grow_on_each_device_above_the_first() -> None:
    book = LeaseBook(first_fence=100)
    assert [book.next_fence(BOX) for _ in range(3)] == [101, 102, 103]
    assert book.next_fence(DeviceId("other")) == 101


def test_state_says_what_the_holder_may_do() -> None:
    one = lease(1)
    states = [one.state]
    one.confirmed = True
    states.append(one.state)
    one.suspect = True
    states.append(one.state)
    one.end_reason = EndReason.EXPIRED
    states.append(one.state)
    assert states == [LeaseState.GRANTED, LeaseState.ACTIVE, LeaseState.SUSPECT, LeaseState.ENDED]


def test_present_bytes_are_measured_or_else_what_is_charged() -> None:
    one = lease(1)
    one.charged_bytes = 5
    assert (one.present_bytes, one.accounted_bytes) == (5, 5)
    one.measured_bytes = 3
    assert (one.present_bytes, one.accounted_bytes) == (3, 5)
    one.measured_bytes = 8
    assert (one.present_bytes, one.accounted_bytes) == (8, 8)
    one.end_reason, one.residue_bytes = EndReason.RELEASED, 8
    one.measured_bytes = 0
    assert (one.present_bytes, one.accounted_bytes) == (0, 8)


def test_renewal_is_seen_when_the_old_entry_comes_up() -> None:
    book = LeaseBook(first_fence=0)
    one = lease(1, book=book)
    assert book.next_attention() == 5.0
    assert book.due(4.9) is None
    one.last_beat, one.deadline = 4.0, 14.0
    # Early is allowed, late is not.
    assert book.next_attention() == 5.0
    assert book.due(8.9) is None
    assert book.next_attention() == 9.0
    assert book.due(9.0) is one


def test_ended_lease_needs_no_look() -> None:
    book = LeaseBook(first_fence=0)
    one = lease(1, book=book)
    book.end(one, EndReason.RELEASED, 1.0)
    assert book.due(100.0) is None
    assert book.next_attention() is None


def test_delay_moves_the_living_only() -> None:
    book = LeaseBook(first_fence=0)
    living, ended = lease(1, book=book, window=3.0), lease(2, book=book)
    book.end(ended, EndReason.RELEASED, 1.0)
    book.delay(60.0)
    assert (living.deadline, living.last_beat, living.quiet_until) == (70.0, 60.0, 63.0)
    assert (ended.deadline, ended.last_beat) == (10.0, 0.0)


def test_entries_of_the_ended_are_cleared_away() -> None:
    book = LeaseBook(first_fence=0)
    lasting = lease(0, book=book, ttl=100.0)
    for number in range(1, 1000):
        one = lease(number, book=book, ttl=300.0)
        book.end(one, EndReason.RELEASED, 0.0)
        book.forget(one, 0.0)
        assert len(book._attention) <= 2 * len(book) + SPARE_ENTRIES + 2
    book.check()
    assert book.due(50.0) is lasting


@examples(60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("add", "beat", "suspect", "end", "pause", "wait")), st.integers(0, 9), st.integers(1, 8)
        ),
        max_size=40,
    )
)
def test_no_look_is_ever_late(steps: list[tuple[str, int, int]]) -> None:
    book = LeaseBook(first_fence=0)
    living: list[Lease] = []
    now = 0.0
    for number, (verb, choice, amount) in enumerate(steps):
        if verb == "add":
            living.append(lease(number, book=book, ttl=float(amount), window=float(choice), now=now))
        elif verb == "pause":
            book.delay(float(amount))
            now += amount
        elif verb == "wait":
            now += amount / 2
        elif living:
            one = living[choice % len(living)]
            if verb == "beat":
                one.last_beat, one.suspect = now, False
                one.deadline = max(now + one.ttl_s, one.quiet_until)
            elif verb == "suspect" and one.attention_at <= now:
                one.suspect = True
            elif verb == "end":
                living.remove(one)
                book.end(one, EndReason.RELEASED, now)
        due = book.due(now)
        assert (due is not None) == any(one.attention_at <= now for one in living)
        assert due is None or due.attention_at <= now
        following = book.next_attention()
        assert all(following is not None and following <= one.attention_at for one in living)
        book.check()
