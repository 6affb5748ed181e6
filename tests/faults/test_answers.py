"""What callers hear when they are refused often, when they are out of time, and when donors give in parts."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter_client import errors
from tests.faults.conftest import GUARD_S, MIB, Cards, StartWorker, staged
from tests.faults.test_preemption_faults import BACKGROUND, HIGH, Holder, donation, scene
from tests.faults.test_waiting_faults import BELIEVING, allocate, sized


@pytest.mark.slow
def test_connection_serves_on_when_it_was_refused_more_often_than_it_may_have_calls_open(tmp_path: Path) -> None:
    with staged(tmp_path, *BELIEVING) as stage:
        held = allocate(stage, sized("held", 1000)).lease
        asked = sized("refused", 600, wait_s=0)
        for _ in range(10_100):
            with pytest.raises(grpc.RpcError) as caught:
                stage.arbiter.Allocate(asked, timeout=GUARD_S)
            assert errors.from_rpc_error(caught.value).reason == "INSUFFICIENT_MEMORY"
        assert [each.verdict for each in stage.beat(held).results] == [pb.VERDICT_RENEWED]


@pytest.mark.parametrize("turn", range(3))
def test_donor_keeps_its_lease_when_the_caller_is_out_of_time_before_the_grace_is_over(
    tmp_path: Path, cards: Cards, start: StartWorker, turn: int
) -> None:
    with scene(tmp_path, cards, start) as here:
        donor, taker = here.holder("donor", BACKGROUND, 3500, 500), here.holder("taker", HIGH, 1000)
        asked = pb.RequestPreemptionRequest(lease_id=taker.lease.lease_id, memory_bytes=3000 * MIB)
        asked.timeout.FromSeconds(5)
        call = here.stage.arbiter.RequestPreemption.future(asked, timeout=0.7)
        donor.order()
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        donor.hears(lambda told: told.cancelled or told.ended)
        assert donor.alive()


def frees(here_holder: Holder, memory_mib: int, *, done: bool) -> None:
    order = here_holder.order()
    ack = pb.ReclaimAck(reclaim_id=order.reclaim_id, freed_bytes=memory_mib * MIB, done=done)
    here_holder.reports(pb.HeartbeatRequest.Report(reclaim_acks=[ack]))


def test_part_counts_when_a_donor_says_that_it_has_freed_a_part(
    tmp_path: Path, cards: Cards, start: StartWorker
) -> None:
    with scene(tmp_path, cards, start) as here:
        donor, taker = here.holder("donor", BACKGROUND, 3500, 500), here.holder("taker", HIGH, 1000)
        asked = here.takes(taker, 3000)
        frees(donor, 1500, done=False)
        here.shows(donor, 2000)
        here.earmarked(1500)
        frees(donor, 3000, done=True)
        here.shows(donor, 500)
        assert donation(asked.result(timeout=GUARD_S), donor) == (3000, 3000, "CONFIRMED")
