"""The stage of the crowd: the worker processes, somebody who weighs them, and somebody who reads the log."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import arbiter_client
from tests.faults.crowd_worker import MIB

if TYPE_CHECKING:
    from arbiter.v1 import state_service_pb2 as pb

#: Seconds after which anything has failed; it takes a tenth.
GUARD_S = 60.0
#: Seconds between two weighings.
PACE_S = 0.1
#: Priority of each worker, from BACKGROUND to CRITICAL.
PRIORITIES = (1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5)
#: Size of each worker's requests in shares of the budget; together three budgets.
SHARES = (0.32, 0.28, 0.19, 0.31, 0.25, 0.22, 0.30, 0.25, 0.20, 0.28, 0.22, 0.18)


def weigh(pids: list[int]) -> int:
    """Σ proportional share of processes, by the kernel; one that is gone weighs nothing."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


@dataclass(frozen=True, slots=True)
class Member:
    """One worker.

    Attributes:
        name: Its name as a holder.
        process: Its process.
        record: What it has written down.
    """

    name: str
    process: subprocess.Popen[str]
    record: Path

    def lines(self) -> list[dict[str, object]]:
        """What it has written down; a last line that it was killed over is left out."""
        text = self.record.read_text() if self.record.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@dataclass(slots=True)
class Scale:
    """Weighs all workers together, without asking the arbiter or them.

    A weighing takes some milliseconds, and what moves from one worker to another meanwhile may be counted twice. One
    that is over ``limit_bytes`` is therefore repeated at once, and the smaller of both counts.

    Attributes:
        pids: Whom to weigh.
        limit_bytes: What they may weigh together.
        peak_bytes: The largest weight.
        count: How many weighings there were.
        failure: Why it ended by itself; empty while it goes on.
    """

    pids: list[int]
    limit_bytes: int
    peak_bytes: int = 0
    count: int = 0
    failure: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def weighing(self) -> Iterator[None]:
        """Weighs until the block ends."""
        thread = threading.Thread(target=self._run, name="scale", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(GUARD_S)

    def _run(self) -> None:
        try:
            while not self._stop.wait(PACE_S):
                weight = weigh(self.pids)
                if weight > self.limit_bytes:
                    weight = min(weight, weigh(self.pids))
                self.peak_bytes = max(self.peak_bytes, weight)
                self.count += 1
        except OSError as error:
            self.failure = str(error)


@contextmanager
def members(folder: Path, address: str, budget_bytes: int, seed: int) -> Iterator[list[Member]]:
    """All workers, ready to begin and not yet begun; whatever is left of them at the end is killed."""
    draw = random.Random(seed)
    crowd: list[Member] = []
    try:
        for place, (priority, share) in enumerate(zip(PRIORITIES, SHARES, strict=True)):
            name, record = f"worker-{place}", folder / f"worker-{place}.jsonl"
            size_mib = int(budget_bytes * share) // MIB
            command = [sys.executable, "-m", "tests.faults.crowd_worker", address, name, str(draw.randrange(1 << 30))]
            command += [str(priority), str(size_mib), str(record)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            crowd.append(Member(name, process, record))
        for member in crowd:
            assert member.process.stdout is not None
            assert member.process.stdout.readline() == "ready\n"
        yield crowd
    finally:
        for member in crowd:
            member.process.kill()
            member.process.communicate()


def begin(crowd: list[Member]) -> None:
    """Lets everybody begin."""
    for member in crowd:
        assert member.process.stdin is not None
        member.process.stdin.write("go\n")
        member.process.stdin.flush()


def finish(crowd: list[Member]) -> dict[str, int]:
    """Lets everybody end; the exit code of each."""
    for member in crowd:
        assert member.process.stdin is not None
        if member.process.poll() is None:
            member.process.stdin.close()
            member.process.stdin = None
    return {member.name: member.process.wait(GUARD_S) for member in crowd}


def freeze_a_holder(
    client: arbiter_client.BlockingClient, crowd: list[Member], least_bytes: int
) -> tuple[Member, pb.GetStateResponse]:
    """Stops the worker that holds the most while it has a living lease; with what was seen of it then.

    One that has just released, or was about to, is woken up again and another one is tried.
    """
    until = time.monotonic() + GUARD_S
    while time.monotonic() < until:
        holding = [lease for lease in client.state().leases if lease.measured_memory_bytes >= least_bytes]
        for lease in sorted(holding, key=lambda each: -each.measured_memory_bytes):
            member = next(each for each in crowd if each.name == lease.holder)
            if member.process.poll() is not None:
                continue
            os.kill(member.process.pid, signal.SIGSTOP)
            # What it had said before it stopped may still be on its way.
            time.sleep(0.2)
            seen = client.state()
            if any(each.lease_id == lease.lease_id for each in seen.leases):
                return member, seen
            os.kill(member.process.pid, signal.SIGCONT)
        time.sleep(0.1)
    raise AssertionError("nobody holds that much for long enough")


class Log:
    """The audit events from the second on, as they come; the first is the device's, before anybody could watch."""

    def __init__(self, client: arbiter_client.BlockingClient) -> None:
        self.events: list[pb.Event] = []
        self._stream = client.watch(after=1)
        self._thread = threading.Thread(target=self._read, name="log", daemon=True)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Reads until the block ends."""
        self._thread.start()
        try:
            yield
        finally:
            self._stream.close()
            self._thread.join(GUARD_S)

    def _read(self) -> None:
        try:
            for event in self._stream:
                self.events.append(event)
        except arbiter_client.errors.Cancelled:
            return


def until(what: str, condition: Callable[[], bool]) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
