"""When a solved target becomes a published quality: worked sequences and what must hold for every sequence."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbiter_sidecar.policy import publication

from .publisher_model import PublisherModel

SETTINGS = settings(max_examples=80, deadline=None, derandomize=True)
HUNDREDTHS = st.integers(min_value=0, max_value=100)
NOISE = 1e-9


@dataclass(slots=True)
class Watcher:
    """Feeds one publication and keeps what it published and when."""

    state: publication.Published
    wake: float | None = None
    published: list[tuple[float, float]] = field(default_factory=list)

    def observe(self, target: float, now: float) -> None:
        """One call with what holds from ``now`` on."""
        before = self.state.quality
        self.state, self.wake = publication.step(self.state, target, now)
        if self.state.quality != before:
            self.published.append((now, self.state.quality))

    def wait(self, target: float, until: float) -> None:
        """Calls at every wake time up to and including ``until``; each must bring the publication forward."""
        calls = 0
        while self.wake is not None and self.wake <= until:
            calls += 1
            assert calls <= 200, "does not come to rest"
            self.observe(target, self.wake)


def watch(quality: float) -> Watcher:
    return Watcher(publication.Published(quality))


def assert_published(watcher: Watcher, expected: list[tuple[float, float]]) -> None:
    """Exactly these changes at exactly these times; qualities up to float noise."""
    assert [time for time, _ in watcher.published] == [time for time, _ in expected]
    assert [value for _, value in watcher.published] == pytest.approx([value for _, value in expected], abs=NOISE)


CLIMB = [(5.0, 0.60), (6.0, 0.67), (7.0, 0.72), (8.0, 0.77), (9.0, 0.82), (10.0, 0.87), (11.0, 0.90)]

SEQUENCES = [
    pytest.param(0.50, [0.90] * 20, CLIMB, id="climb-from-half"),
    pytest.param(0.90, [0.50] * 20, [(0, 0.50)], id="fall-at-once"),
    pytest.param(0.75, [0.90, 0.90, 0.60, 0.60] * 6, [(2, 0.60)], id="flapping-publishes-its-minimum-once"),
    pytest.param(0.70, [0.70, 0.71, 0.71, 0.70] * 6, [], id="noise-under-the-margin"),
    pytest.param(0.80, [0.83] * 20, [(5, 0.83)], id="small-rise-in-one-step"),
    pytest.param(0.80, [0.82] * 20, [(5, 0.82)], id="rise-of-exactly-the-margin"),
    pytest.param(0.80, [0.81] * 20, [], id="rise-under-the-margin"),
    pytest.param(0.80, [0.80] * 20, [], id="already-there"),
    pytest.param(0.90, [1.00] * 20, [(5, 0.95), (6, 1.00)], id="two-raises-after-a-release"),
    pytest.param(0.50, [0.56] * 20, [(5, 0.56)], id="a-rest-of-one-hundredth-is-not-left-over"),
    pytest.param(0.50, [0.57] * 20, [(5, 0.55), (6, 0.57)], id="a-rest-of-the-margin-is-a-step"),
    pytest.param(0.30, [0.54] * 20, [(5, 0.36), (6, 0.41), (7, 0.46), (8, 0.51), (9, 0.54)], id="quarter-of-24"),
    pytest.param(
        0.00,
        [1.00] * 30,
        list(enumerate((0.25, 0.43, 0.57, 0.67, 0.75, 0.81, 0.86, 0.91, 0.96, 1.00), start=5)),
        id="from-nothing-to-everything",
    ),
    pytest.param(
        0.50,
        [0.90] * 4 + [0.51] + [0.90] * 10,
        [(10, 0.60), (11, 0.67), (12, 0.72), (13, 0.77), (14, 0.82)],
        id="dip-under-the-margin-restarts-the-wait",
    ),
    pytest.param(
        0.50,
        [0.90] * 4 + [0.52] + [0.90] * 4,
        [(5, 0.60), (6, 0.67), (7, 0.72), (8, 0.77)],
        id="dip-to-the-margin-does-not",
    ),
    pytest.param(0.50, [0.90] * 7 + [0.68] + [0.90] * 5, CLIMB[:2], id="dip-while-climbing-restarts-the-wait"),
    pytest.param(0.50, [0.90] * 7 + [0.55] + [0.90] * 5, [*CLIMB[:2], (7, 0.55)], id="fall-while-climbing-at-once"),
    pytest.param(0.50, [0.90] * 7 + [0.70] * 13, [*CLIMB[:2], (7, 0.70)], id="lower-goal-while-climbing"),
    pytest.param(
        0.50, [0.70] * 6 + [0.90] * 3, [(5, 0.55), (6, 0.63), (7, 0.69), (8, 0.74)], id="higher-goal-while-climbing"
    ),
    pytest.param(0.80, [0.83] * 6 + [0.90] * 4, [(5, 0.83)], id="new-rise-after-arriving-waits-again"),
    pytest.param(0.80, [0.83] * 6 + [0.90] * 7, [(5, 0.83), (11, 0.88), (12, 0.90)], id="and-then-climbs"),
]


@pytest.mark.parametrize(("start", "targets", "expected"), SEQUENCES)
def test_sequence_matches_when_asked_every_second(
    start: float, targets: list[float], expected: list[tuple[float, float]]
) -> None:
    watcher = watch(start)
    for now, target in enumerate(targets):
        watcher.observe(target, float(now))
    assert_published(watcher, expected)


@pytest.mark.parametrize(("start", "targets", "expected"), SEQUENCES)
def test_sequence_matches_when_asked_only_on_changes_and_at_wake_times(
    start: float, targets: list[float], expected: list[tuple[float, float]]
) -> None:
    watcher, last = watch(start), math.nan
    for now, target in enumerate(targets):
        watcher.wait(last, now - 0.5)
        if target != last:
            watcher.observe(target, float(now))
        else:
            watcher.wait(target, float(now))
        last = target
    assert_published(watcher, expected)


@SETTINGS
@given(
    HUNDREDTHS,
    st.lists(st.tuples(st.integers(min_value=1, max_value=24), HUNDREDTHS), min_size=1, max_size=40),
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
