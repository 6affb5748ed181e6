"""When a solved target becomes a published quality: what must hold for every sequence of targets."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.thorough import examples

from .publisher_model import PublisherModel
from .watcher import NOISE, assert_published, watch

SETTINGS = examples(80)
HUNDREDTHS = st.integers(min_value=0, max_value=100)
WANDERING = st.sampled_from((60, 62, 70, 71, 90, 99, 100)) | HUNDREDTHS
"""Mostly high, so that climbs last long enough to be disturbed."""


@SETTINGS
@given(
    HUNDREDTHS,
    st.lists(st.tuples(st.integers(min_value=1, max_value=24), WANDERING), min_size=1, max_size=40),
)
def test_every_call_equals_the_integer_model_when_inputs_wander(start: int, calls: list[tuple[int, int]]) -> None:
    """Times are quarters of a second and qualities hundredths, so the model's boundaries are exact."""
    watcher, model, quarters = watch(start / 100), PublisherModel(start), 0
    for pause, target in calls:
        quarters += pause
        wake = model.observe(target, quarters * 250)
        watcher.observe(target / 100, quarters / 4)
        assert watcher.state.quality == pytest.approx(model.quality / 100, abs=NOISE)
        assert watcher.wake == (None if wake is None else pytest.approx(wake / 1000, abs=NOISE))


@SETTINGS
@given(HUNDREDTHS, HUNDREDTHS, st.floats(min_value=0.0, max_value=1e7))
def test_every_wake_brings_progress_when_the_clock_is_any_float(start: int, target: int, now: float) -> None:
    """Asked at the very time it named, it must not name the same time again; sums of floats round."""
    watcher, model = watch(start / 100), PublisherModel(start)
    watcher.observe(target / 100, now)
    model.observe(target, 0)
    while watcher.wake is not None:
        assert model.due is not None
        asked, before = watcher.wake, watcher.state.quality
        watcher.observe(target / 100, asked)
        model.observe(target, model.due)
        assert watcher.state.quality > before
        assert watcher.state.quality == pytest.approx(model.quality / 100, abs=NOISE)
        assert watcher.wake is None or watcher.wake > asked
    assert model.due is None


@SETTINGS
@given(HUNDREDTHS, st.integers(min_value=0, max_value=2**32))
def test_published_never_exceeds_the_target_at_any_time(start: int, seed: int) -> None:
    source, watcher, now = random.Random(seed), watch(start / 100), 0.0
    for _ in range(60):
        now += source.choice((0.001, 0.3, 1.0, 1.7, 5.0, 60.0))
        target = source.randint(0, 100) / 100
        watcher.observe(target, now)
        assert watcher.state.quality <= target
        assert watcher.wake is None or watcher.wake > now


@SETTINGS
@given(HUNDREDTHS, st.integers(min_value=0, max_value=2**32))
def test_raises_are_a_second_apart_when_asked_at_odd_times(start: int, seed: int) -> None:
    source, watcher, now = random.Random(seed), watch(start / 100), 0.0
    for _ in range(80):
        now += source.choice((0.001, 0.1, 0.3, 0.9, 1.1, 7.0))
        watcher.observe(source.choice((0.6, 0.9, 0.95, 1.0)), now)
    last_raise, last_value = -math.inf, start / 100
    for time, value in watcher.published:
        if value > last_value:
            assert time - last_raise >= 1.0 - NOISE
            last_raise = time
        last_value = value


@SETTINGS
@given(
    st.integers(min_value=0, max_value=97),
    st.integers(min_value=1, max_value=60),
    st.lists(st.integers(min_value=1, max_value=9), min_size=2, max_size=2),
    st.integers(min_value=0, max_value=100),
)
def test_flapping_publishes_at_most_once_after_its_first_minimum(
    low: int, swing: int, halves: list[int], above: int
) -> None:
    """Halves are quarters of a second; their sum, the period, is under the five seconds a rise must last."""
    high = min(100, low + swing)
    start = min(100, low + above)
    watcher, now = watch(start / 100), 0.0
    for turn in range(40):
        target = (high if turn % 2 == 0 else low) / 100
        watcher.observe(target, now)
        pause = halves[turn % 2] / 4
        watcher.wait(target, now + pause - 0.01)
        now += pause
    first_minimum = halves[0] / 4
    assert len([time for time, _ in watcher.published if time >= first_minimum]) <= 1
    assert watcher.state.quality <= low / 100 + 0.02


@SETTINGS
@given(HUNDREDTHS, HUNDREDTHS)
def test_constant_input_converges_and_then_is_silent_always(start: int, target: int) -> None:
    watcher = watch(start / 100)
    watcher.observe(target / 100, 0.0)
    watcher.wait(target / 100, 100.0)
    assert watcher.wake is None
    settled = len(watcher.published)
    expected = start if target == start + 1 else target
    assert watcher.state.quality == pytest.approx(expected / 100, abs=NOISE)
    for now in range(101, 130):
        watcher.observe(target / 100, float(now))
    assert len(watcher.published) == settled


@SETTINGS
@given(st.floats(min_value=0.0, max_value=0.9), st.floats(min_value=0.0, max_value=1.0))
def test_constant_input_converges_when_bounds_are_off_the_grid(start: float, height: float) -> None:
    """A lease's own minimum or maximum may be any fraction."""
    target = start + (1.0 - start) * height
    watcher = watch(start)
    watcher.observe(target, 0.0)
    watcher.wait(target, 100.0)
    assert watcher.wake is None
    assert target - 0.02 - NOISE <= watcher.state.quality <= target
    assert all(value <= target for _, value in watcher.published)
    if target > start + 0.021:
        assert watcher.state.quality == target


@pytest.mark.parametrize("late", [0.0, 0.4, 3.0, 100.0, 1e6])
def test_one_step_is_taken_when_the_wake_up_comes_late(late: float) -> None:
    watcher = watch(0.50)
    watcher.observe(0.90, 0.0)
    watcher.observe(0.90, 5.0 + late)
    assert watcher.state.quality == pytest.approx(0.60)
    watcher.observe(0.90, 5.0 + late + 0.5)
    assert watcher.state.quality == pytest.approx(0.60)
    watcher.observe(0.90, 6.0 + late)
    assert watcher.state.quality == pytest.approx(0.67)


def test_same_moment_asked_twice_changes_nothing_when_just_raised() -> None:
    watcher = watch(0.50)
    watcher.observe(0.90, 0.0)
    for _ in range(5):
        watcher.observe(0.90, 5.0)
    assert_published(watcher, [(5.0, 0.60)])
    assert watcher.wake == 6.0


def test_margin_is_exactly_two_hundredths_when_floats_are_not() -> None:
    """0.82 - 0.80 is less than 0.02 in binary."""
    for base in range(99):
        below, at = watch(base / 100), watch(base / 100)
        below.observe((base + 1) / 100, 0.0)
        at.observe((base + 2) / 100, 0.0)
        assert (base, below.wake, at.wake) == (base, None, 5.0)


def test_fresh_rise_asks_to_be_woken_after_the_dwell_when_it_starts_late() -> None:
    watcher = watch(0.50)
    watcher.observe(0.50, 3.0)
    assert watcher.wake is None
    watcher.observe(0.80, 4.25)
    assert watcher.wake == 9.25
