"""Faults around taking memory from others: what counts is what is measured, and who need not give keeps what it has."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2, state_service_pb2
from arbiter_client import errors
from tests.faults.conftest import GUARD_S, MIB, Cards, Stage, StartWorker, Worker, request, staged, staged_cards
from tests.faults.starting import Run, programs

#: Leases may be asked from their first moment, and a donor has time where the request does not say otherwise.
AT_ONCE = (
    *("--preemption-shrink-hold", "0s", "--preemption-revoke-hold", "0s", "--preemption-grace", "20s"),
    # Nobody is lowered but for somebody who asks.
    *("--quality-soft-target", "1.0"),
)
BACKGROUND, LOW, NORMAL, HIGH = (
    lease_pb2.PRIORITY_BACKGROUND,
    lease_pb2.PRIORITY_LOW,
    lease_pb2.PRIORITY_NORMAL,
    lease_pb2.PRIORITY_HIGH,
)
#: Between two requests of one of those who flood the arbiter: some hundred a second in all.
PACE_S = 0.01
ENDED = lease_pb2.LEASE_STATE_ENDED
Asked = Future[pb.RequestPreemptionResponse]


class Call(Protocol):
    """A call under way."""

    def cancel(self) -> bool:
        """Ends it."""

    def code(self) -> grpc.StatusCode:
        """How it ended; waits until it has."""


@pytest.fixture
def run() -> Iterator[Run]:
    with programs() as started:
        yield started


@dataclass
class Told:
    """What the stream of a lease has said so far."""

    directives: list[lease_pb2.Directive] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ended: list[pb.EndedLease] = field(default_factory=list)


class Holder:
    """A real process with a lease, for which we speak by bare calls: it says what we want it to, true or not."""

    def __init__(self, stage: Stage, worker: Worker, granted: pb.AllocateResponse) -> None:
        self.worker = worker
        self.lease = granted.lease
        self.told = Told()
        self._stage = stage
        self._epoch = granted.server_epoch
        self._stream = stage.arbiter.StreamQuality(pb.StreamQualityRequest(lease_ids=[granted.lease.lease_id]))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for message in self._stream:
                self.told.directives += message.directives
                self.told.cancelled += message.reclaim_cancelled
                self.told.ended += message.ended
        except grpc.RpcError:
            # Cancelled at the end of the test, or ended with the server; whoever waits for more says so.
            assert self._stream.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)

    def hears(self, true: Callable[[Told], object]) -> None:
        """Waits until this is true of what it was told."""
        deadline = time.monotonic() + GUARD_S
        while not true(self.told):
            assert time.monotonic() < deadline, self.told
            time.sleep(0.02)

    @property
    def now(self) -> lease_pb2.Directive:
        """The newest directive."""
        return self.told.directives[-1]

    def order(self) -> lease_pb2.Reclaim:
        """The order to give memory back, once it has come."""
        self.hears(lambda told: told.directives and told.directives[-1].HasField("reclaim"))
        return self.now.reclaim

    def says(self, *, done: bool) -> None:
        """Answers its order; when it says that it is done it says that its directive is applied, too."""
        ack = pb.ReclaimAck(
            reclaim_id=self.order().reclaim_id,
            will_free_bytes=self.order().memory_bytes,
            done=done,
        )
        revision = self.now.revision if done else 0
        self.reports(pb.HeartbeatRequest.Report(reclaim_acks=[ack], applied_revision=revision))

    def reports(self, report: pb.HeartbeatRequest.Report) -> pb.HeartbeatResponse:
        """One heartbeat with a report."""
        report.lease_id, report.fence = self.lease.lease_id, self.lease.fence
        asked = pb.HeartbeatRequest(server_epoch=self._epoch, reports=[report])
        return self._stage.arbiter.Heartbeat(asked, timeout=GUARD_S)

    def alive(self) -> bool:
        """Whether its lease stands."""
        return self._stage.lease(self.lease.lease_id).end_reason == lease_pb2.END_REASON_UNSPECIFIED

    def close(self) -> None:
        """Listens no more."""
        self._stream.cancel()
        self._reader.join(GUARD_S)


@dataclass
class Scene:
    """Holders on a card whose driver shows what we say, and somebody who takes from them."""

    stage: Stage
    cards: Cards
    start: StartWorker
    threads: ThreadPoolExecutor
    holders: list[Holder] = field(default_factory=list)

    def holder(
        self, name: str, priority: lease_pb2.Priority.ValueType, memory_mib: int, floor_mib: int | None = None
    ) -> Holder:
        """A process that leases and holds so much, and may be asked to go down to its floor."""
        worker = self.start()
        asked = request(name, memory_mib, worker.pid, ttl_s=300)
        asked.priority = priority
        if floor_mib is None:
            asked.min_quality = 1.0
        else:
            asked.min_memory_bytes = floor_mib * MIB
        holder = Holder(self.stage, worker, self.stage.arbiter.Allocate(asked, timeout=GUARD_S))
        self.holders.append(holder)
        self.shows(holder, memory_mib)
        return holder

    def shows(self, holder: Holder, memory_mib: int) -> None:
        """The driver shows so much for a holder; returns when the arbiter has seen it."""
        self.cards.hold(holder.worker.pid, memory_mib)
        lease_id = holder.lease.lease_id
        self.stage.until(
            lambda now: all(
                lease.measured_memory_bytes == memory_mib * MIB for lease in now.leases if lease.lease_id == lease_id
            )
        )

    def takes(self, holder: Holder, memory_mib: int, *, grace_s: float = 20.0) -> Asked:
        """Asks in a thread to have so much taken from others for a holder."""
        asked = pb.RequestPreemptionRequest(lease_id=holder.lease.lease_id, memory_bytes=memory_mib * MIB)
        asked.timeout.FromMilliseconds(round(1000 * grace_s))
        return self.threads.submit(self.stage.arbiter.RequestPreemption, asked, timeout=2 * GUARD_S)

    def earmarked(self, memory_mib: int) -> None:
        """Waits until so much is kept for whoever takes."""
        self.stage.until(lambda now: now.devices[0].earmarked_bytes == memory_mib * MIB)

    def granted_mib(self, holder: Holder) -> float:
        """What the books hold for a holder."""
        return self.stage.lease(holder.lease.lease_id).memory_bytes / MIB


@contextmanager
def scene(folder: Path, cards: Cards, start: StartWorker) -> Iterator[Scene]:
    """A server over a card of which 9000 MiB may be leased, until the block ends."""
    with staged_cards(folder, cards, *AT_ONCE) as stage, ThreadPoolExecutor() as threads:
        here = Scene(stage, cards, start, threads)
        try:
            yield here
        finally:
            for holder in here.holders:
                holder.close()


def newer(revision: int, told: Told) -> bool:
    """Whether something newer was said."""
    return told.directives[-1].revision > revision


def donation(answer: pb.RequestPreemptionResponse, holder: Holder) -> tuple[int, int, str]:
    """What a holder was asked for and what was confirmed, in MiB, and what became of it."""
    (given,) = (each for each in answer.donations if each.lease_id == holder.lease.lease_id)
    outcome = pb.DonationOutcome.Name(given.outcome).removeprefix("DONATION_OUTCOME_")
    return given.planned // MIB, given.confirmed // MIB, outcome


# Donors that lie, are late, or die ------------------------------------------------------------------------------------


def test_requester_gets_nothing_when_a_donor_only_says_that_it_has_given(
    tmp_path: Path, cards: Cards, start: StartWorker
) -> None:
    with scene(tmp_path, cards, start) as here:
        liar, taker = here.holder("liar", BACKGROUND, 3500, 500), here.holder("taker", HIGH, 1000)
        asked = here.takes(taker, 2000)
        liar.says(done=True)
        # The driver still shows all of it, in sample after sample.
        time.sleep(1.0)
        assert not asked.done()
        assert here.stage.device().earmarked_bytes == 0
        assert here.granted_mib(taker) == 1000
        here.shows(liar, 1500)
        answer = asked.result(timeout=GUARD_S)
        assert donation(answer, liar) == (2000, 2000, "CONFIRMED")
        assert here.granted_mib(taker) == 3000


def test_rest_is_asked_of_others_when_a_donor_frees_half(tmp_path: Path, cards: Cards, start: StartWorker) -> None:
    with scene(tmp_path, cards, start) as here:
        half, other = here.holder("half", BACKGROUND, 3500, 500), here.holder("other", LOW, 2500, 500)
        taker = here.holder("taker", HIGH, 1000)
        asked = here.takes(taker, 3000, grace_s=2.0)
        assert half.order().memory_bytes == 3000 * MIB
        half.says(done=True)
        here.shows(half, 2000)
        here.earmarked(1500)
        assert not any(each.HasField("reclaim") for each in other.told.directives), "before the deadline of the first"
        assert other.order().memory_bytes == 1500 * MIB
        assert not asked.done()
        assert here.granted_mib(taker) == 1000, "it gets all of it or nothing"
        other.says(done=True)
        here.shows(other, 1000)
        answer = asked.result(timeout=GUARD_S)
        assert answer.confirmed == 3000 * MIB
        assert donation(answer, half) == (3000, 1500, "PARTIAL")
        assert donation(answer, other) == (1500, 1500, "CONFIRMED")
        assert here.granted_mib(taker) == 4000
        assert half.alive()
        assert here.stage.device().earmarked_bytes == 0


def test_bytes_count_when_they_are_gone_when_a_donor_dies_in_its_grace(
    tmp_path: Path, cards: Cards, start: StartWorker
) -> None:
    with scene(tmp_path, cards, start) as here:
        donor, taker = here.holder("donor", BACKGROUND, 3500, 500), here.holder("taker", HIGH, 1000)
        asked = here.takes(taker, 3000)
        donor.order()
        donor.worker.signal(signal.SIGKILL)
        donor.hears(lambda told: told.ended)
        assert donor.told.ended[0].end_reason == lease_pb2.END_REASON_ORPHANED
        # The driver is slower than the kernel.
        here.stage.until(lambda now: now.devices[0].draining_bytes == 3500 * MIB)
        assert here.stage.device().earmarked_bytes == 0
        here.cards.hold(donor.worker.pid, 1000)
        here.earmarked(2500)
        assert not asked.done()
        here.cards.hold(donor.worker.pid, 0)
        answer = asked.result(timeout=GUARD_S)
        assert donation(answer, donor) == (3000, 3000, "CONFIRMED")
        assert here.granted_mib(taker) == 4000


# Requesters that go ---------------------------------------------------------------------------------------------------


def ends_its_call(here: Scene, taker: Holder, call: Call) -> None:
    """The caller changes its mind."""
    assert call.cancel()


def is_out_of_time(here: Scene, taker: Holder, call: Call) -> None:
    """The caller's own deadline passes, long before that of the donors."""
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def gives_its_lease_back(here: Scene, taker: Holder, call: Call) -> None:
    """The lease that asks is over, although its caller still waits."""
    lease = taker.lease
    here.stage.arbiter.Release(pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence), timeout=GUARD_S)
    assert call.code() is grpc.StatusCode.NOT_FOUND


