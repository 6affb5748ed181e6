"""What a change costs when many engines share: guards against another kind of growth, ten times what is expected."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from arbiter_sidecar.arbiter import effects, kv
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.requests import Beat, KvShare, Report
from arbiter_sidecar.types import ReportOutcome
from tests.arbiter.desk import wish
from tests.arbiter.kv_stage import KvDesk, sharing, usage

if TYPE_CHECKING:
    import pytest


def crowd(count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[KvDesk, list[Lease]]:
    """So many engines of every kind, all with work; they come at one time, so that budgets are computed once."""
    source = random.Random(count)
    desk = KvDesk(replace(sharing(2000 * count), max_leases=2 * count))
    with monkeypatch.context() as quiet:
        quiet.setattr(kv, "publish", lambda *_: None)
        for _ in range(count):
            share = KvShare(
                share_weight=source.randint(1, 1000),
                min_tokens=source.choice((0, source.randint(0, 1000))),
                max_tokens=source.choice((None, source.randint(2000, 9000))),
                block_tokens=1,
            )
            desk.arbiter.allocate(wish(size=0.01, rigid=True, kv=share, ttl=1000.0), 0.0)
    granted = [each.lease for each in desk.arbiter.take_effects() if isinstance(each, effects.Granted)]
    return desk, granted


def cost_of_reports(desk: KvDesk, leases: list[Lease], count: int) -> list[float]:
    """Seconds of the processor for each of so many reports of a new demand, whatever they change."""
    source, costs = random.Random(count), []
    for _ in range(count):
        lease = source.choice(leases)
        report = Report(
            lease_id=lease.lease_id,
            fence=lease.fence,
            applied_revision=lease.revision,
            outcome=ReportOutcome.APPLIED,
            kv=usage(0, demand=source.randint(0, 9000)),
        )
        start = time.process_time()
        desk.arbiter.heartbeat(Beat(reports=(report,)), 0.0)
        costs.append(time.process_time() - start)
        desk.arbiter.take_effects()
    return costs


def test_change_of_one_engine_is_quick_when_there_are_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two milliseconds are expected at most."""
    desk, leases = crowd(1000, monkeypatch)
    cost_of_reports(desk, leases, 1)
    assert statistics.median(cost_of_reports(desk, leases, 25)) < 0.02
    desk.collect()


def test_heartbeat_without_news_costs_nothing_more_when_there_are_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, leases = crowd(1000, monkeypatch)
    cost_of_reports(desk, leases, 1)
    start = time.process_time()
    for lease in leases[:100]:
        desk.arbiter.heartbeat(Beat(handles=(lease.handle,)), 0.0)
    assert (time.process_time() - start) / 100 < 0.001
