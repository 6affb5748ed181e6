"""Heartbeats: each lease has its own verdict, and nothing is renewed that has ended."""

from __future__ import annotations

from arbiter_sidecar.arbiter.renewal import MAX_WORKERS
from arbiter_sidecar.requests import Beat, KvShare, KvUsage, Report
from arbiter_sidecar.types import EndReason, EventKind, LeaseState, Priority, ReportOutcome, Verdict
from tests.arbiter.desk import Desk, gib, state_of, wish


def test_lease_lives_one_ttl_longer_when_it_beats(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=30))
    desk.at(29.9)
    assert desk.beat(lease)
    assert lease.deadline == 59.9
    desk.at(59.8)
    assert lease.alive
    desk.at(59.9)
    assert (state_of(lease), lease.end_reason) == (LeaseState.ENDED, EndReason.EXPIRED)


def test_first_beat_confirms_once(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish())
    assert state_of(lease) is LeaseState.GRANTED
    desk.beat(lease)
    desk.beat(lease)
    assert state_of(lease) is LeaseState.ACTIVE
    assert len(desk.events(EventKind.LEASE_CONFIRMED)) == 1


def test_stream_confirms_but_does_not_renew(desk: Desk) -> None:
    desk.box()
    lease, other = desk.take(wish(ttl=10)), desk.take(wish(ttl=10))
    desk.now = 4.0
    desk.arbiter.confirm([lease.lease_id, "lease-9"], desk.now)
    desk.collect()
    assert (state_of(lease), state_of(other)) == (LeaseState.ACTIVE, LeaseState.GRANTED)
    assert lease.deadline == 10.0
    desk.arbiter.confirm([lease.lease_id], desk.now)
    desk.collect()
    assert len(desk.events(EventKind.LEASE_CONFIRMED)) == 1
    desk.at(10.0)
    desk.arbiter.confirm([other.lease_id], desk.now)
    assert not other.confirmed


def test_handle_answers_only_when_there_is_something_to_say(desk: Desk) -> None:
    desk.box()
    quiet, behind = desk.take(wish("a")), desk.take(wish("b"))
    desk.apply(quiet)
    (result,) = desk.beat(quiet, behind)
    assert (result.verdict, result.handle, result.lease) == (Verdict.RENEWED, behind.handle, behind)


def test_report_always_has_an_answer(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish())
    result = desk.report(lease)
    assert (result.verdict, result.handle, result.lease_id, result.lease) == (Verdict.RENEWED, 0, "lease-1", lease)


def test_others_are_renewed_when_one_is_bad(desk: Desk) -> None:
    desk.box()
    good, ended = desk.take(wish("a")), desk.take(wish("b"))
    desk.release(ended)
    desk.now = 10.0
    reports = (
        Report(lease_id=ended.lease_id, fence=ended.fence),
        Report(lease_id=good.lease_id, fence=good.fence + 1),
        Report(lease_id=ended.lease_id.__class__("lease-9"), fence=1),
    )
    outcome = desk.arbiter.heartbeat(Beat(handles=(99, good.handle, ended.handle), reports=reports), desk.now)
    verdicts = [(result.verdict, result.handle, result.lease_id, result.end_reason) for result in outcome.results]
    assert verdicts == [
        (Verdict.NOT_FOUND, 99, "", EndReason.NONE),
        (Verdict.RENEWED, good.handle, good.lease_id, EndReason.NONE),
        (Verdict.FENCED, ended.handle, ended.lease_id, EndReason.RELEASED),
        (Verdict.FENCED, 0, ended.lease_id, EndReason.RELEASED),
        (Verdict.FENCED, 0, good.lease_id, EndReason.NONE),
        (Verdict.NOT_FOUND, 0, "lease-9", EndReason.NONE),
    ]
    assert all(result.reason for result in outcome.results if result.verdict is not Verdict.RENEWED)
    assert good.deadline == 25.0
    assert not outcome.touched


