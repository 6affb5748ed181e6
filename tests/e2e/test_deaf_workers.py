"""Workers that cannot speak for a while keep their leases; one that is frozen loses it, but not before its time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from arbiter.v1 import state_service_pb2
from tests.e2e.conftest import Start
from tests.e2e.watching import events_of
from tests.running import running_server

if TYPE_CHECKING:
    import subprocess

FLAGS = ("--devices", "static", "--devices-static", "card=1GiB")


def _line(worker: subprocess.Popen[str]) -> list[str]:
    assert worker.stdout is not None
    return worker.stdout.readline().split()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_leases_survive_workers_that_are_busy_or_hold_the_interpreter_lock(tmp_path: Path, start: Start) -> None:
    with running_server(tmp_path, *FLAGS) as server:
        workers = [
            start("stubborn", server.address, "busy", 10),
            start("stubborn", server.address, "locked", 9),
            start("stubborn", server.address, "locked", 60, "process"),
        ]
        for worker in workers:
            assert _line(worker)[0] == "leased"
        for worker in workers:
            assert _line(worker) == ["alive"], worker.args


def test_frozen_worker_loses_its_lease_no_earlier_than_its_time_to_live(tmp_path: Path, start: Start) -> None:
    ttl_s = 3.0
    with (
        running_server(tmp_path, *FLAGS) as server,
        grpc.insecure_channel(server.address) as channel,
        events_of(channel) as events,
    ):
        worker = start("stubborn", server.address, "idle", 0)
        word, lease_id = _line(worker)
        assert word == "leased"
        events.until(state_service_pb2.EVENT_KIND_LEASE_CONFIRMED, lease_id)
        os.kill(worker.pid, signal.SIGSTOP)
        suspect, _ = events.until(state_service_pb2.EVENT_KIND_LEASE_SUSPECT, lease_id)
        ended, _ = events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, lease_id)
        assert ended.fields["reason"] == "EXPIRED"
        # By the server's own times, so that the way of the events does not count: its silence when it became
        # suspect, in milliseconds, and from then to the end.
        since_suspect_s = (ended.time.ToMicroseconds() - suspect.time.ToMicroseconds()) / 1e6
        assert float(suspect.fields["silent_s"]) + since_suspect_s >= ttl_s - 0.01
        os.kill(worker.pid, signal.SIGCONT)
        assert _line(worker)[0] == "lost"
