"""Real worker processes whose interpreter is stuck, frozen or killed; the server lives in this process."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

import arbiter_client
from arbiter_client import beater_process
from tests.client.scripted_server import GUARD_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from tests.client.scripted_server import ScriptedServer


class Worker:
    """A process that holds a lease and answers questions."""

    def __init__(self, server: ScriptedServer, mode: str, ttl: float, max_silence: float = 300.0) -> None:
        command = [sys.executable, "-m", "tests.client.worker", server.address, mode, str(ttl), str(max_silence)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.seen = self.read()

    def read(self) -> dict[str, bool | str | None]:
        assert self.process.stdout is not None
        seen: dict[str, bool | str | None] = json.loads(self.process.stdout.readline())
        return seen

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def look(self) -> dict[str, bool | str | None]:
        self.tell("look")
        return self.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(GUARD_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def beater_of(pid: int) -> int:
    """The beater process that ``pid`` has spawned; its command line appears a moment after it started."""
    found: list[int] = []

    def look() -> bool:
        found[:] = find_beaters(pid)
        return bool(found)

    until(look)
    return found[0]


def find_beaters(pid: int) -> Iterator[int]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = status.with_name("cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            # It ended while we looked.
            continue
        if parent == pid and "arbiter_client.beater" in command:
            yield int(status.parent.name)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def longest_gap(times: list[float]) -> float:
    times = [*times, time.monotonic()]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def test_thread_mode_survives_an_interpreter_lock_held_for_half_the_time_to_live(server: ScriptedServer) -> None:
    with Worker(server, "thread", ttl=4) as worker:
        server.wait(lambda: any(beat.handles for _, beat in server.beats))
        worker.tell("hold 2")
        assert worker.look() == {"lost": False, "end_reason": None, "mode": "thread"}
        assert longest_gap([at for at, beat in server.beats if beat.handles]) < 4
    assert len(server.releases) == 1


@pytest.mark.slow
def test_process_mode_survives_an_interpreter_lock_held_for_longer_than_the_time_to_live(
    server: ScriptedServer,
) -> None:
    with Worker(server, "process", ttl=1.5) as worker:
        server.wait(lambda: len(server.unary_beats) > 0)
        began = time.monotonic()
        worker.tell("hold 5")
        assert worker.look() == {"lost": False, "end_reason": None, "mode": "process"}
        assert time.monotonic() - began >= 5
        assert longest_gap([at for at, _ in server.unary_beats]) < 1.5
        assert all(list(beat.handles) == [1001] for _, beat in server.unary_beats)
    assert len(server.releases) == 1


def test_process_mode_loses_the_lease_by_the_clock_when_the_beater_gets_no_answers(server: ScriptedServer) -> None:
    with Worker(server, "process", ttl=1.0) as worker:
        server.wait(lambda: len(server.unary_beats) > 0)
        answered_at = server.stop_answering()
        until(lambda: worker.look()["lost"] is True)
        assert time.monotonic() - answered_at < GUARD_S
        assert worker.look()["end_reason"] == "EXPIRED"


def test_a_frozen_worker_knows_at_once_on_waking(server: ScriptedServer) -> None:
    with Worker(server, "thread", ttl=0.6) as worker:
        server.wait(lambda: any(beat.handles for _, beat in server.beats))
        os.kill(worker.process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        worker.tell("look")
        until(lambda: time.monotonic() > stopped + 1.2)
        os.kill(worker.process.pid, signal.SIGCONT)
        assert worker.read() == {"lost": True, "end_reason": "EXPIRED", "mode": "thread"}


def test_the_beater_stops_when_its_parent_is_frozen_for_too_long(server: ScriptedServer) -> None:
    with Worker(server, "process", ttl=0.9, max_silence=1.0) as worker:
        server.wait(lambda: len(server.unary_beats) > 0)
        os.kill(worker.process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: time.monotonic() - server.unary_beats[-1][0] > 1.5)
        assert server.unary_beats[-1][0] - stopped < GUARD_S
        os.kill(worker.process.pid, signal.SIGCONT)
        assert worker.look()["lost"] is True


def test_the_beater_ends_with_its_parent(server: ScriptedServer) -> None:
    with Worker(server, "process", ttl=3) as worker:
        beater = beater_of(worker.process.pid)
        server.wait(lambda: len(server.unary_beats) > 0)
        worker.process.kill()
        until(lambda: not is_running(beater))


def test_heartbeats_come_from_a_thread_when_the_beater_dies(server: ScriptedServer) -> None:
    with Worker(server, "process", ttl=3) as worker:
        beater = beater_of(worker.process.pid)
        os.kill(beater, signal.SIGKILL)
        until(lambda: worker.look()["mode"] == "thread")
        server.wait(lambda: any(beat.handles for _, beat in server.beats))
        assert worker.look()["lost"] is False


def test_closing_a_client_in_process_mode_ends_the_beater(server: ScriptedServer) -> None:
    client = arbiter_client.connect_blocking(server.address, heartbeat_mode="process")
    beater = beater_of(os.getpid())
    with client.lease("w", memory=1, workload_type="llm", ttl=3) as lease:
        server.wait(lambda: len(server.unary_beats) > 0)
        server.push(lease.lease_id, 0.5)
        until(lambda: lease.quality == 0.5)
        lease.applied(lease.directive)
        server.wait(lambda: len(server.reports()) == 1)
    client.close()
    assert not is_running(beater)
    assert len(server.releases) == 1


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_program_that_closes_nothing_still_ends(server: ScriptedServer, mode: str) -> None:
    program = (
        "import sys, arbiter_client\n"
        f"client = arbiter_client.connect_blocking({server.address!r}, heartbeat_mode={mode!r})\n"
        "lease = client.lease('w', memory=1, workload_type='llm').acquire()\n"
        "print(lease.lease_id)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=GUARD_S, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("lease-1\n", "", 0)


def test_max_silence_has_bounds() -> None:
    with pytest.raises(ValueError, match="max_silence"):
        beater_process.BeaterProcess("unix:/x", 601.0)
