"""Measures the devices again and again: slowly when nothing happens, quickly while bytes are expected to come free."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from arbiter_sidecar.ports import Clock, DeviceProbe
from arbiter_sidecar.types import DeviceSample, Process

#: Measures one device off the event loop; raises OSError or TimeoutError.
Measure = Callable[[DeviceProbe, Sequence[Process]], Awaitable[DeviceSample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRates:
    """How often to measure.

    Attributes:
        idle_s: Seconds between samples when nothing is expected.
        eager_s: Seconds between samples while a request waits or ended leases drain.
    """

    idle_s: float = 0.5
    eager_s: float = 0.1


class Sampler:
    """Samples one device for as long as its task runs."""

    def __init__(
        self,
        probe: DeviceProbe,
        *,
        measure: Measure,
        clock: Clock,
        rates: SamplingRates,
        holders: Callable[[], Sequence[Process]],
        eager: Callable[[], bool],
        on_sample: Callable[[DeviceSample, float], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._probe = probe
        self._measure = measure
        self._clock = clock
        self._rates = rates
        self._holders = holders
        self._eager = eager
        self._on_sample = on_sample
        self._on_failure = on_failure
        self._hurry = asyncio.Event()

    async def once(self) -> None:
        """Takes one sample and passes it on, or the reason why there is none."""
        taken_at = self._clock.now()
        try:
            sample = await self._measure(self._probe, self._holders())
        except OSError as error:
            # TimeoutError is an OSError: a driver that hangs is a driver that cannot be asked.
            self._on_failure(str(error) or type(error).__name__)
        else:
            self._on_sample(sample, taken_at)

    async def run(self) -> None:
        """Samples until cancelled."""
        while True:
            await self.once()
            self._hurry.clear()
            if not self._eager():
                try:
                    async with asyncio.timeout(self._rates.idle_s):
                        await self._hurry.wait()
                except TimeoutError:
                    continue
            await asyncio.sleep(self._rates.eager_s)

    def hurry(self) -> None:
        """Something has happened that the next sample should show soon."""
        self._hurry.set()
