"""A worker obeys before it confirms, grows only when told to, and leaves in an orderly way."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from arbiter_client.testing import InMemoryArbiter
from examples import memory, worker_loop
from examples.journal import Journal
from examples.rungs import MIB, SizedRung
from examples.stop import Stop, StopAsked

#: A guard against hanging, ten times what a slow machine needs.
PATIENCE_S = 30.0
#: For what the test process itself allocates meanwhile.
MARGIN_BYTES = 32 * MIB
SIZES_MIB = (192, 96, 8)


class Holding:
    """A workload that holds as many bytes as its rung says and remembers what was asked of it."""

    def __init__(self, *, leaks: bool = False) -> None:
        base = memory.resident_bytes() + MARGIN_BYTES
        self.rungs: Sequence[SizedRung] = tuple(
            SizedRung(name=f"{mib}", memory_bytes=base + mib * MIB) for mib in SIZES_MIB
        )
        self.calls: list[str] = []
        self.held = bytearray()
        self.leaked: list[bytearray] = []
        self.leaks = leaks

    def resize(self, rung: SizedRung, quality: float) -> None:
        self.close()
        self.held = bytearray(int(rung.name) * MIB)
        # Written, so that the pages are really there.
        self.held[::4096] = b"x" * len(self.held[::4096])
        self.calls.append(rung.name)

    def work(self, interrupted: Callable[[], bool]) -> None:
        self.calls.append("work")

    def close(self) -> None:
        if self.leaks:
            self.leaked.append(self.held)
        self.held = bytearray()


class Running:
    """A worker on a thread, with an arbiter in memory."""

    def __init__(self, workload: Holding, memory_bytes: int | None = None) -> None:
        self.arbiter = InMemoryArbiter("8GiB")
        self.out = io.StringIO()
        self.stop = Stop()
        self.exit_code: int | None = None
        self.terms = worker_loop.Terms(
            name="worker",
            workload_type="other",
            priority="normal",
            min_quality=0.4,
            memory_bytes=memory_bytes,
            address=None,
        )
        self.workload = workload
        self._thread = threading.Thread(target=self._run, name="worker")

    def _run(self) -> None:
        self.exit_code = worker_loop.run(
            self.workload,
            self.terms,
            Journal(self.out, "worker"),
            self.stop,
            lambda address: self.arbiter.blocking_client(),
        )

    def start(self) -> Running:
        self._thread.start()
        return self

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.out.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]

    def wait_for(self, name: str, count: int = 1) -> dict[str, object]:
        deadline = time.monotonic() + PATIENCE_S
        while len(self.events(name)) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.events(name)[count - 1]

    def lease_id(self) -> str:
        return str(self.wait_for("leased")["lease_id"])

    def end(self) -> int | None:
        self.stop.asked = True
        self._thread.join(PATIENCE_S)
        self.arbiter.close()
        return self.exit_code

    def join(self) -> int | None:
        self._thread.join(PATIENCE_S)
        return self.exit_code


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running(Holding()).start()
    yield running
    running.end()


def test_worker_confirms_after_the_bytes_are_gone_when_told_to_shrink(running: Running) -> None:
    lease_id = running.lease_id()
    running.wait_for("rung")
    before = memory.proportional_bytes()
    limit = running.workload.rungs[1].memory_bytes
    revision = running.arbiter.push(lease_id, quality=0.75, memory_limit_bytes=limit)
    said = running.arbiter.applied(lease_id, revision=revision, timeout=PATIENCE_S)

    assert said.outcome == "APPLIED"
    assert said.used_memory_bytes is not None
    assert said.used_memory_bytes <= limit
    assert before - said.used_memory_bytes > 64 * MIB
    assert running.workload.calls[0] == "192"
    assert "96" in running.workload.calls


def test_worker_produces_something_when_it_grows_step_by_step(running: Running) -> None:
    lease_id = running.lease_id()
    rungs = running.workload.rungs
    revision = 0
    for quality, rung in ((0.4, rungs[2]), (0.75, rungs[1]), (1.0, rungs[0])):
        revision = running.arbiter.push(lease_id, quality=quality, memory_limit_bytes=rung.memory_bytes)
        running.arbiter.applied(lease_id, revision=revision, timeout=PATIENCE_S)
    calls = running.workload.calls

    shrunk, half, full = (calls.index(name, calls.index("8")) for name in ("8", "96", "192"))
    assert "work" in calls[shrunk:half]
    assert "work" in calls[half:full]


def test_worker_releases_when_asked_to_stop(running: Running) -> None:
    running.lease_id()
    running.wait_for("rung")

    assert running.end() == worker_loop.EXIT_DONE
    assert running.events("released")
    assert running.arbiter.state().leases == []
    assert len(running.workload.held) == 0


def test_worker_ends_with_its_own_exit_code_when_the_lease_is_lost(running: Running) -> None:
    running.wait_for("rung")
    running.arbiter.end(running.lease_id(), "REVOKED")

    assert running.join() == worker_loop.EXIT_LEASE_LOST
    assert "REVOKED" in str(running.events("lease_lost")[0]["detail"])
    assert len(running.workload.held) == 0


def test_worker_refuses_when_the_bytes_do_not_go() -> None:
    running = Running(Holding(leaks=True)).start()
    lease_id = running.lease_id()
    running.wait_for("rung")
    revision = running.arbiter.push(lease_id, quality=0.4, memory_limit_bytes=running.workload.rungs[2].memory_bytes)
    said = running.arbiter.applied(lease_id, revision=revision, timeout=PATIENCE_S)
    running.end()

    assert said.outcome == "REFUSED"
    assert said.achievable_quality == 1.0


def test_worker_gets_as_small_as_it_can_and_refuses_when_the_limit_is_below_its_smallest_size() -> None:
    running = Running(Holding()).start()
    lease_id = running.lease_id()
    running.wait_for("rung")
    revision = running.arbiter.push(lease_id, quality=0.4, memory_limit_bytes=MIB)
    said = running.arbiter.applied(lease_id, revision=revision, timeout=PATIENCE_S)
    running.end()

    assert said.outcome == "REFUSED"
    assert said.achievable_quality == pytest.approx(0.4)
    assert "8" in running.workload.calls


def test_worker_fails_with_the_reason_when_refused() -> None:
    running = Running(Holding())
    running.arbiter.refuse_next("INSUFFICIENT_MEMORY")
    running.start()

    assert running.join() == worker_loop.EXIT_FAILED
    assert "InsufficientMemory" in str(running.events("failed")[0]["detail"])


def test_worker_leases_less_when_it_may_not_have_its_full_size() -> None:
    workload = Holding()
    running = Running(workload, memory_bytes=workload.rungs[1].memory_bytes).start()
    running.wait_for("rung")
    lease = running.arbiter.state().leases[0]
    running.end()

    assert lease.full_memory_bytes == workload.rungs[1].memory_bytes
    assert lease.min_memory_bytes == workload.rungs[2].memory_bytes
    assert "192" not in workload.calls


def test_worker_fails_when_it_may_not_even_have_its_smallest_size() -> None:
    running = Running(Holding(), memory_bytes=MIB).start()

    assert running.join() == worker_loop.EXIT_FAILED
    assert "smallest size" in str(running.events("failed")[0]["detail"])


def test_stop_raises_when_asked_while_waiting_and_only_remembers_otherwise() -> None:
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop = Stop()
    try:
        stop.install()
        with stop.interrupting() as stack:
            stack.close()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked
        stop.asked = False
        with pytest.raises(StopAsked), stop.interrupting():
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopAsked), stop.interrupting():
            raise AssertionError("not reached")
    finally:
        for number, reaction in former.items():
            signal.signal(number, reaction)
