"""The README's lines of Python lease real memory from a real arbiter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc

from arbiter.v1 import state_service_pb2, state_service_pb2_grpc
from tests import running
from tests.contracts import checkout

_GUARD_S = 60
#: What the README leaves to the reader.
_YOURS = """
def resize_to(limit: int) -> int:
    print(limit, flush=True)
    return limit

"""


def _leases(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = state_service_pb2_grpc.StateServiceStub(channel)
        return len(stub.GetState(state_service_pb2.GetStateRequest(), timeout=_GUARD_S).leases)


def test_python_of_the_readme_leases_until_interrupted(tmp_path: Path) -> None:
    text = (checkout.ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    with running.running_server(tmp_path, "--devices", "static", "--devices-static", "card=8GiB") as server:
        worker = subprocess.Popen(
            [sys.executable, "-c", _YOURS + program],
            env={**os.environ, "ARBITER_ADDRESS": server.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert worker.stdout is not None
            first = worker.stdout.readline()
            assert first == f"{2 * 1024**3}\n"
            assert _leases(server.address) == 1
            worker.send_signal(signal.SIGINT)
            worker.wait(_GUARD_S)
            assert _leases(server.address) == 0
        finally:
            worker.kill()
            worker.communicate()
