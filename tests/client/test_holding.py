"""A lease as its holder knows it, by a clock that the test turns."""

from __future__ import annotations

import pytest

from arbiter.v1 import arbiter_service_pb2, lease_pb2
from arbiter_client import directive, errors, reports, terms
from arbiter_client.beats import Beat, Heart, read_answer, read_quality
from arbiter_client.directive import Directive, DirectiveReason, ReclaimLevel
from arbiter_client.holding import Contact, Holding
from arbiter_client.reports import Outcome, Report

Verdict = arbiter_service_pb2.Verdict
Result = arbiter_service_pb2.HeartbeatResponse.Result


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(
    clock: Clock, number: int = 1, *, visible: bool = True, window: float = 0.0, valid_for: float = 0.0
) -> Holding:
    lease = lease_pb2.Lease(
        lease_id=f"l{number}", handle=number, fence=number, ttl=terms.duration(15), pids_visible=visible
    )
    first = Directive(
        lease_id=lease.lease_id,
        revision=1,
        quality=1.0,
        memory_limit_bytes=10,
        safe_quality=0.3,
        valid_for=valid_for,
        epoch=7,
    )
    return Holding(
        lease,
        first,
        sent_at=clock.now,
        startup_window=window,
        contact=Contact(clock.now),
        clock=clock,
        on_report=lambda _: None,
    )


def told(revision: int, *, epoch: int = 7, quality: float = 0.5) -> Directive:
    return Directive(lease_id="l1", revision=revision, quality=quality, memory_limit_bytes=5, epoch=epoch)


def test_lost_turns_true_by_the_clock_alone(clock: Clock) -> None:
    held = make(clock)
    clock.now = 114.4
    assert not held.lost
    clock.now = 114.5
    assert held.lost
    assert held.end_reason == "EXPIRED"


def test_lost_stays_true_when_an_answer_comes_after_it_was_seen(clock: Clock) -> None:
    held = make(clock)
    clock.now = 200.0
    assert held.lost
    held.renewed(199.0)
    assert held.lost


def test_lost_reads_what_others_found_out_before_it_believes_the_clock(clock: Clock) -> None:
    held = make(clock)
    held.catch_up = lambda: held.renewed(195.0)
    clock.now = 200.0
    assert not held.lost
    clock.now = 211.0
    assert held.lost


def test_check_raises_once_the_lease_is_over(clock: Clock) -> None:
    held = make(clock)
    held.check()
    held.end("PREEMPTED")
    with pytest.raises(errors.LeaseLost, match="PREEMPTED"):
        held.check()


def test_renewed_counts_from_the_sending_and_never_back(clock: Clock) -> None:
    held = make(clock)
    held.renewed(105.0)
    held.renewed(103.0)
    assert held.lost_at == pytest.approx(119.5)


@pytest.mark.parametrize(("visible", "lost_at"), [(True, 159.5), (False, 114.5)])
def test_startup_window_counts_only_where_the_processes_are_visible(
    clock: Clock, visible: bool, lost_at: float
) -> None:
    assert make(clock, visible=visible, window=60.0).lost_at == pytest.approx(lost_at)


def test_declared_silence_outlives_a_shorter_renewal(clock: Clock) -> None:
    held = make(clock)
    held.renewed(101.0, 60.0)
    held.renewed(105.0)
    assert held.lost_at == pytest.approx(160.5)


def test_end_happens_once(clock: Clock) -> None:
    held = make(clock)
    heard: list[str | None] = []
    forget = held.listen(lambda: heard.append(held.end_reason))
    assert held.end("REVOKED")
    assert not held.end("EXPIRED")
    assert heard == ["REVOKED"]
    forget()
    forget()


def test_obey_takes_newer_revisions_only(clock: Clock) -> None:
    held = make(clock)
    held.obey(told(5))
    held.obey(told(4, quality=0.9))
    assert held.directive.revision == 5


def test_obey_takes_any_revision_of_a_new_epoch(clock: Clock) -> None:
    held = make(clock)
    held.obey(told(5))
    held.obey(told(1, epoch=8, quality=0.8))
    assert (held.directive.revision, held.directive.epoch) == (1, 8)


def test_quality_falls_to_the_safe_one_when_the_arbiter_is_silent(clock: Clock) -> None:
    held = make(clock, valid_for=10.0)
    clock.now = 109.0
    assert held.quality == 1.0
    clock.now = 110.0
    assert held.quality == 0.3


def test_reports_go_one_at_a_time_and_gather_meanwhile(clock: Clock) -> None:
    held = make(clock)
    assert held.take_report() is None
    held.say(reports.outcome(told(2), Outcome.DEFERRED))
    sent = held.take_report()
    assert sent is not None
    held.say(reports.outcome(told(3), Outcome.APPLIED, used_memory_bytes=9))
    assert not held.has_report
    assert held.take_report() is None
    assert held.report_delivered()
    following = held.take_report()
    assert following is not None
    assert (following.revision, following.outcome) == (3, Outcome.APPLIED)
    assert not held.report_delivered()


