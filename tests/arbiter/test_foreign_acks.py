"""An acknowledgement counts for the order that the lease has, and for no other."""

from __future__ import annotations

from arbiter_sidecar.requests import ReclaimAck
from arbiter_sidecar.types import ReportOutcome
from tests.arbiter.desk import Desk, wish


def test_acknowledgement_of_an_unknown_order_changes_nothing(desk: Desk) -> None:
    desk.box(20)
    lease = desk.take(wish("a", 4))
    desk.report(lease, ReportOutcome.NONE, revision=0, acks=(ReclaimAck(reclaim_id="nobody's", done=True),))
    assert lease.charged_bytes == lease.limit_bytes
    assert lease.reclaim is None