def is_killed(here: Scene, taker: Holder, call: Call) -> None:
    """The process that holds the lease that asks."""
    taker.worker.signal(signal.SIGKILL)
    assert call.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("goes", [ends_its_call, is_out_of_time, gives_its_lease_back, is_killed])
def test_donors_are_let_off_and_nothing_is_kept_when_the_requester_goes(
    tmp_path: Path, cards: Cards, start: StartWorker, goes: Callable[[Scene, Holder, Call], None]
) -> None:
    with scene(tmp_path, cards, start) as here:
        late, quick = here.holder("late", BACKGROUND, 2500, 500), here.holder("quick", BACKGROUND, 1500, 500)
        taker = here.holder("taker", HIGH, 1000)
        asked = pb.RequestPreemptionRequest(lease_id=taker.lease.lease_id, memory_bytes=3000 * MIB)
        timeout_s = 2.0 if goes is is_out_of_time else 2 * GUARD_S
        call = here.stage.arbiter.RequestPreemption.future(asked, timeout=timeout_s)
        order = late.order().reclaim_id
        quick.says(done=True)
        here.shows(quick, 500)
        here.earmarked(1000)
        goes(here, taker, call)
        late.hears(lambda told: told.cancelled)
        assert late.told.cancelled == [order]
        assert not late.now.HasField("reclaim")
        here.earmarked(0)
        assert late.alive()
        assert quick.alive()
        # What quick has given is anybody's now.
        device = here.stage.device()
        held = sum(each.memory_bytes for each in here.stage.picture().leases if each.state != ENDED)
        assert device.available_bytes == device.capacity_bytes - device.draining_bytes - held
        assert (here.granted_mib(late), here.granted_mib(quick)) == (2500, 500)


