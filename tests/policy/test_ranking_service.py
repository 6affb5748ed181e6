"""The waiting line in service: worked sequences, and that nobody waits for ever."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.types import Priority
from tests.thorough import examples

from .line_oracle import Job, Service

BACKGROUND, LOW, NORMAL, HIGH, CRITICAL = Priority
FOREVER = 1e6


def filled(*, backfill: int) -> tuple[Service, Job, Job]:
    """Capacity 20 with 16 granted, of which a request for 2 and one for 5 can be ended by time; X waits for 6."""
    service = Service(capacity=20, backfill=backfill)
    service.submit(NORMAL, 9, FOREVER)
    service.submit(NORMAL, 2, 10.0)
    service.submit(NORMAL, 5, 20.0)
    return service, service.submit(NORMAL, 6, FOREVER), service.submit(NORMAL, 3, FOREVER)


def test_line_is_strict_when_no_pass_is_allowed() -> None:
    service, x, y = filled(backfill=0)
    assert (x.granted_at, y.granted_at) == (None, None)
    service.advance(10.0)
    assert (x.granted_at, y.granted_at) == (10.0, None)


def test_one_may_pass_and_the_next_waits_when_one_pass_is_allowed() -> None:
    service, x, y = filled(backfill=1)
    z = service.submit(NORMAL, 1, FOREVER)
    assert (y.granted_at, x.passed, service.free) == (0.0, 1, 1)
    assert z.granted_at is None
    service.advance(10.0)
    assert (x.granted_at, z.granted_at, service.free) == (None, None, 3)
    service.advance(20.0)
    assert x.granted_at == 20.0
    assert z.granted_at == 20.0


def test_nothing_is_left_for_the_passed_over_when_the_head_takes_all() -> None:
    service = Service(capacity=20, backfill=1)
    service.submit(NORMAL, 11, FOREVER)
    service.submit(NORMAL, 5, 5.0)
    x, y, z = (service.submit(NORMAL, size, FOREVER) for size in (6, 3, 1))
    assert (y.granted_at, z.granted_at) == (0.0, None)
    service.advance(5.0)
    assert (x.granted_at, z.granted_at, service.free) == (5.0, None, 0)


def test_high_is_granted_first_when_it_arrives_while_a_normal_waits() -> None:
    service = Service(capacity=20)
    service.submit(NORMAL, 6, 10.0)
    service.submit(NORMAL, 14, FOREVER)
    x = service.submit(NORMAL, 6, FOREVER)
    service.advance(1.0)
    h = service.submit(HIGH, 6, FOREVER)
    service.advance(10.0)
    assert (h.granted_at, x.granted_at) == (10.0, None)


def test_background_is_granted_when_better_ones_never_stop_coming() -> None:
    """A HIGH every second, each for two of four places, so that the whole card is never free by itself."""
    service = Service(capacity=4)
    service.submit(HIGH, 2, 2.0)
    patient = service.submit(BACKGROUND, 4, 1.0)
    for second in range(1, 200):
        service.advance(float(second))
        service.submit(HIGH, 2, 2.0)
    assert patient.granted_at is not None
    # Three spans to count as HIGH, then those who came before it, whoever may still pass, and what then runs.
    assert patient.granted_at <= 90.0 + 2.0 * (service.backfill + 4)


def test_aged_request_is_granted_when_its_tier_rises_above_a_strict_head() -> None:
    """The line is to be looked at when somebody ages, not only when memory comes free."""
    service = Service(capacity=10, backfill=0)
    service.submit(HIGH, 8, FOREVER)
    service.submit(HIGH, 2, 5.0)
    patient = service.submit(LOW, 2, FOREVER)
    service.advance(1.0)
    head = service.submit(NORMAL, 4, FOREVER)
    service.advance(29.0)
    assert (head.granted_at, patient.granted_at, service.free) == (None, None, 2)
    service.advance(30.0)
    assert (head.granted_at, patient.granted_at) == (None, 30.0)


@examples(40)
@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=0, max_value=9))
def test_nobody_starves_when_service_times_are_finite(seed: int, backfill: int) -> None:
    """Arrivals of every tier for two minutes, CRITICAL ones for half a minute: each request is granted."""
    source = random.Random(seed)
    service = Service(capacity=source.randint(4, 40), backfill=backfill)
    moment = 0.0
    for _ in range(40):
        moment += source.randint(0, 24) / 8
        service.advance(moment)
        tiers = list(Priority) if moment < 30.0 else list(Priority)[:4]
        service.submit(source.choice(tiers), source.randint(1, service.capacity), source.randint(4, 160) / 8)
    service.advance(moment + 10_000.0)
    assert not service.line
    for job in service.jobs:
        assert job.granted_at is not None
        assert job.passed <= backfill
