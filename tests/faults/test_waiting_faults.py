"""Faults around asking, waiting and giving back: nothing is granted twice, and nothing is left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2
from arbiter_client import errors
from tests.faults.conftest import GUARD_S, MIB, Stage, StartWorker, request, staged
from tests.faults.starting import Run, programs

#: Nothing is measured here, and what a holder says to have given back is believed at once.
BELIEVING = ("--devices", "static", "--devices-static", "card=1000MiB", "--lease-lock-delay", "0s")
TTL_S = 3


@pytest.fixture
def run() -> Iterator[Run]:
    with programs() as started:
        yield started


def refused(call: Callable[[], object]) -> errors.ArbiterClientError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return errors.from_rpc_error(caught.value)


def sized(
    holder: str, memory_mib: int, *pids: int, wait_s: int | None = None, request_id: str = ""
) -> pb.AllocateRequest:
    """A request of one size that nobody can lower, so that it can only be granted or not."""
    asked = request(holder, memory_mib, *pids, ttl_s=300, wait_s=wait_s)
    asked.min_quality, asked.request_id = 1.0, request_id
    return asked


def allocate(stage: Stage, asked: pb.AllocateRequest) -> pb.AllocateResponse:
    """A call of our own connection."""
    return stage.arbiter.Allocate(asked, timeout=GUARD_S)


def release(stage: Stage, lease: lease_pb2.Lease, fence: int | None = None) -> pb.ReleaseResponse:
    """Gives a lease back, perhaps by a wrong fence."""
    return stage.arbiter.Release(
        pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence if fence is None else fence), timeout=GUARD_S
    )


def all_is_free(stage: Stage, capacity_mib: int) -> None:
    """Nothing is held, nobody waits, and the whole device can be leased.

    Raises:
        AssertionError: Something was left behind.
    """
    picture = stage.until(lambda now: not now.leases and not now.waiting)
    assert picture.devices[0].granted_bytes == picture.devices[0].draining_bytes == 0
    whole = allocate(stage, sized("whole", capacity_mib, wait_s=0)).lease
    assert whole.memory_bytes == capacity_mib * MIB
    release(stage, whole)


@contextmanager
def connections(stage: Stage, count: int) -> Iterator[list[arbiter_service_pb2_grpc.ArbiterServiceStub]]:
    """So many connections, as from so many workers."""
    with ExitStack() as stack:
        channels = [
            stack.enter_context(
                grpc.insecure_channel(stage.server.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(count)
        ]
        yield [arbiter_service_pb2_grpc.ArbiterServiceStub(channel) for channel in channels]


# Heartbeats -----------------------------------------------------------------------------------------------------------


def test_others_are_renewed_when_a_heartbeat_names_a_stale_fence_and_strangers(tmp_path: Path) -> None:
    with staged(tmp_path, *BELIEVING) as stage:
        good = allocate(stage, request("good", 100, ttl_s=TTL_S)).lease
        named = allocate(stage, request("named", 100, ttl_s=TTL_S)).lease
        forged = allocate(stage, request("forged", 100, ttl_s=TTL_S)).lease
        gone = allocate(stage, request("gone", 100, ttl_s=TTL_S)).lease
        release(stage, gone)
        reports = [
            pb.HeartbeatRequest.Report(lease_id=forged.lease_id, fence=forged.fence - 1),
            pb.HeartbeatRequest.Report(lease_id=gone.lease_id, fence=gone.fence),
            pb.HeartbeatRequest.Report(lease_id="nobody", fence=named.fence),
            pb.HeartbeatRequest.Report(lease_id=named.lease_id, fence=named.fence),
        ]
        unknown_handle = good.handle ^ 1
        beat = pb.HeartbeatRequest(handles=[unknown_handle, good.handle, gone.handle], reports=reports)
        verdicts = {}
        # Past the time to live of all of them: who is not renewed by it ends, and only who is renewed by it lives.
        until = time.monotonic() + 1.5 * TTL_S
        while time.monotonic() < until:
            answer = stage.arbiter.Heartbeat(beat, timeout=GUARD_S)
            verdicts = {result.handle or result.lease_id: result for result in answer.results}
            time.sleep(0.2)
        renewed, fenced, unknown = pb.VERDICT_RENEWED, pb.VERDICT_FENCED, pb.VERDICT_NOT_FOUND
        assert verdicts[named.lease_id].verdict == renewed
        assert verdicts[forged.lease_id].verdict == fenced
        assert verdicts[gone.lease_id].verdict == fenced
        assert verdicts[gone.lease_id].end_reason == lease_pb2.END_REASON_RELEASED
        assert verdicts["nobody"].verdict == unknown
        assert verdicts[unknown_handle].verdict == unknown
        assert verdicts[gone.handle].verdict == fenced
        ended, _ = stage.events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, forged.lease_id)
        assert ended.fields["reason"] == "EXPIRED", "a beat with a wrong fence keeps nothing alive"
        picture = stage.until(lambda now: len(now.leases) == 2)
        assert {lease.lease_id for lease in picture.leases} == {good.lease_id, named.lease_id}


# Lost answers and repeated requests -----------------------------------------------------------------------------------


def deaf_to_its_answer(stage: Stage, run: Run) -> lease_pb2.Lease:
    """The lease that was granted to a process that was killed before it could read so; its request id is "once"."""
    before = allocate(stage, sized("before", 1000)).lease
    asker = run("party", stage.server.address, "asker", "normal")
    asker.ask("allocate", 600, 60, "unnamed", "once")
    stage.until(lambda now: len(now.waiting) == 1)
    asker.signal(signal.SIGSTOP)
    release(stage, before)
    stage.until(lambda now: not now.waiting)
    asker.end()
    return next(lease for lease in stage.picture().leases if lease.holder == "asker")


def test_same_lease_is_given_when_the_answer_was_lost_and_somebody_asks_again(tmp_path: Path, run: Run) -> None:
    with staged(tmp_path, *BELIEVING) as stage:
        granted = deaf_to_its_answer(stage, run)
        second = run("party", stage.server.address, "asker", "normal")
        second.ask("allocate", 600, 60, "unnamed", "once")
        word, lease_id, fence = second.hear()
        assert (word, lease_id) == ("granted", granted.lease_id)
        assert stage.device().granted_bytes == 600 * MIB
        release(stage, granted, int(fence))
        all_is_free(stage, 1000)


def test_lease_ends_with_its_time_to_live_when_the_answer_was_lost_and_nobody_asks_again(
    tmp_path: Path, run: Run
) -> None:
    with staged(tmp_path, *BELIEVING, "--lease-ttl-default", f"{TTL_S}s") as stage:
        lease = deaf_to_its_answer(stage, run)
        assert lease.state == lease_pb2.LEASE_STATE_GRANTED, "nobody has confirmed it"
        granted, _ = stage.events.until(state_service_pb2.EVENT_KIND_LEASE_GRANTED, lease.lease_id)
        ended, _ = stage.events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, lease.lease_id)
        assert ended.fields["reason"] == "EXPIRED"
        assert (ended.time.ToMicroseconds() - granted.time.ToMicroseconds()) / 1e6 >= TTL_S - 0.01
        all_is_free(stage, 1000)


def test_everybody_hears_of_the_same_lease_when_a_request_is_repeated_while_it_waits(tmp_path: Path) -> None:
    with staged(tmp_path, *BELIEVING) as stage, connections(stage, 3) as calls, ThreadPoolExecutor() as threads:
        before = allocate(stage, sized("before", 1000)).lease
        asked = sized("again", 600, request_id="once", wait_s=60)
        waiting = [threads.submit(each.Allocate, asked, timeout=GUARD_S) for each in calls]
        stage.until(lambda now: now.devices[0].granted_bytes == 1000 * MIB and len(now.waiting) == 1)
        time.sleep(0.2)  # for the repetitions to come in; whichever comes later hears the same
        release(stage, before)
        answers = [each.result(timeout=GUARD_S) for each in waiting]
        assert len({(each.lease.lease_id, each.lease.fence) for each in answers}) == 1
        assert sorted(each.already_granted for each in answers) == [False, True, True]
        release(stage, answers[0].lease)
        all_is_free(stage, 1000)


def test_nothing_changes_when_a_request_id_comes_with_other_arguments(tmp_path: Path) -> None:
    with staged(tmp_path, *BELIEVING) as stage, ThreadPoolExecutor() as threads:
        held = allocate(stage, sized("first", 600, request_id="held")).lease
        waits = sized("second", 600, request_id="waits", wait_s=60)
        waiting = threads.submit(allocate, stage, waits)
        before = stage.until(lambda now: len(now.waiting) == 1)
        for request_id in ("held", "waits"):
            for holder, memory_mib in (("first", 601), ("stranger", 600)):
                changed = sized(holder, memory_mib, request_id=request_id, wait_s=0)
                error = refused(partial(allocate, stage, changed))
                assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_MISMATCH")
        after = stage.picture()
        # Apart from its moment of expiry, which is rounded anew for each picture.
        shown = [
            [(each.lease_id, each.state, each.memory_bytes, each.directive.revision) for each in now.leases]
            for now in (before, after)
        ]
        assert shown[0] == shown[1]
        assert [each.request_id for each in after.waiting] == ["waits"]
        assert after.devices[0].granted_bytes == 600 * MIB
        assert allocate(stage, sized("first", 600, request_id="held")).lease.fence == held.fence
        release(stage, held)
        release(stage, waiting.result(timeout=GUARD_S).lease)
        all_is_free(stage, 1000)


# Many at once ---------------------------------------------------------------------------------------------------------


def all_at_once(calls: Sequence[Callable[[], pb.AllocateResponse]]) -> list[Future[pb.AllocateResponse]]:
    """Begins all of them in the same moment; returns when all have ended."""
    gate = threading.Barrier(len(calls))

    def begin(call: Callable[[], pb.AllocateResponse]) -> pb.AllocateResponse:
        gate.wait(GUARD_S)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [threads.submit(begin, call) for call in calls]


@pytest.mark.parametrize("many", [2, 20])
def test_exactly_one_is_granted_when_many_ask_for_the_last_bytes(tmp_path: Path, many: int) -> None:
    with staged(tmp_path, *BELIEVING) as stage, connections(stage, many) as calls:
        allocate(stage, sized("before", 400))
        for turn in range(5):
            stage.until(lambda now: not now.devices[0].draining_bytes)
            outcomes = all_at_once(
                [
                    partial(each.Allocate, sized(f"asker-{turn}-{place}", 600, wait_s=0), timeout=GUARD_S)
                    for place, each in enumerate(calls)
                ]
            )
            failed = [failure for each in outcomes if (failure := each.exception()) is not None]
            assert len(failed) == many - 1
            for failure in failed:
                assert isinstance(failure, grpc.RpcError)
                error = errors.from_rpc_error(failure)
                assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_MEMORY")
            device = stage.device()
            assert device.granted_bytes == device.capacity_bytes
            (granted,) = (each.result() for each in outcomes if each.exception() is None)
            release(stage, granted.lease)


def test_each_has_its_turn_when_ten_wait_for_the_same_bytes(tmp_path: Path) -> None:
    with staged(tmp_path, *BELIEVING) as stage, connections(stage, 10) as calls:
        before = allocate(stage, sized("before", 1000)).lease
        most = 0
        lock = threading.Lock()

        def worker(each: arbiter_service_pb2_grpc.ArbiterServiceStub, holder: str) -> str:
            nonlocal most
            lease = each.Allocate(sized(holder, 600, wait_s=60), timeout=GUARD_S).lease
            with lock:
                held = stage.device().granted_bytes
                most = max(most, held)
            each.Release(pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence), timeout=GUARD_S)
            return lease.holder

        with ThreadPoolExecutor(len(calls)) as threads:
            waiting = [threads.submit(worker, each, f"asker-{place}") for place, each in enumerate(calls)]
            stage.until(lambda now: len(now.waiting) == len(calls))
            release(stage, before)
            served = {each.result(timeout=GUARD_S) for each in waiting}
        assert served == {f"asker-{place}" for place in range(len(calls))}
        assert most == 600 * MIB
        all_is_free(stage, 1000)


# Callers that go ------------------------------------------------------------------------------------------------------


class Crossing:
    """Devices, one for each try, on each of which somebody waits until a holder confirms that it has shrunk.

    The confirmation lets the waiting one in within the same turn of the server, so a caller can go just then.
    """

    TRIES = 60
    FLAGS = (
        *("--devices", "static", "--lease-lock-delay", "0s", "--lease-ttl-default", f"{TTL_S}s"),
        *("--devices-static", ",".join(f"card{place}=1000MiB" for place in range(TRIES))),
    )

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._holders: dict[str, pb.AllocateResponse] = {}

    def hold(self, place: int) -> str:
        """Has a device held, by somebody who can make room for 600 MiB; its id."""
        holding = request(f"holder-{place}", 1000, ttl_s=300)
        holding.device_id, holding.min_memory_bytes = f"card{place}", 400 * MIB
        self._holders[holding.device_id] = allocate(self._stage, holding)
        return holding.device_id

    def confirmation(self, device_id: str) -> pb.HeartbeatRequest:
        """What lets the next one in there, once it waits."""
        held = self._holders[device_id]
        picture = self._stage.until(lambda now: device_id in {each.device_id for each in now.waiting})
        told = next(lease for lease in picture.leases if lease.lease_id == held.lease.lease_id).directive
        assert told.quality < held.directive.quality
        report = pb.HeartbeatRequest.Report(
            lease_id=held.lease.lease_id, fence=held.lease.fence, applied_revision=told.revision
        )
        return pb.HeartbeatRequest(server_epoch=held.server_epoch, reports=[report])

    def nothing_is_left(self) -> None:
        """On every device that was used there is its holder and room for as much as it made."""
        self._stage.until(lambda now: not now.waiting and len(now.leases) == len(self._holders))
        for device_id in self._holders:
            asked = sized("next", 600, wait_s=0)
            asked.device_id = device_id
            release(self._stage, allocate(self._stage, asked).lease)


def test_nothing_is_left_when_a_caller_goes_at_the_moment_of_its_grant(tmp_path: Path) -> None:
    with (
        staged(tmp_path, *Crossing.FLAGS) as stage,
        connections(stage, 1) as (other,),
        ThreadPoolExecutor() as threads,
    ):
        crossing = Crossing(stage)
        for place in range(Crossing.TRIES):
            asked = request(f"asker-{place}", 500, wait_s=60)
            asked.min_quality, asked.device_id = 1.0, crossing.hold(place)
            waiting = other.Allocate.future(asked, timeout=GUARD_S)
            confirmation = crossing.confirmation(asked.device_id)
            letting_in = threads.submit(stage.arbiter.Heartbeat, confirmation, timeout=GUARD_S)
            time.sleep(place % 20 * 0.0002)  # from before the grant to after its answer
            if not waiting.cancel():
                release(stage, waiting.result().lease)
            letting_in.result(timeout=GUARD_S)
        # What was granted to somebody who had gone is undone at once where the server could know it, else it ends
        # with its time to live: nobody confirms it.
        crossing.nothing_is_left()
        stats = stage.picture().stats
        outcomes = stats.successful_allocations + stats.cancelled_allocations
        assert outcomes == stats.total_allocations, "each call has one outcome"


@pytest.mark.parametrize("words", [("unnamed",), ()], ids=["process unknown", "process known"])
def test_nothing_is_left_when_a_waiting_process_is_killed_at_the_moment_of_its_grant(
    tmp_path: Path, run: Run, words: tuple[str, ...]
) -> None:
    with staged(tmp_path, *Crossing.FLAGS) as stage, ThreadPoolExecutor() as threads:
        crossing = Crossing(stage)
        for place in range(4):
            asker = run("party", stage.server.address, f"asker-{place}", "normal")
            device_id = crossing.hold(place)
            asker.ask("allocate", 500, 60, f"on={device_id}", *words)
            letting_in = threads.submit(stage.arbiter.Heartbeat, crossing.confirmation(device_id), timeout=GUARD_S)
            time.sleep(place * 0.0005)
            asker.signal(signal.SIGKILL)
            letting_in.result(timeout=GUARD_S)
        crossing.nothing_is_left()


def test_waiting_request_is_forgotten_when_its_process_is_killed(tmp_path: Path, run: Run, start: StartWorker) -> None:
    with staged(tmp_path, *BELIEVING) as stage:
        before = allocate(stage, sized("before", 1000)).lease
        bare = run("party", stage.server.address, "bare", "normal")
        bare.ask("allocate", 600, 60, "unnamed")
        packaged = start(stage.server.address)
        packaged.tell("lease", 600, 15)
        stage.until(lambda now: len(now.waiting) == 2)
        bare.signal(signal.SIGKILL)
        packaged.signal(signal.SIGKILL)
        # Nothing has come free yet: they are forgotten because they have gone.
        stage.until(lambda now: not now.waiting)
        assert [lease.lease_id for lease in stage.picture().leases] == [before.lease_id]
        release(stage, before)
        all_is_free(stage, 1000)


# Giving back ----------------------------------------------------------------------------------------------------------


def test_books_fall_once_when_a_lease_is_released_again_and_again(tmp_path: Path) -> None:
    with staged(tmp_path, *BELIEVING) as stage, connections(stage, 8) as calls:
        kept = allocate(stage, sized("kept", 300)).lease
        lease = allocate(stage, sized("given back", 600)).lease
        ask = pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence)
        with ThreadPoolExecutor(len(calls)) as threads:
            answers = list(threads.map(lambda each: each.Release(ask, timeout=GUARD_S), calls))
        assert sorted(answer.already_released for answer in answers) == [False] + [True] * (len(calls) - 1)
        stage.until(lambda now: len(now.leases) == 1)
        assert release(stage, lease).already_released, "it is remembered when its bytes have gone, too"
        device = stage.device()
        assert (device.granted_bytes, device.available_bytes) == (300 * MIB, 700 * MIB)
        release(stage, kept)
        all_is_free(stage, 1000)


def test_release_is_heard_and_changes_nothing_when_the_lease_has_expired(tmp_path: Path) -> None:
    with staged(tmp_path, *BELIEVING) as stage:
        lease = allocate(stage, request("late", 600, ttl_s=TTL_S)).lease
        stage.events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, lease.lease_id)
        assert release(stage, lease).already_released
        stats = stage.picture().stats
        assert (stats.expired_leases, stats.released_leases) == (1, 0)
        all_is_free(stage, 1000)


def test_release_is_refused_when_somebody_comes_with_a_wrong_fence(tmp_path: Path) -> None:
    with staged(tmp_path, *BELIEVING) as stage:
        lease = allocate(stage, sized("owner", 600)).lease
        for fence in (lease.fence - 1, lease.fence + 1):
            error = refused(partial(release, stage, lease, fence))
            assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FENCED")
        stranger = lease_pb2.Lease(lease_id="nobody", fence=lease.fence)
        error = refused(partial(release, stage, stranger))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND")
        assert stage.lease(lease.lease_id).end_reason == lease_pb2.END_REASON_UNSPECIFIED
        assert stage.device().granted_bytes == 600 * MIB
        release(stage, lease)
        # The fence is asked for after the end, too.
        assert refused(partial(release, stage, lease, lease.fence + 1)).reason == "FENCED"
        all_is_free(stage, 1000)