@pytest.mark.slow
def test_donor_gets_its_quality_back_when_the_process_that_asked_was_killed(
    tmp_path: Path, cards: Cards, start: StartWorker, run: Run
) -> None:
    with scene(tmp_path, cards, start) as here:
        donor = here.holder("donor", BACKGROUND, 3500, 500)
        taker = run("party", here.stage.server.address, "taker", "high")
        taker.ask("allocate", 1000, 0)
        assert taker.hear()[0] == "granted"
        taker.ask("preempt", 1000, 20)
        donor.order()
        assert donor.now.quality < 1.0
        taker.signal(signal.SIGKILL)
        donor.hears(lambda told: told.cancelled)
        donor.hears(lambda told: told.directives[-1].quality == 1.0)
        assert donor.now.memory_limit_bytes == 3500 * MIB
        assert donor.now.reason == lease_pb2.DIRECTIVE_REASON_HEADROOM
        assert donor.alive()


def test_donor_keeps_its_lease_when_the_waiting_process_that_wants_it_is_killed(
    tmp_path: Path, cards: Cards, start: StartWorker, run: Run
) -> None:
    with scene(tmp_path, cards, start) as here:
        donor = here.holder("donor", BACKGROUND, 7000)
        newcomer = run("party", here.stage.server.address, "newcomer", "high")
        newcomer.ask("allocate", 5000, 60, "unnamed", "taking")
        assert donor.order().memory_bytes > 0
        (waiting,) = here.stage.picture().waiting
        assert waiting.holder == "newcomer"
        newcomer.signal(signal.SIGKILL)
        donor.hears(lambda told: told.cancelled)
        assert not donor.now.HasField("reclaim")
        here.stage.until(lambda now: not now.waiting)
        assert donor.alive()
        assert here.granted_mib(donor) == 7000


