"""The blocking client against a scripted server over a Unix socket."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

import arbiter_client
from arbiter.v1 import arbiter_service_pb2, arbiter_service_pb2_grpc, lease_pb2, state_service_pb2
from arbiter_client import errors
from tests.client import scripted_server
from tests.client.scripted_server import GUARD_S, until

if TYPE_CHECKING:
    from pathlib import Path

    from arbiter_client import BlockingClient, BlockingLeaseRequest
    from tests.client.scripted_server import ScriptedServer

Verdict = arbiter_service_pb2.Verdict


def wanted(client: BlockingClient, **more: float) -> BlockingLeaseRequest:
    return client.lease("w", memory="1MiB", workload_type="llm", ttl=more.get("ttl"))


def test_lease_is_granted_renewed_and_given_back_over_one_session(
    server: ScriptedServer, client: BlockingClient
) -> None:
    with wanted(client, ttl=1.0) as lease:
        assert (lease.lease_id, lease.fence, lease.device_id, lease.ttl) == ("lease-1", 1, "gpu0", 1.0)
        assert (lease.quality, lease.memory_limit_bytes, lease.directive.revision) == (1.0, 1 << 20, 1)
        server.wait(lambda: any(1001 in beat.handles for _, beat in server.beats))
        assert not lease.lost
        assert lease.end_reason is None
        assert "lease-1 alive" in repr(lease)
    assert lease.lost
    assert lease.end_reason == "RELEASED"
    assert [(given.lease_id, given.fence) for given in server.releases] == [("lease-1", 1)]
    assert server.sessions == 1
    assert server.unary_beats == []


def test_beats_are_ordered_and_name_their_worker(server: ScriptedServer, client: BlockingClient) -> None:
    with wanted(client, ttl=0.3):
        server.wait(lambda: len(server.beats) >= 4)
    beats = [beat for _, beat in server.beats]
    assert [beat.sequence for beat in beats] == list(range(1, len(beats) + 1))
    assert len({(beat.worker, beat.incarnation) for beat in beats}) == 1
    assert beats[-1].server_epoch == server.script.epoch


def test_directives_begin_with_the_present_one_and_skip_what_is_outdated(
    server: ScriptedServer, client: BlockingClient
) -> None:
    with wanted(client) as lease:
        updates = lease.directives(timeout=GUARD_S)
        assert next(updates).revision == 1
        for quality in (0.9, 0.8, 0.7):
            newest = server.push(lease.lease_id, quality)
        until(lambda: lease.directive.revision == newest)
        assert [next(updates).quality, lease.quality] == [0.7, 0.7]
        server.push_end(lease.lease_id, lease_pb2.EndReason.END_REASON_PREEMPTED)
        assert list(updates) == []
        assert lease.end_reason == "PREEMPTED"


def test_directives_end_when_nothing_newer_comes_in_time(server: ScriptedServer, client: BlockingClient) -> None:
    with wanted(client) as lease:
        assert [directive.revision for directive in lease.directives(timeout=0)] == [1]


def test_reports_leave_at_once(server: ScriptedServer, client: BlockingClient) -> None:
    with wanted(client) as lease:
        lease.applied(lease.directive, used_memory_bytes=123)
        server.wait(lambda: len(server.reports()) == 1)
        lease.deferred(lease.directive)
        server.wait(lambda: len(server.reports()) == 2)
        lease.refused(lease.directive, achievable_quality=0.6)
        server.wait(lambda: len(server.reports()) == 3)
        lease.report(used_memory_bytes=5, shard_latencies=[0.25], busy_for=2.0)
        server.wait(lambda: len(server.reports()) == 4)
    applied, deferred, refused, usage = server.reports()
    assert (applied.lease_id, applied.fence, applied.applied_revision) == ("lease-1", 1, 1)
    assert (applied.outcome, applied.used_memory_bytes) == (1, 123)
    assert (deferred.outcome, refused.outcome, refused.achievable_quality) == (2, 3, 0.6)
    assert (usage.outcome, usage.used_memory_bytes, usage.busy_for.seconds) == (0, 5, 2)
    assert usage.shard_latencies[0].nanos == 250_000_000


def test_reports_in_a_flood_are_gathered(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.beat_delay = 0.05
    with wanted(client) as lease:
        for used in range(1000):
            lease.report(used_memory_bytes=used)
        server.wait(lambda: any(report.used_memory_bytes == 999 for report in server.reports()))
    assert len(server.reports()) < 20


def test_a_refused_report_does_not_cost_the_lease(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.beat_error = scripted_server.error(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    with wanted(client, ttl=0.6) as lease:
        lease.report(used_memory_bytes=1)
        server.wait(lambda: len(server.reports()) == 1)
        seen = len(server.beats)
        server.wait(lambda: len(server.beats) >= seen + 4)
        assert not lease.lost
    assert len(server.reports()) == 1


def test_a_cut_session_is_taken_up_where_it_was(server: ScriptedServer, client: BlockingClient) -> None:
    with wanted(client, ttl=3.0) as lease:
        server.push(lease.lease_id, 0.5)
        until(lambda: lease.directive.revision == 2)
        server.drop()
        server.wait(lambda: len(server.subscribes) == 1)
        assert list(server.subscribes[0].lease_ids) == ["lease-1"]
        assert (server.subscribes[0].resume_epoch, server.subscribes[0].resume_revision) == (7, 2)
        server.wait(lambda: any(1001 in beat.handles for _, beat in server.beats))
        first, last = server.beats[0][1], server.beats[-1][1]
        assert first.incarnation < last.incarnation
        revision = server.push(lease.lease_id, 0.4)
        until(lambda: lease.directive.revision == revision)
        assert not lease.lost


def test_a_refused_subscription_is_repeated_with_the_next_beat(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.subscribe_errors.append(scripted_server.error(grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND"))
    with wanted(client, ttl=1.0):
        server.drop()
        server.wait(lambda: len(server.subscribes) == 2)


def test_a_new_epoch_starts_revisions_anew(server: ScriptedServer, client: BlockingClient) -> None:
    with wanted(client, ttl=9.0) as lease:
        server.push(lease.lease_id, 0.5)
        server.push(lease.lease_id, 0.4)
        until(lambda: lease.directive.revision == 3)
        old = lease.directive
        server.stop()
        server.script.epoch, server.revision = 8, 0
        server.start()
        server.wait(lambda: len(server.subscribes) == 1)
        server.push(lease.lease_id, 0.9)
        until(lambda: lease.directive.epoch == 8)
        assert (lease.directive.revision, lease.quality) == (1, 0.9)
        lease.applied(old, used_memory_bytes=77)
        server.wait(lambda: any(report.used_memory_bytes == 77 for report in server.reports()))
        assert server.reports()[-1].applied_revision == 0
        assert not lease.lost


def test_allocate_is_repeated_with_the_same_id_when_the_session_is_cut(
    server: ScriptedServer, client: BlockingClient
) -> None:
    server.script.holds_allocates = True
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(wanted(client).acquire)
        server.wait(lambda: len(server.allocates) == 1)
        server.drop()
        server.wait(lambda: len(server.allocates) == 2)
        server.grant_held()
        lease = asking.result(GUARD_S)
    first, second = server.allocates
    assert first == second
    assert first.request_id
    assert not lease.lost
    assert lease.release() is False
    assert lease.release() is True


def test_a_final_verdict_ends_the_lease(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.results.append(
        arbiter_service_pb2.HeartbeatResponse.Result(
            handle=1001, verdict=Verdict.VERDICT_FENCED, end_reason=lease_pb2.EndReason.END_REASON_REVOKED
        )
    )
    with wanted(client, ttl=0.6) as lease:
        assert lease.wait_lost(GUARD_S)
        assert lease.end_reason == "REVOKED"
        with pytest.raises(arbiter_client.LeaseLost, match="REVOKED"):
            lease.check()
    assert server.releases == []


def test_lost_comes_before_the_servers_deadline_when_beats_go_unanswered(
    server: ScriptedServer, client: BlockingClient
) -> None:
    with wanted(client, ttl=1.5) as lease:
        server.wait(lambda: any(1001 in beat.handles for _, beat in server.beats))
        answered_at = server.stop_answering()
        assert lease.wait_lost(GUARD_S)
        lost_at = time.monotonic()
    # Not before: it was alive for most of the time. Not after: the server counts from when it received the last one.
    assert answered_at + 1.0 < lost_at < answered_at + 1.5
    assert lease.end_reason == "EXPIRED"
    assert server.sessions > 1


def test_slow_answers_are_enough(server: ScriptedServer, client: BlockingClient) -> None:
    with wanted(client, ttl=1.5) as lease:
        server.script.beat_delay = 0.35
        seen = len(server.beats)
        server.wait(lambda: len(server.beats) >= seen + 4)
        assert not lease.lost
    assert server.sessions == 1


def test_wait_lost_says_when_the_lease_still_stands(client: BlockingClient) -> None:
    with wanted(client) as lease:
        assert not lease.wait_lost(0.01)


def test_unreachable_names_the_address_and_the_next_command(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/none.sock"
    with arbiter_client.connect_blocking(address, connect_timeout=0.3) as client:
        began = time.monotonic()
        with pytest.raises(arbiter_client.ArbiterUnreachable) as raised:
            wanted(client).acquire()
        assert time.monotonic() - began >= 0.3
    assert address in raised.value.message
    assert "arbiter-sidecar serve" in raised.value.message


def test_a_server_that_comes_late_is_found(tmp_path: Path) -> None:
    server = scripted_server.ScriptedServer(tmp_path / "late.sock")
    with arbiter_client.connect_blocking(server.address) as client, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(wanted(client).acquire)
        server.start()
        assert asking.result(GUARD_S).lease_id == "lease-1"
    server.stop()
    assert len(server.releases) == 1


def test_learning_is_waited_for(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.allocate_errors.append(scripted_server.error(grpc.StatusCode.UNAVAILABLE, "LEARNING"))
    with wanted(client) as lease:
        assert lease.lease_id == "lease-1"
    assert len(server.allocates) == 2


def test_learning_is_told_when_nobody_wants_to_wait(server: ScriptedServer) -> None:
    server.script.allocate_errors.append(scripted_server.error(grpc.StatusCode.UNAVAILABLE, "LEARNING"))
    with (
        arbiter_client.connect_blocking(server.address, connect_timeout=0) as client,
        pytest.raises(errors.Learning, match="learning"),
    ):
        wanted(client).acquire()


def test_refusals_arrive_as_their_class(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.allocate_errors.append(
        scripted_server.error(grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_MEMORY", free_bytes="12")
    )
    with pytest.raises(errors.InsufficientMemory) as raised:
        wanted(client).acquire()
    assert raised.value.metadata == {"free_bytes": "12"}
    assert raised.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bad_terms_are_refused_before_anything_is_sent(server: ScriptedServer, client: BlockingClient) -> None:
    with pytest.raises(ValueError, match="lots"):
        client.lease("w", memory="lots", workload_type="llm").acquire()
    assert server.sessions == 0


def test_a_server_without_sessions_is_told_apart_from_none(tmp_path: Path) -> None:
    bare = grpc.server(ThreadPoolExecutor(2))
    bare.add_insecure_port(f"unix:{tmp_path}/bare.sock")
    bare.start()
    with (
        arbiter_client.connect_blocking(f"{tmp_path}/bare.sock") as client,
        pytest.raises(arbiter_client.ArbiterClientError) as raised,
    ):
        wanted(client).acquire()
    bare.stop(None).wait(GUARD_S)
    assert raised.value.code is grpc.StatusCode.UNIMPLEMENTED


def test_closing_gives_every_lease_back(server: ScriptedServer) -> None:
    client = arbiter_client.connect_blocking(server.address)
    leases = [wanted(client).acquire() for _ in range(3)]
    client.close()
    assert sorted(given.lease_id for given in server.releases) == ["lease-1", "lease-2", "lease-3"]
    assert all(lease.lost for lease in leases)
    with pytest.raises(errors.Cancelled, match="closed"):
        wanted(client).acquire()
    client.close()


def test_closing_fails_those_who_wait(server: ScriptedServer) -> None:
    server.script.holds_allocates = True
    client = arbiter_client.connect_blocking(server.address)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(wanted(client).acquire)
        server.wait(lambda: len(server.allocates) == 1)
        client.close()
        with pytest.raises(errors.Cancelled, match="closed"):
            asking.result(GUARD_S)


def test_closing_leaves_no_thread_behind(server: ScriptedServer) -> None:
    before = set(threading.enumerate())
    client = arbiter_client.connect_blocking(server.address)
    with wanted(client):
        new = [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("arbiter")]
        assert sorted(thread.name for thread in new) == ["arbiter-keeper", "arbiter-session"]
    client.close()
    for thread in new:
        thread.join(GUARD_S)
        assert not thread.is_alive()


def test_release_of_any_lease_by_its_fence(server: ScriptedServer, client: BlockingClient) -> None:
    assert client.release("somebody", 9) is False
    assert [(given.lease_id, given.fence) for given in server.releases] == [("somebody", 9)]


def test_quality_falls_to_the_safe_one_when_the_server_is_gone(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.valid_for = 0.5
    with wanted(client) as lease:
        assert lease.quality == 1.0
        server.stop()
        until(lambda: lease.quality == 0.25)
        server.start()
        until(lambda: lease.quality == 1.0)
        assert not lease.lost


def test_state_explain_and_watch(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.state.version = "1.2.3"
    server.script.explanations["lease_id:l"] = state_service_pb2.ExplainResponse(summary="so")
    server.script.events.extend(state_service_pb2.Event(sequence=number) for number in (1, 2, 3))
    assert client.state().version == "1.2.3"
    assert client.explain(lease_id="l").summary == "so"
    with pytest.raises(errors.LeaseNotFound):
        client.explain(request_id="r")
    with pytest.raises(ValueError, match="exactly one"):
        client.explain()
    with client.watch(after=1) as events:
        iterator = iter(events)
        assert [next(iterator).sequence, next(iterator).sequence] == [2, 3]
    assert list(iterator) == []


def test_channel_carries_raw_stubs(client: BlockingClient) -> None:
    stub = arbiter_service_pb2_grpc.ArbiterServiceStub(client.channel)
    answer = stub.Heartbeat(arbiter_service_pb2.HeartbeatRequest(sequence=5), timeout=GUARD_S)
    assert answer.sequence == 5


def test_connect_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="connect_timeout"):
        arbiter_client.connect_blocking(connect_timeout=-1.0)
    with pytest.raises(ValueError, match="max_silence"):
        arbiter_client.connect_blocking(heartbeat_mode="process", max_silence=0.0)
    with pytest.raises(ValueError, match="unix:/path"):
        arbiter_client.connect_blocking("nowhere")


def test_reading_the_directive_is_cheap_enough_for_every_step(client: BlockingClient) -> None:
    with wanted(client) as lease:
        best = float("inf")
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(1000):
                present = lease.directive
            best = min(best, (time.perf_counter() - began) / 1000)
        # Ten times the promise, since the machine may be busy with other tests.
        assert best < 20e-6
        assert present.revision == 1
