"""One line of the table, and how it is printed and written."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        name: What was measured.
        unit: Unit of the figures; "x" for a ratio.
        median: Median.
        spread: What else was seen: 99th percentile, or lowest and highest of the rounds.
        rounds: How many values the median is of.
        goal: What was promised, empty for nothing.
        met: Whether it was kept; ``None`` when nothing was promised or it could not be measured.
        remark: What bounds the figure, or why it is missing.
    """

    name: str
    unit: str
    median: float
    spread: dict[str, float] = field(default_factory=dict)
    rounds: int
    goal: str = ""
    met: bool | None = None
    remark: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summed_up(name: str, unit: str, values: Sequence[float], *, goal: str = "", limit_p99: float | None = None) -> Row:
    """A row of single values: median, 99th percentile and the largest."""
    p99 = percentile(values, 0.99)
    return Row(
        name=name,
        unit=unit,
        median=statistics.median(values),
        spread={"p99": p99, "max": max(values)},
        rounds=len(values),
        goal=goal,
        met=None if limit_p99 is None else p99 <= limit_p99,
    )


def ratio(name: str, values: Sequence[float], *, goal: str = "", limit: float | None = None, remark: str = "") -> Row:
    """A row of ratios, one for each round: median, lowest and highest."""
    middle = statistics.median(values)
    return Row(
        name=name,
        unit="x",
        median=middle,
        spread={"min": min(values), "max": max(values)},
        rounds=len(values),
        goal=goal,
        met=None if limit is None else middle <= limit,
        remark=remark,
    )


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "protobuf": metadata.version("protobuf"),
        "load_before": f"{os.getloadavg()[0]:.2f}",
    }


def table(rows: Sequence[Row], facts: dict[str, str]) -> str:
    """The rows as a Markdown table under a line about the machine."""
    lines = [", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    lines.append("| what | median | spread | rounds | goal | met |")
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        spread = ", ".join(f"{name} {value:.4g}" for name, value in row.spread.items())
        met = {True: "yes", False: "**no**", None: "-"}[row.met]
        remark = f" ({row.remark})" if row.remark else ""
        figures = f"{row.median:.4g} {row.unit} | {spread} | {row.rounds}"
        lines.append(f"| {row.name}{remark} | {figures} | {row.goal or '-'} | {met} |")
    return "\n".join(lines) + "\n"


def write(directory: Path, rows: Sequence[Row], facts: dict[str, str]) -> None:
    """Keeps the newest table as Markdown and JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "newest.md").write_text(table(rows, facts))
    content = {"machine": facts, "rows": [asdict(row) for row in rows]}
    (directory / "newest.json").write_text(json.dumps(content, indent=1) + "\n")
