"""The real grpcurl reaches every call without any proto file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.running import Running, running_server

FLAGS = ("--devices", "static", "--devices-static", "card=8GiB", "--lease-lock-delay", "0s")
WISH = {"holder": "by-hand", "workload_type": "WORKLOAD_TYPE_OTHER", "memory_bytes": "1048576", "ttl": "300s"}


#: A message in JSON.
Answer = dict[str, Any]


class Grpcurl:
    """grpcurl as a person calls it."""

    def __init__(self, server: Running) -> None:
        self._server = server

    def run(self, *arguments: str, max_time_s: int = 10) -> subprocess.CompletedProcess[str]:
        """Runs it; the last arguments are the verb or method."""
        program = str(Path(sys.executable).with_name("grpcurl"))
        command = [program, "-plaintext", "-unix", "-max-time", str(max_time_s), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def call(self, method: str, **request: object) -> list[Answer]:
        """The answers of a call that must succeed."""
        done = self.run("-d", json.dumps(request), str(self._server.socket), f"arbiter.v1.{method}")
        assert done.returncode == 0, done.stderr
        return list(_objects(done.stdout))

    def fails(self, method: str, **request: object) -> str:
        """What a call says that must fail."""
        done = self.run("-d", json.dumps(request), str(self._server.socket), f"arbiter.v1.{method}")
        assert done.returncode != 0, done.stdout
        return done.stderr


def _objects(text: str) -> list[Answer]:
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        value, place = decoder.raw_decode(text, place)
        found.append(value)
        while place < len(text) and text[place].isspace():
            place += 1
    return found


def test_grpcurl_lists_and_describes_everything_that_is_served(tmp_path: Path) -> None:
    with running_server(tmp_path, *FLAGS) as server:
        grpcurl = Grpcurl(server)
        services = grpcurl.run(str(server.socket), "list").stdout.split()
        assert services == [
            "arbiter.v1.ArbiterService",
            "arbiter.v1.BalanceService",
            "arbiter.v1.StateService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        ]
        for service in services:
            described = grpcurl.run(str(server.socket), "describe", service)
            assert described.returncode == 0, described.stderr
            assert "rpc " in described.stdout
        method = grpcurl.run(str(server.socket), "describe", "arbiter.v1.ArbiterService.Allocate")
        assert "arbiter.v1.ArbiterService.Allocate is a method:" in method.stdout


def test_grpcurl_calls_every_method(tmp_path: Path) -> None:
    with running_server(tmp_path, *FLAGS) as server:
        grpcurl = Grpcurl(server)
        (granted,) = grpcurl.call("ArbiterService/Allocate", **WISH)
        lease = granted["lease"]
        lease_id, fence = lease["lease_id"], lease["fence"]
        (beaten,) = grpcurl.call("ArbiterService/Heartbeat", reports=[{"lease_id": lease_id, "fence": fence}])
        assert beaten["results"][0]["verdict"] == "VERDICT_RENEWED"
        (answered,) = grpcurl.call("ArbiterService/Session", correlation_id="7", allocate=WISH)
        assert answered["correlation_id"] == "7"
        (state,) = grpcurl.call("StateService/GetState")
        assert len(state["leases"]) == 2
        assert "NotFound" in grpcurl.fails("BalanceService/EvaluateBalance", group="nothing")
        split = {"group": "m", "name": "a", "layers": 4}
        (shard,) = grpcurl.call("ArbiterService/Allocate", **WISH, shard=split)
        (found,) = grpcurl.call("BalanceService/EvaluateBalance", group="m")
        assert found["missing"] == ["a"]
        (moved,) = grpcurl.call(
            "BalanceService/ApplyAssignment", group="m", assignment=[{"shard": "a", "layer_begin": 0, "layer_end": 4}]
        )
        assert moved["group"]["moving"] is True
        models = grpcurl.run("-d", "{}", str(server.socket), "arbiter.v1.BalanceService/WatchBalance", max_time_s=1)
        assert '"group": "m"' in models.stdout
        grpcurl.call("ArbiterService/Release", lease_id=shard["lease"]["lease_id"], fence=shard["lease"]["fence"])
        (why,) = grpcurl.call("StateService/Explain", lease_id=lease_id)
        assert why["rule"] == "best"
        watched = grpcurl.run(
            *("-d", '{"after_sequence": 1}', str(server.socket), "arbiter.v1.StateService/WatchEvents"), max_time_s=1
        )
        assert "EVENT_KIND_LEASE_CONFIRMED" in watched.stdout
        assert grpcurl.call("ArbiterService/Release", lease_id=lease_id, fence=fence) == [{}]
        # The lease is over, so its stream tells that and ends by itself.
        (told,) = grpcurl.call("ArbiterService/StreamQuality", lease_ids=[lease_id])
        assert told["ended"] == [{"lease_id": lease_id, "end_reason": "END_REASON_RELEASED"}]
        (plan,) = grpcurl.call(
            "ArbiterService/RequestPreemption",
            device_id="card",
            memory_bytes="1048576",
            priority="PRIORITY_HIGH",
            dry_run=True,
        )
        assert [each["reason"] for each in plan["rejected"]] == ["priority_gap"]
        for method in ("ReserveKv", "CompleteKv"):
            assert "InvalidArgument" in grpcurl.fails(f"ArbiterService/{method}")


def test_grpcurl_shows_every_fault_of_a_request(tmp_path: Path) -> None:
    with running_server(tmp_path, *FLAGS) as server:
        said = Grpcurl(server).fails("ArbiterService/Allocate", memory_bytes="-1", min_quality="NaN")
        assert "InvalidArgument" in said
        for field in ("holder", "workload_type", "memory_bytes", "min_quality"):
            assert field in said
