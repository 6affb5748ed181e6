"""Servers and clients that every test of the client package may need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import arbiter_client
from tests.client.scripted_server import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from arbiter_client import BlockingClient


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    scripted = ScriptedServer(tmp_path / "s.sock")
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[BlockingClient]:
    with arbiter_client.connect_blocking(server.address) as connected:
        yield connected
