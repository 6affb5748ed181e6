"""How a solved target becomes one of the qualities that may be published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy import publication
from tests.thorough import examples

SETTINGS = examples(150)
FRACTIONS = st.floats(min_value=0.0, max_value=1.0)


@pytest.mark.parametrize(
    ("target", "minimum", "maximum", "expected"),
    [
        pytest.param(0.7429, 0.4, 1.0, 0.74, id="down"),
        pytest.param(0.9999, 0.4, 1.0, 0.99, id="down-just-under-the-maximum"),
        pytest.param(1.0, 0.4, 1.0, 1.0, id="at-the-maximum"),
        pytest.param(1.0 - 1e-10, 0.4, 1.0, 1.0, id="noise-under-the-maximum"),
        pytest.param(1.0 - 5e-8, 0.4, 1.0, 0.99, id="more-than-noise-under-the-maximum"),
        pytest.param(0.9 - 5e-8, 0.4, 1.0, 0.89, id="more-than-noise-under-a-hundredth"),
        pytest.param(1.0 + 1e-10, 0.4, 1.0, 1.0, id="noise-over-the-maximum"),
        pytest.param(0.955, 0.4, 0.955, 0.955, id="at-a-maximum-off-the-grid"),
        pytest.param(0.955 - 1e-10, 0.4, 0.955, 0.955, id="noise-under-a-maximum-off-the-grid"),
        pytest.param(0.954, 0.4, 0.955, 0.95, id="under-a-maximum-off-the-grid"),
        pytest.param(0.4, 0.4, 1.0, 0.4, id="at-the-minimum"),
        pytest.param(0.4 - 1e-10, 0.4, 1.0, 0.4, id="noise-under-the-minimum"),
        pytest.param(0.335, 0.333, 1.0, 0.333, id="never-under-a-minimum-off-the-grid"),
        pytest.param(0.345, 0.333, 1.0, 0.34, id="above-a-minimum-off-the-grid"),
        pytest.param(0.0, 0.0, 1.0, 0.0, id="nothing"),
        pytest.param(0.005, 0.0, 1.0, 0.0, id="under-one-hundredth"),
        pytest.param(0.5, 0.5, 0.5, 0.5, id="no-room"),
        pytest.param(1.0, 1.0, 1.0, 1.0, id="fixed-at-one"),
        pytest.param(0.9 - 1e-12, 0.4, 1.0, 0.9, id="noise-under-a-hundredth"),
    ],
)
def test_quantise_matches_when_target_is(target: float, minimum: float, maximum: float, expected: float) -> None:
    assert publication.quantise(target, minimum=minimum, maximum=maximum) == expected


def test_quantise_keeps_every_hundredth_when_already_quantised() -> None:
    """Multiplying 0.29 or 0.57 by a hundred falls just short of a whole number."""
    grid = [hundredths / 100 for hundredths in range(101)]
    assert [publication.quantise(target, minimum=0.0, maximum=1.0) for target in grid] == grid


@SETTINGS
@given(st.tuples(FRACTIONS, FRACTIONS, FRACTIONS))
def test_quantise_stays_on_the_safe_side_within_bounds_always(numbers: tuple[float, float, float]) -> None:
    minimum, target, maximum = sorted(numbers)
    quantised = publication.quantise(target, minimum=minimum, maximum=maximum)
    assert minimum <= quantised <= maximum
    assert quantised <= target + 1e-9
    assert quantised > target - 0.01 - 1e-9
    assert publication.quantise(quantised, minimum=minimum, maximum=maximum) == quantised


@SETTINGS
@given(st.tuples(FRACTIONS, FRACTIONS), FRACTIONS, FRACTIONS)
def test_quantise_does_not_fall_when_target_rises(bounds: tuple[float, float], first: float, second: float) -> None:
    minimum, maximum = sorted(bounds)
    low, high = sorted((first, second))
    assert publication.quantise(low, minimum=minimum, maximum=maximum) <= publication.quantise(
        high, minimum=minimum, maximum=maximum
    )
