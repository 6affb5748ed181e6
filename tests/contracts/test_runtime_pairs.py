"""Stubs and client work beside old and new releases of grpcio and protobuf, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests import running
from tests.contracts import checkout

_PAIRS = checkout.ROOT / ".build/pairs"

_IMPORTS = """
import sys, warnings
import google.protobuf, grpc
from arbiter.v1 import arbiter_service_pb2, arbiter_service_pb2_grpc, error_reason_pb2, lease_pb2
from arbiter.v1 import state_service_pb2, state_service_pb2_grpc
import arbiter_client
request = arbiter_service_pb2.AllocateRequest(holder="worker", memory_bytes=2**40)
assert arbiter_service_pb2.AllocateRequest.FromString(request.SerializeToString()) == request
assert "structlog" not in sys.modules and "grpc_status" not in sys.modules and "google.rpc" not in sys.modules
print(grpc.__version__, google.protobuf.__version__)
"""


def environment(pair: str) -> dict[str, str]:
    """Variables under which Python finds this release of grpcio and protobuf before the pinned one."""
    folder = _PAIRS / pair
    assert folder.is_dir(), f"{folder} is not there: make setup installs it"
    path = os.pathsep.join(str(entry) for entry in (folder, checkout.ROOT, checkout.ROOT / "clients/python/src"))
    return {**os.environ, "PYTHONPATH": path}


def versions(pair: str) -> dict[str, str]:
    """What was installed for the pair, by name."""
    return {found.name: found.version for found in distributions(path=[str(_PAIRS / pair)])}


@pytest.mark.parametrize("pair", ["oldest", "between", "newest"])
def test_stubs_and_client_import(pair: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", _IMPORTS],
        env=environment(pair),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    installed = versions(pair)
    assert result.stdout.split() == [installed["grpcio"], installed["protobuf"]]


def _live_once(address: str, runtime: dict[str, str]) -> list[str]:
    """Runs a worker's life in a process of its own; the releases it ran with."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.contracts.pair_client", address],
        cwd=checkout.ROOT,
        env=runtime,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("pair", ["oldest", "between", "newest"])
def test_client_lives_a_session(pair: str, tmp_path: Path) -> None:
    with running.started(running.serve_command(tmp_path)):
        used = _live_once(f"unix:{tmp_path}/arbiter.sock", environment(pair))
    installed = versions(pair)
    assert used == [installed["grpcio"], installed["protobuf"]]


@pytest.mark.parametrize("pair", ["between", "newest"])
def test_server_serves_a_session(pair: str, tmp_path: Path) -> None:
    with running.started(running.serve_command(tmp_path), environment(pair)):
        _live_once(f"unix:{tmp_path}/arbiter.sock", dict(os.environ))
        health = [sys.executable, "-m", "arbiter_sidecar", "health", "--address", f"unix:{tmp_path}/arbiter.sock"]
        assert subprocess.run(health, cwd=checkout.ROOT, env=environment(pair), timeout=60, check=False).returncode == 0
