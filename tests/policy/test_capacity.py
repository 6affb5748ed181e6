"""What may be leased of a device, how its ceiling follows strangers, and how full it is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy import capacity
from arbiter_sidecar.types import GIB, MIB, PressureLevel
from tests.thorough import examples

from . import oracle
from .scenarios import gib

SETTINGS = examples(80)
SIZES = st.integers(min_value=0, max_value=2**50)
NEAR_BOUNDARIES = st.builds(int.__add__, st.sampled_from((500, 750, 900)), st.integers(min_value=-35, max_value=5))
CARD = 36 * GIB
"""What may be leased of a 40 GiB card."""


@pytest.mark.parametrize(
    ("total", "cap", "expected"),
    [
        pytest.param(24 * GIB, None, gib(21.6), id="24-gib-keeps-a-tenth"),
        pytest.param(80 * GIB, None, 72 * GIB, id="80-gib-keeps-a-tenth"),
        pytest.param(40 * GIB, None, 36 * GIB, id="40-gib-keeps-a-tenth"),
        pytest.param(4 * GIB, None, gib(3.5), id="4-gib-keeps-half-a-gib"),
        pytest.param(2 * GIB, None, gib(1.5), id="2-gib-keeps-half-a-gib"),
        pytest.param(5 * GIB, None, gib(4.5), id="5-gib-where-both-reserves-meet"),
        pytest.param(512 * MIB, None, 0, id="all-reserve"),
        pytest.param(256 * MIB, None, 0, id="smaller-than-the-reserve"),
        pytest.param(0, None, 0, id="nothing"),
        pytest.param(40 * GIB, 8 * GIB, gib(7.2), id="cap-takes-the-reserve-too"),
        pytest.param(8 * GIB, 40 * GIB, gib(7.2), id="cap-above-the-card-changes-nothing"),
        pytest.param(40 * GIB, 0, 0, id="cap-of-nothing"),
    ],
)
def test_usable_bytes_match_when_reserve_is_kept(total: int, cap: int | None, expected: int) -> None:
    assert abs(capacity.usable_bytes(total, cap) - expected) <= 1


@SETTINGS
@given(SIZES, st.none() | SIZES)
def test_usable_bytes_follow_the_definition_always(total: int, cap: int | None) -> None:
    size = total if cap is None else min(total, cap)
    assert capacity.usable_bytes(total, cap) == max(0, size - max(512 * MIB, size // 10))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("123", 123),
        ("0", 0),
        ("8g", 8 * GIB),
        ("8G", 8 * GIB),
        ("512m", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("4k", 4096),
        ("4KiB", 4096),
        ("1t", 1024 * GIB),
        ("1TiB", 1024 * GIB),
        ("8GiB", 8 * GIB),
        ("1.5g", 3 * GIB // 2),
        ("0.5k", 512),
        ("2KB", 2_000),
        ("512MB", 512_000_000),
        ("1.5GB", 1_500_000_000),
        ("1TB", 1_000_000_000_000),
        ("1.001GB", 1_001_000_000),
        ("0.3MB", 300_000),
    ],
)
def test_parse_bytes_reads_size_when_well_formed(text: str, expected: int) -> None:
    assert capacity.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "g", "GiB", "-1", "-1g", "8x", "8gg", "8 apples", "1.2.3g", "1e3x", "nan", "inf", "nang", "0x10", "8iB"],
)
def test_parse_bytes_refuses_with_a_sentence_when_malformed(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):
        capacity.parse_bytes(text)


def test_parse_bytes_refuses_or_stays_whole_when_absurdly_large() -> None:
    """A number beyond every float must not come out as another kind of error."""
    text = "9" * 400 + ".5g"
    try:
        found = capacity.parse_bytes(text)
    except ValueError:
        return
    assert found == (2 * int("9" * 400) + 1) * GIB // 2


def test_ceiling_is_what_was_measured_when_first_seen() -> None:
    assert capacity.smooth_ceiling(None, 30 * GIB) == 30 * GIB


@pytest.mark.parametrize(
    ("previous", "measured", "expected"),
    [
        pytest.param(30 * GIB, 24 * GIB, 24 * GIB, id="a-fall-at-once"),
        pytest.param(24 * GIB, 36 * GIB, 27 * GIB, id="a-rise-by-a-quarter-of-the-gap"),
        pytest.param(27 * GIB, 36 * GIB, gib(29.25), id="and-a-quarter-of-the-rest"),
        pytest.param(24 * GIB, 24 * GIB, 24 * GIB, id="no-change"),
        pytest.param(24 * GIB, 0, 0, id="strangers-hold-everything"),
        pytest.param(24 * GIB, 24 * GIB + 16 * MIB - 1, 24 * GIB + 16 * MIB - 1, id="snaps-under-16-mib"),
        pytest.param(24 * GIB, 24 * GIB + 16 * MIB, 24 * GIB + 4 * MIB, id="does-not-snap-at-16-mib"),
        pytest.param(0, 16 * MIB + 3, 4 * MIB, id="quarter-rounded-down"),
    ],
)
def test_ceiling_follows_when_strangers_come_and_go(previous: int, measured: int, expected: int) -> None:
    assert capacity.smooth_ceiling(previous, measured) == expected


def test_ceiling_matches_the_worked_samples_when_a_stranger_comes_and_leaves() -> None:
    ceiling: int | None = None
    seen = []
    for foreign in (6 * GIB, 12 * GIB, 0, 0):
        ceiling = capacity.smooth_ceiling(ceiling, max(0, CARD - foreign))
        seen.append(ceiling)
    assert seen == [30 * GIB, 24 * GIB, 27 * GIB, gib(29.25)]


@SETTINGS
@given(SIZES, SIZES)
def test_ceiling_reaches_the_measurement_when_it_stays(previous: int, measured: int) -> None:
    seen = [previous]
    for _ in range(80):
        seen.append(capacity.smooth_ceiling(seen[-1], measured))
    assert seen[-1] == measured
    assert all(before <= after <= measured for before, after in pairwise(seen[1:]))


@pytest.mark.parametrize(
    ("granted", "foreign", "measured", "expected"),
    [
        pytest.param(10, 2, 6, 12 / 20, id="promises-beyond-what-is-measured"),
        pytest.param(10, 2, 16, 16 / 20, id="measured-beyond-what-is-promised"),
        pytest.param(10, 2, None, 12 / 20, id="not-measured"),
        pytest.param(18, 12, 25, 30 / 20, id="not-clamped"),
        pytest.param(0, 0, 0, 0.0, id="empty"),
        pytest.param(0, 0, None, 0.0, id="empty-and-not-measured"),
    ],
)
def test_pressure_is_the_larger_of_promise_and_measurement_when_both_are_known(
    granted: int, foreign: int, measured: int | None, expected: float
) -> None:
    assert capacity.pressure(granted, foreign, measured, 20) == pytest.approx(expected)


@pytest.mark.parametrize("granted", [0, 5])
def test_pressure_is_full_when_there_is_no_capacity(granted: int) -> None:
    assert capacity.pressure(granted, 0, None, 0) == 1.0


@pytest.mark.parametrize(
    ("previous", "pressure", "expected"),
    [
        pytest.param(None, 0.0, "LOW", id="first-empty"),
        pytest.param(None, 0.4999, "LOW", id="first-just-low"),
        pytest.param(None, 0.50, "MODERATE", id="first-at-half"),
        pytest.param(None, 0.7499, "MODERATE", id="first-just-moderate"),
        pytest.param(None, 0.75, "HIGH", id="first-at-three-quarters"),
        pytest.param(None, 0.8999, "HIGH", id="first-just-high"),
        pytest.param(None, 0.90, "CRITICAL", id="first-at-nine-tenths"),
        pytest.param(None, 1.7, "CRITICAL", id="first-beyond-capacity"),
        pytest.param("LOW", 0.50, "MODERATE", id="up-at-the-boundary"),
        pytest.param("LOW", 0.95, "CRITICAL", id="up-several-at-once"),
        pytest.param("HIGH", 0.73, "HIGH", id="held-a-little-below"),
        pytest.param("HIGH", 0.721, "HIGH", id="held-to-the-end-of-the-margin"),
        pytest.param("HIGH", 0.719, "MODERATE", id="down-below-the-margin"),
        pytest.param("CRITICAL", 0.871, "CRITICAL", id="critical-held"),
        pytest.param("CRITICAL", 0.869, "HIGH", id="critical-down"),
        pytest.param("MODERATE", 0.471, "MODERATE", id="moderate-held"),
        pytest.param("MODERATE", 0.469, "LOW", id="moderate-down"),
        pytest.param("CRITICAL", 0.10, "LOW", id="down-several-at-once"),
        pytest.param("CRITICAL", 0.48, "MODERATE", id="down-several-held-at-the-last"),
        pytest.param("CRITICAL", 0.73, "HIGH", id="down-one-held-at-the-next"),
        pytest.param("MODERATE", 0.73, "MODERATE", id="no-margin-on-the-way-up"),
    ],
)
def test_level_follows_pressure_when_it_moves(previous: str | None, pressure: float, expected: str) -> None:
    before = None if previous is None else PressureLevel[previous]
    assert capacity.level(before, pressure) is PressureLevel[expected]


@SETTINGS
@given(st.lists(NEAR_BOUNDARIES | st.integers(min_value=0, max_value=1200), min_size=1, max_size=30))
def test_level_equals_the_stated_rule_when_pressure_wanders(walk: list[int]) -> None:
    """Pressures half a thousandth off the boundaries: on them binary fractions decide nothing of use."""
    current: PressureLevel | None = None
    for thousandths in walk:
        expected = oracle.pressure_level(None if current is None else current - 1, thousandths)
        current = capacity.level(current, (thousandths + 0.5) / 1000)
        assert current - 1 == expected