def test_a_report_that_failed_is_said_again_below_what_is_newer(clock: Clock) -> None:
    held = make(clock)
    held.say(Report(used_memory_bytes=1, shard_latencies=[0.1], busy_for=5.0))
    held.take_report()
    held.say(Report(used_memory_bytes=2, shard_latencies=[0.2]))
    held.report_failed()
    again = held.take_report()
    assert again == Report(used_memory_bytes=2, shard_latencies=[0.1, 0.2], busy_for=5.0)


def test_say_is_without_effect_once_the_lease_is_over(clock: Clock) -> None:
    held = make(clock)
    held.end("EXPIRED")
    held.say(Report(used_memory_bytes=1))
    assert held.take_report() is None


def test_cancelled_reclaim_leaves_the_directive(clock: Clock) -> None:
    held = make(clock)
    order = directive.Reclaim(reclaim_id="r", memory_bytes=1, kv_tokens=0, grace=2.0, level=ReclaimLevel.SOFT)
    held.directive = Directive(lease_id="l1", revision=2, quality=1.0, memory_limit_bytes=1, reclaim=order, epoch=7)
    read_quality({"l1": held}, arbiter_service_pb2.StreamQualityResponse(reclaim_cancelled=["other"]))
    assert held.directive.reclaim is order
    read_quality({"l1": held}, arbiter_service_pb2.StreamQualityResponse(reclaim_cancelled=["r"]))
    assert held.directive.reclaim is None


def test_report_gathers_within_bounds() -> None:
    report = Report()
    for number in range(300):
        ack = arbiter_service_pb2.ReclaimAck(reclaim_id=str(number))
        report.add(Report(shard_latencies=[float(number)], reclaim_acks={ack.reclaim_id: ack}))
    assert len(report.shard_latencies) == reports.MAX_LATENCIES
    assert report.shard_latencies[-1] == 299.0
    assert len(report.reclaim_acks) == reports.MAX_RECLAIMS
    assert "299" in report.reclaim_acks


def test_a_reclaim_that_is_done_stays_done() -> None:
    reclaim = directive.Reclaim(reclaim_id="r", memory_bytes=8, kv_tokens=0, grace=2.0, level=ReclaimLevel.SOFT)
    report = reports.begun(reclaim, "4B", 1.5)
    report.add(reports.freed(reclaim, 6, 0, done=True))
    report.add(reports.begun(reclaim, None, None))
    (ack,) = report.message("l1", 1, 7).reclaim_acks
    assert (ack.will_free_bytes, ack.freed_bytes, ack.done) == (8, 6, True)
    assert (ack.eta.seconds, ack.eta.nanos) == (1, 500_000_000)


def test_what_is_said_about_a_reclaim_overrides_what_applied_says_by_itself() -> None:
    reclaim = directive.Reclaim(reclaim_id="r", memory_bytes=8, kv_tokens=0, grace=2.0, level=ReclaimLevel.SOFT)
    ordered = Directive(lease_id="l1", revision=2, quality=1.0, memory_limit_bytes=9, reclaim=reclaim, epoch=7)
    ack = arbiter_service_pb2.ReclaimAck(reclaim_id="r", freed_bytes=3)
    said = reports.outcome(ordered, Outcome.APPLIED, used_memory_bytes=1, reclaim_acks=[ack])
    assert said.reclaim_acks == {"r": ack}
    assert reports.outcome(ordered, Outcome.DEFERRED, used_memory_bytes=1).reclaim_acks == {}


def test_reports_about_a_reclaim_refuse_what_is_no_amount() -> None:
    reclaim = directive.Reclaim(reclaim_id="r", memory_bytes=8, kv_tokens=0, grace=2.0, level=ReclaimLevel.SOFT)
    with pytest.raises(ValueError, match="lots"):
        reports.begun(reclaim, "lots", None)
    with pytest.raises(ValueError, match="span of time"):
        reports.begun(reclaim, None, -1.0)
    with pytest.raises(ValueError, match="freed_tokens"):
        reports.freed(reclaim, 1, -1, done=True)


def test_report_message_leaves_out_an_outcome_of_another_epoch() -> None:
    report = reports.outcome(told(5), Outcome.REFUSED, achievable_quality=0.6, used_memory_bytes=3)
    same, other = (report.message("l1", 1, epoch) for epoch in (7, 8))
    assert (same.applied_revision, same.outcome, same.achievable_quality) == (5, 3, 0.6)
    assert (other.applied_revision, other.outcome) == (0, 0)
    assert other.used_memory_bytes == 3


