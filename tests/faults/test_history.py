"""The checker of histories accepts a good one and names what is wrong with each bad one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from arbiter.v1 import state_service_pb2 as pb
from tests.faults import history
from tests.faults.history import Wait

Story = list[pb.Event]


def _event(kind: str, lease: str = "", request: str = "", **fields: object) -> pb.Event:
    return pb.Event(
        kind=pb.EventKind.Value(f"EVENT_KIND_{kind}"),
        lease_id=lease,
        request_id=request,
        device_id="card",
        fields={name: str(value) for name, value in fields.items()},
    )


def _numbered(story: Story) -> Story:
    for sequence, event in enumerate(story, start=2):
        event.sequence = sequence
    return story


def _changed(before: float, quality: float, reason: str, revision: int) -> pb.Event:
    return _event("QUALITY_CHANGED", "a", "1", before=before, quality=quality, reason=reason, revision=revision)


def good() -> Story:
    """A lease is lowered, asked for memory by a waiting request, raised again and given back; then the other's."""
    return _numbered(
        [
            _event("PRESSURE_CHANGED", pressure_level="HIGH"),
            _event("LEASE_GRANTED", "a", "1", quality=1.0),
            _event("LEASE_CONFIRMED", "a", "1"),
            _event("REQUEST_WAITING", request="2", reason="no room"),
            _changed(1.0, 0.6, "PRESSURE", 5),
            _event("PREEMPTION_PLANNED", request="2", plan_id="p", donors="a"),
            _event("RECLAIM_REQUESTED", "a", "1", plan_id="p", reclaim_id="p-1"),
            _event("RECLAIM_ESCALATED", "a", "1", plan_id="p", reclaim_id="p-1"),
            _event("RECLAIM_ACKNOWLEDGED", "a", "1", reclaim_id="p-1"),
            _event("LEASE_GRANTED", "b", "2", quality=0.5),
            _event("PREEMPTION_SETTLED", plan_id="p", credited_bytes=0, confirmed_bytes=7, outcome="enough"),
            _changed(0.4, 0.8, "HEADROOM", 9),
            _changed(0.8, 0.9, "HEADROOM", 10),
            _event("LEASE_ENDED", "a", "1", reason="RELEASED"),
            _event("RESIDUE_ALARM", "a", "1"),
            _event("LEASE_DRAINED", "a", "1"),
            _event("REQUEST_FAILED", request="3", reason="WAIT_TIMEOUT", message="waited in vain"),
            _event("LEASE_ENDED", "b", "2", reason="RELEASED"),
            _event("LEASE_DRAINED", "b", "2"),
        ]
    )


def _at(story: Story, kind: str, which: int = 0) -> int:
    wanted = pb.EventKind.Value(f"EVENT_KIND_{kind}")
    return [place for place, event in enumerate(story) if event.kind == wanted][which]


def _without(kind: str, which: int = 0) -> Callable[[Story], None]:
    def spoil(story: Story) -> None:
        del story[_at(story, kind, which)]

    return spoil


def _twice(kind: str) -> Callable[[Story], None]:
    def spoil(story: Story) -> None:
        place = _at(story, kind)
        again = pb.Event()
        again.CopyFrom(story[place])
        story.insert(place + 1, again)

    return spoil


def _with(kind: str, **fields: str) -> Callable[[Story], None]:
    def spoil(story: Story) -> None:
        story[_at(story, kind)].fields.update(fields)

    return spoil


def _last(kind: str) -> Callable[[Story], None]:
    """Moves an event to the end."""

    def spoil(story: Story) -> None:
        story.append(story.pop(_at(story, kind)))

    return spoil


def _with_another_plan(story: Story) -> None:
    story.insert(_at(story, "PREEMPTION_SETTLED"), _event("PREEMPTION_PLANNED", plan_id="q", donors="a"))


