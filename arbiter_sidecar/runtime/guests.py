"""Whose memory is measured although they have no lease: processes of those who ask for one.

A worker may hold its memory before it asks: it has loaded its model first, or it had a lease and keeps what it held.
What it holds must not stand in its own way, and for that it must have been measured before it is judged.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.runtime.sampling import Sampler
from arbiter_sidecar.types import Process

#: Processes without a lease that one sample reads at most; reading one costs about as much as reading a holder.
MAX_GUESTS = 256
#: Seconds that a request waits at most to be measured before it is judged. A sample takes a fraction of that; on a
#: device that does not answer in time it is judged by what is known.
PATIENCE_S = 1.0


class Guests:
    """Who is measured as a guest: whoever waits, and whoever is about to be judged."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._arriving: list[AllocationRequest] = []

    def on(self, device: DeviceBook) -> list[Process]:
        """The guests of a device, each once, those about to be judged first; at most ``MAX_GUESTS``."""
        holders = frozenset(device.processes())
        asking = itertools.chain(self._arriving, (waiter.request for waiter in self._books.queue))
        found = dict.fromkeys(
            process
            for request in asking
            if request.device_id in ("", device.device_id)
            for process in request.processes
            if process not in holders
        )
        return list(itertools.islice(found, MAX_GUESTS))

    def unknown(self, request: AllocationRequest, now: float) -> list[DeviceBook]:
        """The devices on which a sample would tell more of the processes of a request, and could help it."""
        return [
            device
            for device in self._books.devices.values()
            if request.device_id in ("", device.device_id) and not device.frozen(now) and not device.knows(request)
        ]

    async def measure(self, request: AllocationRequest, samplers: Iterable[Sampler]) -> None:
        """Waits until each of the samplers has measured the processes of a request, or for as long as is sensible.

        That is half of what the request itself would wait, where it waits; too many at a time are not measured at all.
        """
        if len(self._arriving) >= MAX_GUESTS:
            return
        patience_s = min(PATIENCE_S, request.wait_s / 2) if request.wait_s > 0.0 else PATIENCE_S
        self._arriving.append(request)
        try:
            await asyncio.wait([sampler.fresh() for sampler in samplers], timeout=patience_s)
        finally:
            self._arriving = [each for each in self._arriving if each is not request]