# Others that come in between ------------------------------------------------------------------------------------------


def test_freed_bytes_are_nobody_elses_when_others_flood_the_arbiter(
    tmp_path: Path, cards: Cards, start: StartWorker
) -> None:
    with scene(tmp_path, cards, start) as here:
        donors = [here.holder(f"donor-{place}", BACKGROUND, 1300, 500) for place in range(5)]
        taker = here.holder("taker", HIGH, 1000)
        # The rest of the card, so that only what donors free could be had.
        here.holder("rest", HIGH, 1500)
        asked = here.takes(taker, 4000)
        over, outcomes = threading.Event(), list[str]()

        def flood(priority: lease_pb2.Priority.ValueType, wait_ms: int) -> None:
            while not over.is_set():
                wanted = request("flood", 100, ttl_s=300)
                wanted.priority, wanted.min_quality = priority, 1.0
                wanted.wait_timeout.FromMilliseconds(wait_ms)
                try:
                    here.stage.arbiter.Allocate(wanted, timeout=GUARD_S)
                    outcomes.append("granted")
                except grpc.RpcError as error:
                    outcomes.append(errors.from_rpc_error(error).reason)
                over.wait(PACE_S)

        others = [here.threads.submit(flood, *each) for each in ((LOW, 0), (NORMAL, 0), (HIGH, 0), (HIGH, 50))]
        try:
            for place, donor in enumerate(donors):
                donor.order()
                before = len(outcomes)
                donor.says(done=True)
                here.cards.hold(donor.worker.pid, 500)
                if place < len(donors) - 1:
                    here.earmarked(800 * (place + 1))
                    assert here.stage.device().available_bytes <= 0
                    deadline = time.monotonic() + GUARD_S
                    while len(outcomes) < before + 20:
                        assert time.monotonic() < deadline, outcomes
                        time.sleep(0.02)
            answer = asked.result(timeout=GUARD_S)
        finally:
            over.set()
        for each in others:
            each.result(timeout=GUARD_S)
        assert answer.confirmed == 4000 * MIB
        assert here.granted_mib(taker) == 5000
        assert set(outcomes) <= {"INSUFFICIENT_MEMORY", "WAIT_TIMEOUT"}


