"""Runtimes for tests; their books are proven when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from arbiter_sidecar.runtime import driver
from tests.runtime.driving import Driven, Outside

Drive = Callable[[Outside], Awaitable[Driven]]


@pytest.fixture
async def drive(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Drive]:
    """Makes runtimes as the test wants them, which look at their clock all the time."""
    monkeypatch.setattr(driver, "PULSE_S", 0.001)
    made: list[Driven] = []

    async def make(outside: Outside) -> Driven:
        driven = Driven(outside)
        made.append(driven)
        await driven.runtime.start()
        return driven

    yield make
    for driven in made:
        await driven.runtime.stop()
        driven.arbiter.check()
