"""Measures the devices again and again: slowly when nothing happens, quickly while bytes are expected to come free."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from arbiter_sidecar.ports import Clock, DeviceProbe
from arbiter_sidecar.types import DeviceSample, Process

#: Measures one device, with its holders and its guests, off the event loop; raises OSError or TimeoutError.
Measure = Callable[[DeviceProbe, Sequence[Process], Sequence[Process]], Awaitable[DeviceSample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRates:
    """How often to measure.

    Attributes:
        idle_s: Seconds between samples when nothing is expected.
        eager_s: Seconds between samples while a request waits, a preemption is open or ended leases drain.
        least_s: Seconds between samples at least, whatever happens: each one reads every holder.
    """

    idle_s: float = 0.5
    eager_s: float = 0.1
    least_s: float = 0.02


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
        guests: Callable[[], Sequence[Process]],
        eager: Callable[[], bool],
        on_sample: Callable[[DeviceSample, float], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._probe = probe
        self._measure = measure
        self._clock = clock
        self._rates = rates
        self._holders = holders
        self._guests = guests
        self._eager = eager
        self._on_sample = on_sample
        self._on_failure = on_failure
        self._hurry = asyncio.Event()
        self._at_once = asyncio.Event()
        self._asked: list[asyncio.Future[None]] = []

    async def once(self) -> None:
        """Takes one sample and passes it on, or the reason why there is none."""
        taken_at = self._clock.now()
        asked, self._asked = self._asked, []
        try:
            sample = await self._measure(self._probe, self._holders(), self._guests())
        except OSError as error:
            # TimeoutError is an OSError: a driver that hangs is a driver that cannot be asked.
            self._on_failure(str(error) or type(error).__name__)
        else:
            self._on_sample(sample, taken_at)
        for each in asked:
            if not each.done():
                each.set_result(None)

    async def run(self) -> None:
        """Samples until cancelled."""
        rates, pause_s = self._rates, min(self._rates.least_s, self._rates.eager_s)
        while True:
            # What happens while a sample is being taken may not be in it, so it is asked for before and not after.
            self._at_once.clear()
            await self.once()
            self._hurry.clear()
            await asyncio.sleep(pause_s)
            if not self._eager() and not self._at_once.is_set() and not await _set(self._hurry, rates.idle_s - pause_s):
                continue
            await _set(self._at_once, rates.eager_s - pause_s)

    def hurry(self) -> None:
        """Something has happened that the next sample should show soon."""
        self._hurry.set()

    def at_once(self) -> None:
        """Somebody says that bytes are free and somebody waits for them: measure now."""
        self._at_once.set()
        self._hurry.set()

    def fresh(self) -> asyncio.Future[None]:
        """Has the device measured at once; done when a sample that began after this call was passed on, or failed."""
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self.at_once()
        return asked


async def _set(event: asyncio.Event, timeout_s: float) -> bool:
    """Waits until the event is set; False when it is not within that time, which may be nothing or less."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
