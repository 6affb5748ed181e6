"""Servers with metrics; nothing may have gone wrong inside when the test is over."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.metrics.scraping import Scraped
from tests.rpc.served import Setting

Serve = Callable[[Setting], Awaitable[Scraped]]


@pytest.fixture
async def serve(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Serve]:
    """Makes servers as the test wants them."""
    made: list[Scraped] = []

    async def make(setting: Setting) -> Scraped:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        scraped = Scraped(setting, folder)
        made.append(scraped)
        await scraped.start()
        return scraped

    with capture_logs() as lines:
        yield make
        for scraped in made:
            await scraped.stop()
            scraped.arbiter.check()
    assert not [line for line in lines if line["log_level"] in {"error", "critical"}]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.fixture
async def scraped(serve: Serve) -> Scraped:
    """A server with one device of 24 GiB on which nothing is measured."""
    return await serve(Setting())
