"""The tables of the definitions page are what the code computes."""

from __future__ import annotations

import re

import pytest

from arbiter_sidecar.policy import capacity, preemption, quality
from arbiter_sidecar.types import GIB, LeaseId, PressureLevel, Priority, WorkloadType
from tests.contracts import checkout

_TYPES = {
    "LLM": WorkloadType.LLM_INFERENCE,
    "image": WorkloadType.IMAGE_GENERATION,
    "video": WorkloadType.VIDEO_GENERATION,
}
_LEASE = re.compile(r"(LLM|image|video) ([A-Z]+) (\d+)(?: \(slope (\d+)\))?(?: with minimum ([\d.]+))?")


def _table(first_heading: str) -> list[list[str]]:
    """The cells of the table whose first column is headed so."""
    page = (checkout.ROOT / "docs/definitions.md").read_text(encoding="utf-8")
    body = page.partition(f"\n| {first_heading} |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]
    assert rows, first_heading
    return rows


def _elastic(match: re.Match[str], policy: quality.QualityPolicy) -> quality.Elastic:
    kind, priority, size, slope, minimum = match.groups()
    workload, full = _TYPES[kind], int(size) * GIB
    lowest = float(minimum) if minimum else quality.DEFAULT_MIN_QUALITY[workload]
    shed = (int(slope) * GIB if slope else full) * (1 - lowest)
    least = quality.effective_min(policy, lowest, 1.0)
    return quality.Elastic(
        full_bytes=full,
        floor_bytes=full if least == 1.0 else round(full - shed),
        min_quality=least,
        max_quality=1.0,
        weight=quality.weight(policy, workload, Priority[priority]),
    )


@pytest.mark.parametrize("row", _table("leases"), ids=lambda row: f"{row[0]}, foreign {row[1]}")
def test_quality_is_what_the_table_says(row: list[str]) -> None:
    described, foreign, reduction, result = row
    named = re.search(r"`(\w+)`", described)
    policy = quality.QualityPolicy(named.group(1)) if named else quality.QualityPolicy.ADAPTIVE
    leases = [_elastic(match, policy) for match in _LEASE.finditer(described)]
    solution = quality.solve(
        leases,
        capacity_bytes=24 * GIB,
        target_bytes=quality.target_bytes(24 * GIB),
        foreign_bytes=int(foreign) * GIB,
    )
    numbers = re.match(r"[\d.]+(?:, [\d.]+)*", result)
    assert numbers is not None
    expected = [float(number) for number in numbers.group().split(", ")]
    assert list(solution.targets) == pytest.approx(expected, abs=5e-5)
    assert solution.reduction_bytes / GIB == pytest.approx(float(reduction.partition(",")[0]), abs=1e-6)
    soft, hard = (re.search(rf"{word} (?:deficit )?([\d.]+)", result) for word in ("soft deficit", "hard"))
    if soft:
        assert solution.soft_deficit_bytes / GIB == pytest.approx(float(soft.group(1)), abs=1e-6)
    if hard:
        assert solution.hard_deficit_bytes / GIB == pytest.approx(float(hard.group(1)), abs=1e-6)
    elif not soft:
        assert (solution.soft_deficit_bytes, solution.hard_deficit_bytes) == (0, 0)


@pytest.mark.parametrize("row", _table("size"), ids=lambda row: f"{row[0]}, cap {row[1]}")
def test_capacity_is_what_the_table_says(row: list[str]) -> None:
    size, cap, result = row
    total = capacity.parse_bytes(size.removesuffix(" twice").replace(" ", ""))
    limit = None if cap == "–" else capacity.parse_bytes(cap.strip("`"))
    expected = re.search(r"([\d.]+) GiB", result)
    assert expected is not None
    assert capacity.usable_bytes(total, limit) / GIB == pytest.approx(float(expected.group(1)), abs=1e-6)


@pytest.mark.parametrize("row", _table("pressure"), ids=lambda row: f"{row[0]} from {row[1]}")
def test_level_is_what_the_table_says(row: list[str]) -> None:
    pressure, before, result = row
    previous = None if before == "–" else PressureLevel[before]
    assert capacity.level(previous, float(pressure)).name == result


def test_ceiling_is_what_the_table_says() -> None:
    ceiling: int | None = None
    for step, foreign, result in _table("step, capacity 36 GiB (a 40 GiB card)"):
        measured = max(0, 36 * GIB - int(foreign.split()[0]) * GIB)
        ceiling = capacity.smooth_ceiling(ceiling, measured)
        assert ceiling / GIB == pytest.approx(float(re.split(r"[ ,]", result)[0]), abs=1e-6), step


_SHEDDING = "donors: A BACKGROUND 20, B BACKGROUND 50, C LOW 30, D NORMAL 100, E HIGH 100"
_ENDING = "donors: A BACKGROUND 20 of 60, B LOW 10 of 30, C NORMAL 15 of 80"
#: When the plans of the tables are made; everybody has been held for long.
_NOW = 1000.0


def _donors(heading: str, tired: set[str]) -> list[preemption.Candidate]:
    return [
        preemption.Candidate(
            lease_id=LeaseId(name),
            priority=Priority[priority],
            granted_at=0.0,
            shrinkable=int(sheds),
            whole=int(whole or 0),
            donated_at=(_NOW - 2.0, _NOW - 1.0) if name in tired else (),
        )
        for name, priority, sheds, whole in re.findall(r"(\w) ([A-Z]+) (\d+)(?: of (\d+))?", heading)
    ]


@pytest.mark.parametrize(
    ("heading", "row"),
    [(heading, row) for heading in (_SHEDDING, _ENDING) for row in _table(heading)],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_donors_are_what_the_table_says(heading: str, row: list[str]) -> None:
    asked, result = row
    match = re.match(r"(\w+) needs (\d+)", asked)
    assert match is not None
    who, need = match.groups()
    chosen = preemption.plan(
        _donors(heading, set(re.findall(r"(\w) gave twice", asked))),
        int(need),
        requester=None if who == "machine" else preemption.Requester(priority=Priority[who]),
        now=_NOW,
        allow_partial="a part is welcome" in asked,
    )
    gifts = [f"{each.lease_id} {'whole' if each.whole else each.amount}" for each in chosen.donations]
    refused = re.match(r"refused, (\d+) could be had", result)
    assert chosen.refused is (refused is not None)
    if refused is not None:
        assert chosen.available == int(refused.group(1))
    else:
        assert sorted(gifts) == sorted(result.partition(":")[0].split(", "))