def test_wrong_fence_renews_nothing(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish())
    desk.now = 10.0
    assert desk.report(lease, fence=lease.fence - 1).verdict is Verdict.FENCED
    assert (lease.deadline, lease.confirmed, lease.applied_revision) == (15.0, False, 0)


def test_buried_lease_is_fenced_by_handle_and_by_id(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish())
    desk.release(lease)
    desk.at(31.0)
    assert desk.drained(lease)
    assert desk.beat(lease)[0].verdict is Verdict.FENCED
    assert desk.beat(lease)[0].end_reason is EndReason.RELEASED
    assert desk.report(lease).end_reason is EndReason.RELEASED
    assert desk.report(lease, fence=1).verdict is Verdict.FENCED
    assert desk.report(lease, fence=1).end_reason is EndReason.NONE


def test_grave_is_forgotten_when_it_is_old(desk: Desk) -> None:
    desk.box()
    lease, other = desk.take(wish()), desk.take(wish(ttl=300))
    desk.release(lease)
    desk.at(30.0)
    desk.at(100.0)
    desk.beat(other)
    desk.at(200.0)
    desk.release(other)
    # Graves are cleared when the next one is dug: 600 s of draining later the first is too old.
    desk.at(800.0)
    assert desk.drained(other)
    assert desk.beat(lease)[0].verdict is Verdict.NOT_FOUND
    assert desk.report(lease).verdict is Verdict.NOT_FOUND
    assert desk.beat(other)[0].verdict is Verdict.FENCED


def test_old_message_is_ignored_when_a_newer_one_was_seen(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish())

    def stale(incarnation: int, sequence: int, worker: str = "w") -> bool:
        beat = Beat(worker=worker, incarnation=incarnation, sequence=sequence, handles=(lease.handle,))
        return desk.arbiter.heartbeat(beat, desk.now).stale

    desk.now = 1.0
    assert not stale(1, 5)
    desk.now = 2.0
    assert stale(1, 5)
    assert stale(1, 4)
    assert stale(0, 9)
    assert lease.deadline == 16.0
    assert not stale(1, 6)
    assert not stale(2, 1)
    assert stale(1, 7)
    # No number and no name: nothing to put in order.
    assert not stale(0, 0)
    assert not stale(1, 1, worker="")
    assert not stale(1, 1, worker="other")


def test_order_is_remembered_for_a_bounded_number_of_workers(desk: Desk) -> None:
    def stale(worker: str, sequence: int) -> bool:
        return desk.arbiter.heartbeat(Beat(worker=worker, sequence=sequence), desk.now).stale

    assert not stale("a", 5)
    assert not stale("b", 5)
    assert not stale("a", 6)
    for number in range(MAX_WORKERS - 1):
        assert not stale(f"w{number}", 5)
    # The one that was silent longest is forgotten.
    assert stale("a", 6)
    assert not stale("b", 5)


def test_usage_is_kept_as_reported(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(kv=KvShare()))
    assert lease.kv is not None
    kv = KvUsage(
        active=True,
        resident_tokens=10,
        demand_tokens=None,
        lowest_running_priority=Priority.LOW,
        freeable_tokens=4,
    )
    report = Report(lease_id=lease.lease_id, fence=lease.fence, used_memory_bytes=gib(0.5), kv=kv)
    desk.arbiter.heartbeat(Beat(reports=(report,)), desk.now)
    assert (lease.reported_bytes, lease.kv.usage) == (gib(0.5), kv)
    desk.report(lease)
    assert (lease.reported_bytes, lease.kv.usage) == (gib(0.5), kv)
    assert lease.charged_bytes == gib(1)


def test_report_without_outcome_counts_as_applied(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish())
    desk.report(lease, ReportOutcome.NONE)
    assert lease.applied_revision == lease.revision
    assert len(desk.events(EventKind.DIRECTIVE_APPLIED)) == 1
    desk.report(lease, ReportOutcome.NONE)
    assert len(desk.events(EventKind.DIRECTIVE_APPLIED)) == 1


def test_heartbeats_are_counted(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish())
    desk.beat(lease)
    desk.beat()
    desk.report(lease)
    assert desk.books.stats.heartbeats == 3