@pytest.mark.parametrize("bad", [-1, 2**63])
def test_reports_refuse_bytes_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match="used_memory_bytes"):
        reports.usage(used_memory_bytes=bad)


def test_reports_refuse_what_is_no_quality_or_span() -> None:
    with pytest.raises(ValueError, match="achievable_quality"):
        reports.outcome(told(1), Outcome.REFUSED, achievable_quality=1.5)
    with pytest.raises(ValueError, match="span of time"):
        reports.usage(busy_for=-1.0)


def test_heart_splits_what_is_too_much_for_one_message(clock: Clock) -> None:
    holdings = [make(clock, number) for number in range(1, 2600)]
    for held in holdings[:300]:
        held.say(Report(used_memory_bytes=1))
    holdings[-1].end("EXPIRED")
    messages = [message for _, message in Heart("w").compose(1.0, 5, holdings, by_handle=True)]
    assert [(len(message.handles), len(message.reports)) for message in messages] == [(2000, 256), (298, 44)]
    assert [message.sequence for message in messages] == [1, 2]
    assert {message.incarnation for message in messages} == {5}


def test_heart_says_nothing_by_handle_when_a_beater_does(clock: Clock) -> None:
    assert list(Heart("w").compose(1.0, 5, [make(clock)], by_handle=False)) == []


def test_answer_renews_silent_handles_and_named_reports(clock: Clock) -> None:
    quiet, talking, unnamed = (make(clock, number) for number in (1, 2, 3))
    beat = Beat(110.0, [quiet], [(talking, Report()), (unnamed, Report())])
    read_answer(
        beat,
        arbiter_service_pb2.HeartbeatResponse(results=[Result(lease_id="l2", verdict=Verdict.VERDICT_RENEWED)]),
    )
    assert quiet.lost_at == talking.lost_at == pytest.approx(124.5)
    assert unnamed.lost_at == pytest.approx(114.5)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (
            Result(handle=1, verdict=Verdict.VERDICT_FENCED, end_reason=lease_pb2.EndReason.END_REASON_PREEMPTED),
            "PREEMPTED",
        ),
        (Result(handle=1, verdict=Verdict.VERDICT_FENCED), "FENCED"),
        (Result(handle=1, verdict=Verdict.VERDICT_NOT_FOUND), "NOT_FOUND"),
        (Result(handle=1, verdict=Verdict.VERDICT_DENIED), "DENIED"),
        (Result(handle=1), None),
    ],
)
def test_answer_ends_a_lease_by_a_final_verdict(clock: Clock, result: Result, reason: str | None) -> None:
    held = make(clock)
    read_answer(Beat(110.0, [held], []), arbiter_service_pb2.HeartbeatResponse(results=[result]))
    assert held.end_reason == reason
    assert held.lost_at == pytest.approx(114.5)


def test_answer_brings_a_newer_directive(clock: Clock) -> None:
    held = make(clock)
    result = Result(handle=1, verdict=Verdict.VERDICT_RENEWED)
    result.directive.revision, result.directive.quality = 4, 0.5
    read_answer(Beat(110.0, [held], []), arbiter_service_pb2.HeartbeatResponse(server_epoch=7, results=[result]))
    assert (held.directive.revision, held.directive.quality, held.directive.epoch) == (4, 0.5, 7)


def test_directive_reads_the_whole_message() -> None:
    message = lease_pb2.Directive(lease_id="l", revision=3, quality=0.5, kv_token_budget=9, safe_quality=0.2)
    message.reason = lease_pb2.DirectiveReason.DIRECTIVE_REASON_PRESSURE
    message.valid_for.FromMilliseconds(1500)
    message.reclaim.reclaim_id = "r"
    message.reclaim.grace.FromMilliseconds(2000)
    message.reclaim.level = lease_pb2.ReclaimLevel.RECLAIM_LEVEL_SOFT
    message.shard.layer_end = 4
    read = directive.from_message(message, 7)
    assert (read.kv_token_budget, read.valid_for, read.reason, read.epoch) == (9, 1.5, DirectiveReason.PRESSURE, 7)
    assert read.reclaim is not None
    assert (read.reclaim.grace, read.reclaim.level) == (2.0, ReclaimLevel.SOFT)
    assert read.shard is not None
    assert (read.shard.layer_begin, read.shard.layer_end) == (0, 4)


def test_directive_survives_values_that_are_new() -> None:
    message = lease_pb2.Directive(reason=lease_pb2.DirectiveReason.ValueType(99))
    message.reclaim.level = lease_pb2.ReclaimLevel.ValueType(99)
    read = directive.from_message(message, 7)
    assert read.reason is DirectiveReason.UNSPECIFIED
    assert read.reclaim is not None
    assert read.reclaim.level is ReclaimLevel.HARD
    assert read.kv_token_budget is None
    assert read.shard is None
