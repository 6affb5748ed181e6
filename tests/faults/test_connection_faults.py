"""Faults of connections: what breaks is the connection, never the lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2
from arbiter_client import errors
from tests.faults.conftest import GUARD_S, Stage, StartWorker, request, staged
from tests.faults.proxy import Proxy, proxied
from tests.faults.talking import OWN, Talk, talking

STATIC = ("--devices", "static", "--devices-static", "card=1000MiB")
TTL_S = 3
#: Keepalive and ping timeout of the server together.
CUT_S = 15.0
#: Two looks at one deadline differ by no more, in seconds.
SAME_S = 0.2


def raw_lease(stage: Stage, ttl_s: int = TTL_S) -> lease_pb2.Lease:
    """A lease without processes, which only heartbeats keep."""
    return stage.arbiter.Allocate(request("raw", 10, ttl_s=ttl_s), timeout=GUARD_S).lease


def deadline_of(stage: Stage, lease_id: str) -> float:
    """When a lease would end, as it is shown now, in seconds."""
    return stage.lease(lease_id).expire_time.ToNanoseconds() / 1e9


@contextmanager
def kept_alive(stage: Stage, lease: lease_pb2.Lease) -> Iterator[None]:
    """Heartbeats over the stage's own connection until the block ends; each must renew."""
    over = threading.Event()
    verdicts: list[pb.Verdict.ValueType] = []

    def beat() -> None:
        while not over.wait(lease.ttl.ToSeconds() / 6):
            verdicts.extend(result.verdict for result in stage.beat(lease).results)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
    # By handle only what was not renewed, or has something to obey, is answered.
    assert set(verdicts) <= {pb.VERDICT_RENEWED}


def admitted(address: str) -> bool:
    """Whether one more session may be opened."""
    with talking(address) as talk:
        try:
            talk.beat("late", 1, 1)
        except grpc.RpcError as failure:
            error = errors.from_rpc_error(failure)
        else:
            return True
    assert isinstance(error, errors.QueueFull)
    return False


@pytest.mark.slow
def test_silent_connection_is_cut_and_its_lease_follows_the_heartbeats(tmp_path: Path) -> None:
    with staged(tmp_path, *STATIC, "--limits-sessions", "1") as stage, proxied(stage.server.socket) as proxy:
        lease = raw_lease(stage)
        with kept_alive(stage, lease), talking(proxy.address) as talk:
            talk.beat("w", 1, 1, lease.handle)
            assert not admitted(stage.server.address)
            proxy.silence()
            begun = time.monotonic()
            # Were it not for the ping timeout it would take a minute and more, or no end.
            assert proxy.links[0].left_by_server.wait(2 * CUT_S)
            assert time.monotonic() - begun < 2 * CUT_S
            deadline = time.monotonic() + GUARD_S
            while not admitted(stage.server.address):
                assert time.monotonic() < deadline, "the session of the dead connection is still counted"
        assert stage.lease(lease.lease_id).state == lease_pb2.LEASE_STATE_ACTIVE
        before_last = time.monotonic()
        stage.beat(lease)
        ended, heard = stage.events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, lease.lease_id)
        assert ended.fields["reason"] == "EXPIRED"
        assert heard - before_last >= TTL_S


def test_lease_lasts_its_time_to_live_when_the_connection_breaks(tmp_path: Path) -> None:
    with staged(tmp_path, *STATIC) as stage, proxied(stage.server.socket) as proxy:
        lease = raw_lease(stage)
        with talking(proxy.address) as talk:
            before_last = time.monotonic()
            talk.beat("w", 1, 1, lease.handle)
            proxy.cut()
            with pytest.raises(grpc.RpcError):
                next(talk.call)
        ended, heard = stage.events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, lease.lease_id)
        assert ended.fields["reason"] == "EXPIRED"
        assert heard - before_last >= TTL_S


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(Proxy.cut, id="cut"),
        pytest.param(Proxy.half_close, id="half-closed"),
        pytest.param(lambda proxy: proxy.drop(7), id="bytes lost", marks=pytest.mark.slow),
    ],
)
def test_worker_connects_again_and_keeps_its_lease(
    tmp_path: Path, start: StartWorker, spoil: Callable[[Proxy], None]
) -> None:
    with staged(tmp_path, *STATIC) as stage, proxied(stage.server.socket) as proxy:
        worker = start(proxy.address)
        _, lease_id, _ = worker.ask("lease", 10, 2 * TTL_S)
        stage.events.until(state_service_pb2.EVENT_KIND_LEASE_CONFIRMED, lease_id)
        spoil(proxy)
        stage.until(lambda _: len(proxy.links) > 1)
        proxy.drop(0)
        renewed = deadline_of(stage, lease_id)
        stage.until(lambda _: deadline_of(stage, lease_id) > renewed + SAME_S)
        assert worker.ask("guard") == ["entered"]
        assert stage.picture().stats.expired_leases == 0


