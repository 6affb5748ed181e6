"""Servers for tests; their books are proven when the test is over, and nothing may have gone wrong inside."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.rpc.served import Serve, Served, Setting


@pytest.fixture
async def serve(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Serve]:
    """Makes servers as the test wants them."""
    made: list[Served] = []

    async def make(setting: Setting) -> Served:
        served = Served(setting, tmp_path / f"arbiter-{len(made)}.sock")
        made.append(served)
        await served.start()
        return served

    with capture_logs() as lines:
        yield make
        for served in made:
            await served.stop()
            served.arbiter.check()
    assert not [line for line in lines if line["log_level"] in {"error", "critical"}]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A server with one device of 24 GiB on which nothing is measured."""
    return await serve(Setting())
