"""Asks devices off the event loop: a driver that hangs takes a thread with it and nothing else.

The threads are daemons. A process whose driver hangs can therefore still exit; Python would otherwise wait for ever.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from arbiter_sidecar.ports import DeviceProbe
from arbiter_sidecar.types import DeviceId, DeviceSample, Process

#: Seconds a driver may take. A healthy one answers in milliseconds, one that wakes a sleeping card in two seconds.
TIMEOUT_S = 5.0

_T = TypeVar("_T")


class ProbeThread:
    """Runs the calls of each probe in a daemon thread of its own, with a watchdog. Used on one event loop only."""

    __slots__ = ("_askers", "_timeout_s")

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        """
        Args:
            timeout_s: Seconds after which a call is given up; positive.

        Raises:
            ValueError: The timeout is not positive.
        """
        if timeout_s <= 0:
            raise ValueError(f"the probe timeout is {timeout_s:g} s, it must be positive")
        self._timeout_s = timeout_s
        self._askers: dict[DeviceId, _Asker] = {}

    async def sample(
        self, probe: DeviceProbe, holders: Sequence[Process], guests: Sequence[Process] = ()
    ) -> DeviceSample:
        """The probe's sample; concurrent calls for one device take turns.

        Raises:
            TimeoutError: It took longer than the timeout, or an earlier call for this device still hangs. That call's
                result is dropped when it comes, and the device can be asked again.
            OSError: The driver or kernel could not be asked.
        """
        work = functools.partial(probe.sample, tuple(holders), tuple(guests))
        return await self._asker(probe).ask(work, self._timeout_s)

    async def close(self, probe: DeviceProbe) -> None:
        """Closes the probe in its thread and ends the thread. A thread that hangs is left to the end of the process.

        Raises:
            TimeoutError: The driver hangs.
            OSError: The driver could not be let go.
        """
        asker = self._asker(probe)
        try:
            await asker.ask(probe.close, self._timeout_s)
        finally:
            asker.end()
            del self._askers[probe.facts.device_id]

    def _asker(self, probe: DeviceProbe) -> _Asker:
        device_id = probe.facts.device_id
        asker = self._askers.get(device_id)
        if asker is None:
            asker = self._askers[device_id] = _Asker(device_id)
        return asker


class _Asker:
    """One thread that makes one device's calls, one at a time."""

    __slots__ = ("_calls", "_device_id", "_finished", "_since", "_turn")

    def __init__(self, device_id: DeviceId) -> None:
        self._device_id = device_id
        #: Never holds more than one call and the end, because a call is made only when the last one is finished.
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._turn = asyncio.Lock()
        #: Of the last call; its caller may have left long ago.
        self._finished: Future[None] | None = None
        self._since = 0.0
        threading.Thread(target=_serve, args=(self._calls,), name=f"probe-{device_id}", daemon=True).start()

    async def ask(self, work: Callable[[], _T], timeout_s: float) -> _T:
        """The outcome of ``work``, made in the thread; a ``TimeoutError`` when it or an earlier one hangs."""
        self._refuse_if_hung(timeout_s)
        async with self._turn:
            # The last caller may have been cancelled while its call went on.
            await self._until_finished(self._since + timeout_s - time.monotonic())
            result: Future[_T] = Future()
            self._finished = Future()
            self._since = time.monotonic()
            self._calls.put(functools.partial(_settle, work, result, self._finished))
            await self._until_finished(timeout_s)
        return result.result()

    def end(self) -> None:
        """Ends the thread after what it is doing."""
        self._calls.put(None)

    def _refuse_if_hung(self, timeout_s: float) -> None:
        if self._finished is None or self._finished.done():
            return
        if time.monotonic() - self._since >= timeout_s:
            raise self._hung()

    async def _until_finished(self, seconds: float) -> None:
        if self._finished is None or self._finished.done():
            return
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await asyncio.wrap_future(self._finished)
        except TimeoutError:
            raise self._hung() from None

    def _hung(self) -> TimeoutError:
        waited_s = time.monotonic() - self._since
        return TimeoutError(f"device {self._device_id}: the driver has not answered for {waited_s:.1f} s")


def call_within(work: Callable[[], _T], timeout_s: float, what: str) -> _T:
    """The outcome of blocking ``work`` made in a daemon thread, for callers that may block themselves.

    Raises:
        TimeoutError: It took longer than ``timeout_s`` seconds; the message names ``what``.
    """
    result: Future[_T] = Future()
    finished: Future[None] = Future()
    threading.Thread(target=_settle, args=(work, result, finished), name=f"ask-{what}", daemon=True).start()
    try:
        finished.result(timeout_s)
    except TimeoutError:
        raise TimeoutError(f"{what} has not answered for {timeout_s:g} s") from None
    return result.result()


def _serve(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # What it holds must not live until the next one.


def _settle(work: Callable[[], _T], result: Future[_T], finished: Future[None]) -> None:
    if not finished.set_running_or_notify_cancel():
        return  # The caller left before it began.
    try:
        result.set_result(work())
    except BaseException as error:  # Raised again where the call was made.
        result.set_exception(error)
    finished.set_result(None)
