"""The main job with real calls: a second worker arrives, both shrink by priority, it leaves, the first grows again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2
from tests.running import running_server

GIB = 1 << 30


def test_newcomer_waits_until_reductions_are_confirmed_and_the_rest_grows_when_it_leaves(tmp_path: Path) -> None:
    flags = ("--devices", "static", "--devices-static", "card=24GiB", "--lease-lock-delay", "0s")
    with (
        running_server(tmp_path, *flags) as server,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor() as threads,
    ):
        arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
        language = arbiter.Allocate(
            pb.AllocateRequest(
                holder="language",
                workload_type=lease_pb2.WORKLOAD_TYPE_LLM_INFERENCE,
                priority=lease_pb2.PRIORITY_HIGH,
                memory_bytes=20 * GIB,
                min_memory_bytes=8 * GIB,
            )
        )
        assert language.directive.quality == 1.0
        stream = iter(arbiter.StreamQuality(pb.StreamQualityRequest(lease_ids=[language.lease.lease_id])))
        assert next(stream).directives[0].revision == language.directive.revision
        images = threads.submit(
            arbiter.Allocate,
            pb.AllocateRequest(
                holder="images",
                workload_type=lease_pb2.WORKLOAD_TYPE_IMAGE_GENERATION,
                memory_bytes=12 * GIB,
                min_memory_bytes=int(3.6 * GIB),
            ),
            timeout=60,
        )
        told = next(stream).directives[0]
        assert told.quality < 1.0
        assert told.reason == lease_pb2.DIRECTIVE_REASON_PRESSURE
        assert not images.done(), "the language model has not confirmed yet"
        arbiter.Heartbeat(
            pb.HeartbeatRequest(
                server_epoch=language.server_epoch,
                reports=[
                    pb.HeartbeatRequest.Report(
                        lease_id=language.lease.lease_id,
                        fence=language.lease.fence,
                        applied_revision=told.revision,
                        outcome=pb.REPORT_OUTCOME_APPLIED,
                    )
                ],
            )
        )
        second = images.result(timeout=30)
        assert second.directive.quality < told.quality, "the lower priority gives more"
        assert told.memory_limit_bytes + second.directive.memory_limit_bytes <= 24 * GIB
        arbiter.Release(pb.ReleaseRequest(lease_id=second.lease.lease_id, fence=second.lease.fence))
        raised = next(message for message in stream if message.directives).directives[0]
        assert raised.quality > told.quality
        assert raised.reason == lease_pb2.DIRECTIVE_REASON_HEADROOM