def test_higher_incarnation_takes_over_and_the_older_session_renews_nothing(tmp_path: Path) -> None:
    with (
        staged(tmp_path, *STATIC) as stage,
        talking(stage.server.address) as old,
        talking(stage.server.address) as new,
    ):
        lease = raw_lease(stage, ttl_s=60)
        old.beat("w", 1, 100, lease.handle)
        assert new.beat("w", 2, 1).HasField("heartbeat")
        with pytest.raises(grpc.RpcError) as caught:
            next(old.call)
        moved = errors.from_rpc_error(caught.value)
        assert isinstance(moved, errors.SessionMoved)
        assert (moved.code, moved.metadata) == (grpc.StatusCode.ABORTED, {"worker": "w"})
        before = deadline_of(stage, lease.lease_id)
        time.sleep(1.0)
        # Neither on the ended stream, nor on a new one, nor by a unary call.
        old.send(pb.SessionRequest(heartbeat=_beat(1, 101, lease)))
        with talking(stage.server.address) as older:
            assert older.beat("w", 1, 102, lease.handle).error.reason == "SESSION_MOVED"
        assert stage.arbiter.Heartbeat(_beat(1, 103, lease), timeout=GUARD_S).stale
        assert abs(deadline_of(stage, lease.lease_id) - before) < SAME_S
        assert not new.beat("w", 2, 2, lease.handle).heartbeat.stale
        assert deadline_of(stage, lease.lease_id) > before + SAME_S


def _beat(incarnation: int, sequence: int, lease: lease_pb2.Lease) -> pb.HeartbeatRequest:
    return pb.HeartbeatRequest(worker="w", incarnation=incarnation, sequence=sequence, handles=[lease.handle])


@pytest.mark.parametrize("sequence", [4, 5], ids=["older", "the same"])
def test_replayed_heartbeat_extends_nothing(tmp_path: Path, sequence: int) -> None:
    with staged(tmp_path, *STATIC) as stage:
        lease = raw_lease(stage, ttl_s=60)
        assert not stage.arbiter.Heartbeat(_beat(1, 5, lease), timeout=GUARD_S).stale
        before = deadline_of(stage, lease.lease_id)
        time.sleep(1.0)
        answer = stage.arbiter.Heartbeat(_beat(1, sequence, lease), timeout=GUARD_S)
        assert (answer.stale, len(answer.results)) == (True, 0)
        assert abs(deadline_of(stage, lease.lease_id) - before) < SAME_S


def test_heartbeat_that_was_overtaken_on_its_way_extends_nothing(tmp_path: Path) -> None:
    with (
        staged(tmp_path, *STATIC) as stage,
        proxied(stage.server.socket) as proxy,
        grpc.insecure_channel(proxy.address, options=(OWN,)) as slow,
        ThreadPoolExecutor() as threads,
    ):
        lease = raw_lease(stage, ttl_s=60)
        stub = arbiter_service_pb2_grpc.ArbiterServiceStub(slow)
        stub.Heartbeat(_beat(1, 1, lease), timeout=GUARD_S)
        proxy.delay(1.0)
        late = threads.submit(stub.Heartbeat, _beat(1, 2, lease), timeout=GUARD_S)
        assert not stage.arbiter.Heartbeat(_beat(1, 3, lease), timeout=GUARD_S).stale
        before = deadline_of(stage, lease.lease_id)
        assert late.result(GUARD_S).stale
        assert abs(deadline_of(stage, lease.lease_id) - before) < SAME_S


def test_session_goes_on_when_the_way_up_is_slow(tmp_path: Path) -> None:
    with staged(tmp_path, *STATIC) as stage, proxied(stage.server.socket) as proxy, talking(proxy.address) as talk:
        lease = raw_lease(stage)
        proxy.delay(0.3)
        answers = [_answered(talk, lease, sequence) for sequence in range(1, 5)]
        assert [answer.sequence for answer in answers] == [1, 2, 3, 4]
        assert not any(answer.stale for answer in answers)
        assert stage.lease(lease.lease_id).state == lease_pb2.LEASE_STATE_ACTIVE


def _answered(talk: Talk, lease: lease_pb2.Lease, sequence: int) -> pb.HeartbeatResponse:
    return talk.beat("w", 1, sequence, lease.handle).heartbeat