def no_donor(call: Callable[[], object]) -> str:
    """What a request to preempt is refused with; nobody may be asked."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = errors.from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_DONOR")
    return error.message


def test_nobody_takes_from_its_equal_from_the_more_important_or_from_itself(
    tmp_path: Path, cards: Cards, start: StartWorker
) -> None:
    with scene(tmp_path, cards, start) as here:
        one, two = here.holder("one", NORMAL, 3000, 500), here.holder("two", NORMAL, 3000, 500)
        above = here.holder("above", HIGH, 1500, 500)
        for taker, equal in ((one, two), (two, one)):
            message = no_donor(here.takes(taker, 100).result)
            assert f"{taker.lease.lease_id}: own_lease" in message
            assert f"{equal.lease.lease_id}: priority_gap" in message
            assert f"{above.lease.lease_id}: priority_gap" in message
        # One above is too little, too: it takes two.
        assert f"{one.lease.lease_id}: priority_gap" in no_donor(here.takes(above, 100).result)
        assert [len(each.told.directives) for each in (one, two, above)] == [1, 1, 1], "nobody has heard of it"


@pytest.mark.slow
def test_takings_are_bounded_when_two_take_in_turn_as_often_as_they_can(
    tmp_path: Path, cards: Cards, start: StartWorker
) -> None:
    with scene(tmp_path, cards, start) as here:
        donor = here.holder("donor", BACKGROUND, 3500, 500)
        takers = [here.holder(name, HIGH, 1000, 800) for name in ("one", "two")]
        refusals, taken = [], 0
        began = time.monotonic()
        while time.monotonic() - began < 6.0:
            for taker in takers:
                asked = here.takes(taker, 100)
                while not asked.done():
                    if donor.told.directives and donor.now.HasField("reclaim"):
                        donor.says(done=True)
                        here.cards.hold(donor.worker.pid, donor.now.memory_limit_bytes // MIB)
                    time.sleep(0.02)
                if asked.exception() is None:
                    taken += 1
                else:
                    refusals.append(no_donor(asked.result))
        orders = {each.reclaim.reclaim_id for each in donor.told.directives if each.HasField("reclaim")}
        # Left alone for 2 s after each plan, and asked at most twice in 10 s.
        assert 1 <= taken == len(orders) <= 2
        assert any(f"{donor.lease.lease_id}: cooling_down" in message for message in refusals)
        assert any(f"{donor.lease.lease_id}: gave_often" in message for message in refusals)
        for taker in takers:
            qualities = [each.quality for each in taker.told.directives]
            assert qualities == sorted(qualities, reverse=True), "nobody swings"
            assert not any(each.HasField("reclaim") for each in taker.told.directives)


# Workers that obey, and workers that cannot ---------------------------------------------------------------------------

ON_HOST = ("--devices", "host", "--host-budget", "1GiB", *AT_ONCE)


def test_memory_is_there_in_order_and_soon_when_an_honest_worker_is_told_to_give(tmp_path: Path, run: Run) -> None:
    with staged(tmp_path, *ON_HOST) as stage:
        donor = run("donor", stage.server.address, "donor", "background", 600, 200)
        _, lease_id = donor.hear()
        assert donor.hear() == ["holds", "536", "at", "1.00"]
        stage.measured(lease_id, 500)
        taker = run("party", stage.server.address, "taker", "high")
        taker.ask("allocate", 100, 0)
        assert taker.hear()[0] == "granted"
        began = time.monotonic()
        taker.ask("preempt", 300, 20)
        assert taker.hear() == ["taken", "300"]
        took_s = time.monotonic() - began
        word, held_mib, *_ = donor.hear()
        assert (word, held_mib) == ("holds", "236")
        # A guard and not a measurement: ten times what it takes on a busy machine.
        assert took_s < 3.0
        # Its answer may come when the measurement has settled it already, and then nobody waits for it any more.
        kinds = (
            state_service_pb2.EVENT_KIND_PREEMPTION_PLANNED,
            state_service_pb2.EVENT_KIND_RECLAIM_REQUESTED,
            state_service_pb2.EVENT_KIND_PREEMPTION_SETTLED,
        )
        numbers = [stage.events.until(kind)[0].sequence for kind in kinds]
        assert numbers == sorted(numbers)
        (account,) = (each for each in stage.picture().accounts if each.holder == "donor")
        assert (account.reclaims, account.floor_breaches) == (1, 0)
        assert stage.lease(lease_id).measured_memory_bytes <= 300 * MIB


def test_plan_is_made_once_more_and_no_more_when_a_worker_refuses_to_go_so_low(tmp_path: Path, run: Run) -> None:
    with staged(tmp_path, *ON_HOST) as stage, ThreadPoolExecutor() as threads:
        donor = run("donor", stage.server.address, "donor", "normal", 800, 300, 0.9)
        _, lease_id = donor.hear()
        assert donor.hear() == ["holds", "736", "at", "1.00"]
        stage.measured(lease_id, 700)
        wanted = request("newcomer", 600, wait_s=60)
        wanted.min_memory_bytes = 250 * MIB
        waiting = threads.submit(stage.arbiter.Allocate, wanted, timeout=GUARD_S)
        word, refused = donor.hear()
        assert word == "refuses"
        assert float(refused) < 0.9
        word, held_mib, _, quality = donor.hear()
        assert (word, quality) == ("holds", "0.90")
        # The newcomer starts smaller than it would have, in what the worker could spare.
        newcomer = waiting.result(timeout=GUARD_S).lease
        lease = stage.lease(lease_id)
        assert lease.memory_bytes + newcomer.memory_bytes <= stage.device().capacity_bytes
        assert lease.directive.reason == lease_pb2.DIRECTIVE_REASON_WORKER_REPORT
        time.sleep(2.0)  # for anything more that it might be told
        assert stage.lease(lease_id).directive.revision == lease.directive.revision
        stats = stage.picture().stats
        assert (stats.quality_reductions, stats.quality_raises) == (1, 1)
        assert stage.lease(lease_id).measured_memory_bytes >= int(held_mib) * MIB


def test_refusals_lead_up_only_and_come_to_an_end_when_a_worker_refuses_again_and_again(
    tmp_path: Path, cards: Cards, start: StartWorker
) -> None:
    with scene(tmp_path, cards, start) as here:
        worker = here.holder("creeping", NORMAL, 8000, 2000)
        wanted = request("newcomer", 5000, ttl_s=300, wait_s=60)
        wanted.min_quality = 1.0
        waiting = here.stage.arbiter.Allocate.future(wanted, timeout=2 * GUARD_S)
        worker.hears(lambda told: told.directives[-1].quality < 1.0)
        # A hundredth better each time is as long as it can be drawn out.
        while worker.now.quality < 1.0:
            refused = worker.now
            worker.reports(
                pb.HeartbeatRequest.Report(
                    applied_revision=refused.revision,
                    outcome=pb.REPORT_OUTCOME_REFUSED,
                    achievable_quality=min(1.0, refused.quality + 0.01),
                )
            )
            worker.hears(partial(newer, refused.revision))
        first, *later = [each.quality for each in worker.told.directives[1:]]
        assert [first, *later] == sorted({first, *later}), "never down again, never the same twice"
        assert worker.now.memory_limit_bytes == 8000 * MIB
        heard = len(worker.told.directives)
        time.sleep(1.0)  # for anything more that it might be told
        assert len(worker.told.directives) == heard
        assert not waiting.done(), "nothing of it is granted to the newcomer"
        waiting.cancel()
