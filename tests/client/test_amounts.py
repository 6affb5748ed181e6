"""Sizes and spans as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from arbiter_client import amounts


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (2**63 - 1, 2**63 - 1),
        ("1048576", 1 << 20),
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        (" 2 gib ", 2 << 30),
        ("2Gi", 2 << 30),
        ("1.5GB", 1_500_000_000),
        ("1.5G", 1_500_000_000),
        ("0.1KiB", 102),
        ("7B", 7),
    ],
)
def test_parse_bytes_reads_what_people_write(text: int | str, size: int) -> None:
    assert amounts.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "2 PiB", "nan", "1,5GB", -1, 2**63, "9000000TiB", True])
def test_parse_bytes_refuses_what_is_no_amount(text: int | str) -> None:
    with pytest.raises(ValueError, match=r"memory|2\^63"):
        amounts.parse_bytes(text)


def test_parse_seconds_reads_numbers_and_timedeltas() -> None:
    assert amounts.parse_seconds(2) == 2.0
    assert amounts.parse_seconds(timedelta(minutes=1)) == 60.0


@pytest.mark.parametrize("span", [-1.0, float("nan"), float("inf")])
def test_parse_seconds_refuses_what_is_no_span(span: float) -> None:
    with pytest.raises(ValueError, match="span of time"):
        amounts.parse_seconds(span)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (1 << 30, "1.0GiB"), (5 << 40, "5.0TiB"), (-(1 << 20), "-1.0MiB")],
)
def test_format_bytes_uses_the_largest_unit(size: int, text: str) -> None:
    assert amounts.format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5.0, "0s"), (12.4, "12s"), (59.9, "1m00s"), (245, "4m05s"), (7380, "2h03m")]
)
def test_format_seconds_is_short(seconds: float, text: str) -> None:
    assert amounts.format_seconds(seconds) == text
