from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import probing, static
from arbiter_sidecar.types import GIB, DeviceFacts, DeviceSample, Process
from tests.adapters.child import GUARD_S


class Slow:
    """A probe whose next call waits until it is let go."""

    def __init__(self, name: str) -> None:
        self._static = static.StaticProbe(name=name, size_bytes=GIB)
        self.go = threading.Event()
        self.entered = threading.Event()
        self.calls = 0
        self.threads: set[str] = set()
        self.closed = False
        self.failure: OSError | None = None

    @property
    def facts(self) -> DeviceFacts:
        return self._static.facts

    def sample(self, holders: Sequence[Process], guests: Sequence[Process] = ()) -> DeviceSample:
        del guests
        self.calls += 1
        number = self.calls
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.go.wait(GUARD_S)
        if self.failure is not None:
            raise self.failure
        return DeviceSample(self.facts.device_id, used_bytes=number, held_bytes=dict.fromkeys(holders))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def slow() -> Slow:
    probe = Slow("slow")
    probe.go.set()
    return probe


async def _entered(probe: Slow) -> None:
    async with asyncio.timeout(GUARD_S):
        while not probe.entered.is_set():
            await asyncio.sleep(0.001)


async def _answers(thread: probing.ProbeThread, probe: Slow) -> DeviceSample:
    """The next sample, once the thread is free again."""
    async with asyncio.timeout(GUARD_S):
        while True:
            with contextlib.suppress(TimeoutError):
                return await thread.sample(probe, [])
            await asyncio.sleep(0.001)


async def test_sample_is_made_in_a_thread_of_the_device(slow: Slow) -> None:
    thread = probing.ProbeThread()
    first = await thread.sample(slow, [Process(1, 2)])
    second = await thread.sample(slow, ())
    assert (first.used_bytes, second.used_bytes) == (1, 2)
    assert first.held_bytes == {Process(1, 2): None}
    assert slow.threads == {"probe-slow"}
    await thread.close(slow)
    assert slow.closed


async def test_failure_is_raised_where_the_sample_was_asked_for(slow: Slow) -> None:
    thread = probing.ProbeThread()
    slow.failure = OSError("no answer from the bus")
    with pytest.raises(OSError, match="no answer from the bus"):
        await thread.sample(slow, [])
    slow.failure = TimeoutError("the probe's own")
    with pytest.raises(TimeoutError, match="the probe's own"):
        await thread.sample(slow, [])
    slow.failure = None
    assert (await thread.sample(slow, [])).used_bytes == 3


async def test_hung_call_times_out_and_the_loop_runs_on(slow: Slow) -> None:
    thread = probing.ProbeThread(timeout_s=0.05)
    slow.go.clear()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    with pytest.raises(TimeoutError, match="device slow: the driver has not answered for"):
        await thread.sample(slow, [])
    ticking.cancel()
    assert ticks > 1
    slow.go.set()


async def test_device_fails_at_once_while_its_call_hangs_and_recovers(slow: Slow) -> None:
    thread = probing.ProbeThread(timeout_s=0.5)
    healthy = Slow("healthy")
    healthy.go.set()
    slow.go.clear()
    with pytest.raises(TimeoutError):
        await thread.sample(slow, [])
    for _ in range(100):
        with pytest.raises(TimeoutError, match="has not answered"):
            await thread.sample(slow, [])
    assert slow.calls == 1
    assert (await thread.sample(healthy, [])).used_bytes == 1
    slow.go.set()
    assert (await _answers(thread, slow)).used_bytes == 2


async def test_calls_for_one_device_take_turns(slow: Slow) -> None:
    thread = probing.ProbeThread()
    slow.go.clear()
    asked = [asyncio.create_task(thread.sample(slow, [])) for _ in range(3)]
    await _entered(slow)
    assert slow.calls == 1
    slow.go.set()
    assert [(await sample).used_bytes for sample in asked] == [1, 2, 3]


async def test_next_call_waits_for_one_whose_caller_was_cancelled(slow: Slow) -> None:
    thread = probing.ProbeThread()
    slow.go.clear()
    first = asyncio.create_task(thread.sample(slow, []))
    await _entered(slow)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(thread.sample(slow, []))
    await asyncio.sleep(0)
    slow.go.set()
    assert (await second).used_bytes == 2


async def test_next_call_fails_when_the_one_whose_caller_was_cancelled_hangs(slow: Slow) -> None:
    thread = probing.ProbeThread(timeout_s=0.05)
    slow.go.clear()
    first = asyncio.create_task(thread.sample(slow, []))
    await _entered(slow)
    first.cancel()
    with pytest.raises(TimeoutError):
        await thread.sample(slow, [])
    assert slow.calls == 1
    slow.go.set()


async def test_close_gives_up_when_the_driver_hangs(slow: Slow) -> None:
    thread = probing.ProbeThread(timeout_s=0.05)
    slow.go.clear()
    with pytest.raises(TimeoutError):
        await thread.sample(slow, [])
    with pytest.raises(TimeoutError):
        await thread.close(slow)
    assert not slow.closed
    slow.go.set()


def test_timeout_is_refused_when_it_is_not_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        probing.ProbeThread(timeout_s=0)


def test_blocking_call_is_given_up_in_time() -> None:
    go = threading.Event()
    with pytest.raises(TimeoutError, match=r"NVIDIA has not answered for 0\.05 s"):
        probing.call_within(go.wait, 0.05, "NVIDIA")
    go.set()
    assert probing.call_within(go.wait, GUARD_S, "NVIDIA")


_HANG_AND_EXIT = """
import asyncio, threading
from arbiter_sidecar.adapters import probing, static
from arbiter_sidecar.types import GIB

class Hung(static.StaticProbe):
    def sample(self, holders, guests):
        threading.Event().wait()

async def main():
    try:
        await probing.ProbeThread(timeout_s=0.05).sample(Hung(name="hung", size_bytes=GIB), [])
    except TimeoutError as error:
        print(error)

asyncio.run(main())
"""


def test_process_ends_although_a_driver_hangs(repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _HANG_AND_EXIT],
        env={"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "device hung: the driver has not answered" in result.stdout
    assert result.stderr == ""
