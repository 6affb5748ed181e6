"""A desk for every test, and a look into its books when the test is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arbiter_sidecar.arbiter import ArbiterConfig
from tests.arbiter.desk import LINEAR, Desk, DeskMaker


@pytest.fixture
def make_desk() -> Iterator[DeskMaker]:
    """Makes desks whose books are proven at the end."""
    made: list[Desk] = []

    def make(config: ArbiterConfig) -> Desk:
        made.append(Desk(config))
        return made[-1]

    yield make
    for desk in made:
        desk.arbiter.check()


@pytest.fixture
def desk(make_desk: DeskMaker) -> Desk:
    """An arbiter without devices, in which bytes are proportional to quality."""
    return make_desk(LINEAR)
