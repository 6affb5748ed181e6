"""When a device is measured: slowly, quickly while something is expected, at once when bytes are said to be free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from arbiter_sidecar.ports import DeviceProbe
from arbiter_sidecar.runtime import Sampler, SamplingRates
from arbiter_sidecar.types import DeviceSample, Process
from tests.runtime.fakes import GUARD_S, FakeClock, FakeProbe, facts, until

#: Longer than any test lasts: a sample that comes all the same was asked for.
NEVER_S = 600.0


class Measuring:
    """A driver that answers when the test lets it."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.failing = False
        self.free = asyncio.Event()
        self.free.set()

    async def measure(self, probe: DeviceProbe, holders: Sequence[Process], guests: Sequence[Process]) -> DeviceSample:
        """One sample."""
        self.begun += 1
        await self.free.wait()
        self.ended += 1
        if self.failing:
            raise OSError("no answer")
        return probe.sample(holders, guests)


@asynccontextmanager
async def sampling(measuring: Measuring, rates: SamplingRates, *, eager: bool = False) -> AsyncIterator[Sampler]:
    """Samples until the block ends; the first sample has been taken when it begins."""
    sampler = Sampler(
        FakeProbe(facts()),
        measure=measuring.measure,
        clock=FakeClock(),
        rates=rates,
        holders=tuple,
        guests=tuple,
        eager=lambda: eager,
        on_sample=lambda sample, taken_at: None,
        on_failure=lambda detail: None,
    )
    task = asyncio.create_task(sampler.run())
    try:
        await until(lambda: measuring.ended == 1)
        yield sampler
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=GUARD_S)


async def test_sample_comes_at_once_when_somebody_says_that_bytes_are_free() -> None:
    measuring = Measuring()
    for eager in (False, True):
        measuring.ended = 0
        async with sampling(measuring, SamplingRates(idle_s=NEVER_S, eager_s=NEVER_S), eager=eager) as sampler:
            sampler.at_once()
            await until(lambda: measuring.ended == 2)


async def test_another_sample_follows_when_it_is_said_while_one_is_being_taken() -> None:
    measuring = Measuring()
    async with sampling(measuring, SamplingRates(idle_s=NEVER_S, eager_s=NEVER_S)) as sampler:
        measuring.free.clear()
        sampler.at_once()
        await until(lambda: measuring.begun == 2)
        # The one under way may have looked before the bytes went.
        sampler.at_once()
        measuring.free.set()
        await until(lambda: measuring.ended == 3)


async def test_samples_keep_their_distance_when_it_is_said_again_and_again() -> None:
    measuring, least_s = Measuring(), 0.05
    async with sampling(measuring, SamplingRates(idle_s=NEVER_S, eager_s=NEVER_S, least_s=least_s)) as sampler:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() - begun < 10 * least_s:
            sampler.at_once()
            await asyncio.sleep(0.001)
        assert 2 <= measuring.begun <= 2 + (loop.time() - begun) / least_s


async def test_hurry_brings_the_quick_samples_forward_and_no_sample_at_once() -> None:
    measuring, eager_s = Measuring(), 0.2
    async with sampling(measuring, SamplingRates(idle_s=NEVER_S, eager_s=eager_s)) as sampler:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        sampler.hurry()
        await until(lambda: measuring.ended == 2)
        assert loop.time() - begun >= eager_s / 2


async def test_fresh_sample_is_one_that_began_after_it_was_asked_for() -> None:
    measuring = Measuring()
    async with sampling(measuring, SamplingRates(idle_s=NEVER_S, eager_s=NEVER_S)) as sampler:
        measuring.free.clear()
        sampler.at_once()
        await until(lambda: measuring.begun == 2)
        fresh, given_up = sampler.fresh(), sampler.fresh()
        given_up.cancel()
        measuring.free.set()
        await asyncio.wait_for(fresh, GUARD_S)
        assert measuring.ended == 3


async def test_fresh_sample_that_fails_is_answered_too() -> None:
    measuring = Measuring()
    async with sampling(measuring, SamplingRates(idle_s=NEVER_S, eager_s=NEVER_S)) as sampler:
        measuring.failing = True
        await asyncio.wait_for(sampler.fresh(), GUARD_S)
        assert measuring.ended == 2