def test_history_is_accepted_when_every_step_has_its_cause_and_its_end() -> None:
    assert history.complaints(good()) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without("LEASE_GRANTED"), "LEASE_CONFIRMED of a although it was never granted"),
        (_twice("LEASE_GRANTED"), "LEASE_GRANTED of a although it was granted"),
        (_without("LEASE_ENDED"), "LEASE_DRAINED of a although it was granted"),
        (_twice("LEASE_ENDED"), "LEASE_ENDED of a although it was ended"),
        (_without("LEASE_DRAINED"), "lease a stays ended"),
        (_twice("LEASE_DRAINED"), "LEASE_DRAINED of a although it was drained"),
        (_last("LEASE_CONFIRMED"), "LEASE_CONFIRMED of a although it was drained"),
        (_with("LEASE_ENDED", reason=""), "LEASE_ENDED of a without a reason"),
        (_with("LEASE_ENDED", reason="PREEMPTED"), ""),
        (_without("LEASE_GRANTED", 1), "request 2 still waits"),
        (_twice("REQUEST_WAITING"), "REQUEST_WAITING of 2 for the second time"),
        (_last("REQUEST_WAITING"), "REQUEST_WAITING of 2 for the second time"),
        (_twice("REQUEST_FAILED"), "REQUEST_FAILED of 3 although it had its outcome"),
        (_with("REQUEST_FAILED", reason=""), "REQUEST_FAILED of 3 without a reason"),
        (_with("QUALITY_CHANGED", reason=""), "from 1.0 to 0.6 with reason ''"),
        (_with("QUALITY_CHANGED", reason="HEADROOM"), "from 1.0 to 0.6 with reason 'HEADROOM'"),
        (_with("QUALITY_CHANGED", before="0.9"), "from 0.9, but it was told 1.0"),
        (_with("QUALITY_CHANGED", revision="9"), "with revision 9 after 9"),
        (_without("PREEMPTION_PLANNED"), "RECLAIM_REQUESTED of a of p, which is not open"),
        (_without("PREEMPTION_SETTLED"), "plan p is not settled"),
        (_twice("PREEMPTION_SETTLED"), "PREEMPTION_SETTLED of card of p, which is not open"),
        (_with("PREEMPTION_PLANNED", donors=""), "PREEMPTION_PLANNED of 2 without donors"),
        (_with("PREEMPTION_SETTLED", credited_bytes="8"), "with more credited than confirmed"),
        (_with("RECLAIM_ACKNOWLEDGED", reclaim_id="p-2"), "to p-2, which was never ordered"),
        (_with_another_plan, "PREEMPTION_PLANNED of card while another one is open"),
    ],
)
def test_history_is_refused_when_something_is_missing_twice_or_unexplained(
    spoil: Callable[[Story], None], said: str
) -> None:
    story = good()
    spoil(story)
    found = history.complaints(_numbered(story))
    if said:
        assert any(said in complaint for complaint in found), found
    else:
        assert found == []


def test_taken_lease_is_refused_when_it_was_never_asked() -> None:
    story = good()
    del story[_at(story, "RECLAIM_REQUESTED")]
    story[_at(story, "LEASE_ENDED")].fields["reason"] = "PREEMPTED"
    found = history.complaints(_numbered(story))
    assert any("LEASE_ENDED of a by preemption, but it was never asked" in complaint for complaint in found)


def test_history_is_refused_when_events_are_missing() -> None:
    story = good()
    del story[4]
    assert list(history.sequence_complaints(story)) == ["event 7 follows 5"]
    story.append(_event("GAP"))
    story[-1].sequence = story[-2].sequence + 1
    assert list(history.sequence_complaints(story))[-1] == "gap at 21"


def test_outcomes_are_read_from_the_log() -> None:
    story = [*good(), _event("LEASE_GRANTED", "c", "4", quality=1.0)]
    story.append(_event("LEASE_ENDED", "c", "4", reason="UNDELIVERED"))
    story.append(_event("REQUEST_FAILED", request="5", reason="CANCELLED", message="gone"))
    story.append(_event("REQUEST_FAILED", request="6", reason="INSUFFICIENT_MEMORY", message="no room"))
    assert history.outcomes(story) == {
        "1": "granted",
        "2": "granted",
        "3": "timed_out",
        "4": "cancelled",
        "5": "cancelled",
        "6": "refused",
    }


def test_waits_tell_when_each_came_and_left_and_for_whom_others_were_preempted() -> None:
    assert history.waits(good(), {"1": 3, "2": 4, "3": 1}) == [
        Wait(request="1", priority=3, begun=3, ended=3, pinned=False, granted=True, waited=False),
        Wait(request="2", priority=4, begun=5, ended=11, pinned=True, granted=True, waited=True),
    ]


def _wait(request: str, begun: int, ended: int, *, priority: int = 3, pinned: bool = False) -> Wait:
    return Wait(
        request=request,
        priority=priority,
        begun=begun,
        ended=ended,
        pinned=pinned,
        granted=True,
        waited=begun != ended,
    )


def test_line_is_refused_when_one_was_passed_too_often() -> None:
    patient = _wait("patient", 1, 100)
    later = [_wait(f"later-{place}", place, place) for place in range(10, 13)]
    assert list(history.overtaking_complaints([*later[:2], patient], backfill=2)) == []
    assert list(history.overtaking_complaints([*later, patient], backfill=2)) == [
        "patient was passed 3 times, with 0 before it"
    ]


@pytest.mark.parametrize(
    "ahead", [_wait("ahead", 0, 12), _wait("ahead", 2, 12, priority=4), _wait("ahead", 2, 12, pinned=True)]
)
def test_line_allows_as_many_passes_again_for_each_that_was_before(ahead: Wait) -> None:
    patient = _wait("patient", 1, 100)
    later = [_wait(f"later-{place}", place, place) for place in (10, 11, 13, 14, 15)]
    assert list(history.overtaking_complaints([*later[:4], ahead, patient], backfill=2)) == []
    found = list(history.overtaking_complaints([*later, ahead, patient], backfill=2))
    assert found == ["patient was passed 5 times, with 1 before it"]


def test_line_does_not_count_who_comes_before_by_right() -> None:
    patient = _wait("patient", 1, 100)
    better = [_wait(f"better-{place}", place, place, priority=4) for place in range(10, 30)]
    assert list(history.overtaking_complaints([*better, patient], backfill=0)) == []
