"""The container files hold for real processes: same commands, probe and order of stopping, without containers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from arbiter.v1 import state_service_pb2, state_service_pb2_grpc
from tests import running
from tests.contracts import checkout

_COMPOSE = Path(sys.executable).with_name("docker-compose")
_GUARD_S = 60


def _services() -> dict[str, dict[str, list[str]]]:
    """The services as the real parser reads them."""
    result = subprocess.run(
        [str(_COMPOSE), "-f", "docker-compose.yml", "config", "--format", "json"],
        cwd=checkout.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    services: dict[str, dict[str, list[str]]] = json.loads(result.stdout)["services"]
    return services


def _dockerfile(pattern: str) -> str:
    match = re.search(pattern, (checkout.ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return match.group(1)


class Machine:
    """Runs the commands of containers on this machine, with their folders below another one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs = {
            "arbiter-sidecar": [sys.executable, "-m", "arbiter_sidecar"],
            "python": [sys.executable],
        }
        for name in ("run/arbiter", "var/lib/arbiter", "var/lib/workers"):
            (folder / name).mkdir(parents=True)

    def moved(self, text: str) -> str:
        """The same text with absolute paths below the folder."""
        return re.sub(r"(?<![\w.])/(run|var)/", lambda match: f"{self._folder}/{match.group(1)}/", text)

    def command(self, words: list[str]) -> list[str]:
        """The command as this machine can run it."""
        return [*self._programs[words[0]], *(self.moved(word) for word in words[1:])]

    @property
    def address(self) -> str:
        """Where workers in the image look for the arbiter."""
        return self.moved(_dockerfile(r"ARBITER_ADDRESS=(\S+)"))

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that the image sets."""
        return {**os.environ, "ARBITER_ADDRESS": self.address}


def _holders(address: str) -> set[str]:
    with grpc.insecure_channel(address) as channel:
        state = state_service_pb2_grpc.StateServiceStub(channel).GetState(
            state_service_pb2.GetStateRequest(), timeout=_GUARD_S, wait_for_ready=True
        )
    return {lease.holder for lease in state.leases if lease.applied_revision}


@pytest.mark.slow
def test_compose_file_holds_when_run_as_processes(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    services = _services()
    arbiter = machine.command(json.loads(_dockerfile(r"^ENTRYPOINT (.+)$")) + services["arbiter"]["command"])
    probe = machine.command(json.loads(_dockerfile(r"^HEALTHCHECK .*CMD (\[.+\])$")))
    workers: list[subprocess.Popen[bytes]] = []
    with running.started(arbiter, machine.environment):
        assert (
            subprocess.run(probe, cwd=checkout.ROOT, env=machine.environment, timeout=60, check=False).returncode == 0
        )
        try:
            for name in sorted(services.keys() - {"arbiter"}):
                command = machine.command(services[name]["command"])
                workers.append(subprocess.Popen(command, cwd=checkout.ROOT, env=machine.environment))
            deadline = time.monotonic() + _GUARD_S
            while len(_holders(machine.address)) < len(workers):
                assert time.monotonic() < deadline, "the workers do not get their leases"
                assert all(worker.poll() is None for worker in workers)
                time.sleep(0.2)
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            assert [worker.wait(_GUARD_S) for worker in workers] == [0] * len(workers)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
    probed = subprocess.run(
        probe, cwd=checkout.ROOT, env=machine.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert probed.returncode == 1
    assert machine.moved("/run/arbiter/arbiter.sock") in probed.stderr


def test_image_starts_what_the_file_says() -> None:
    default = json.loads(_dockerfile(r"^CMD (\[.+\])$"))
    composed = _services()["arbiter"]["command"]
    assert default[0] == composed[0] == "serve"
    assert _dockerfile(r"ARBITER_ADDRESS=unix:(\S+)") in default
