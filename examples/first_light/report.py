"""The short report at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.first_light import phases
from examples.first_light.timeline import IMAGE, LLM, MIB, WORKERS, Timeline, slack_bytes

#: Phase and what it is called in the report, for each worker.
_COLUMNS = (
    (phases.ALONE, "alone"),
    (phases.TOGETHER, "together"),
    (phases.KILLED, "after the kill"),
    (phases.AGAIN, "together again"),
    (phases.PARTED, "at the end"),
)


def report(timeline: Timeline, problems: Sequence[str], folder: Path) -> str:
    """The run in a few lines: qualities and bytes before, during and after, the peak, what was made, where it is."""
    lines = ["", f"  {'':<16}" + "".join(f"{title:>18}" for _, title in _COLUMNS)]
    for name in WORKERS:
        lines.append(f"  {name:<16}" + "".join(f"{_cell(timeline, phase, name):>18}" for phase, _ in _COLUMNS))
    budget = timeline.budget_bytes
    full = sum(_most(timeline, name, "full_bytes") for name in WORKERS)
    lines += [
        "",
        f"  both at full size would need {full / MIB:.0f} MiB; the budget was {budget / MIB:.0f} MiB",
        f"  peak of what both held: {timeline.peak_bytes / MIB:.0f} MiB, measured {timeline.samples} times"
        f" (allowed: the budget and {slack_bytes(budget) / MIB:.0f} MiB slack)",
        f"  prompts answered: {_most(timeline, LLM, 'made')}   images made: {_most(timeline, IMAGE, 'made')}",
        "  events: " + (", ".join(f"{count} {kind}" for kind, count in timeline.events.items()) or "none seen"),
        f"  answers: {folder / 'answers' / 'answers.txt'}",
        f"  images:  {folder / 'images'}",
        f"  logs:    {folder / 'logs'}",
        "",
    ]
    if problems:
        lines += ["FAILED", *(f"  - {problem}" for problem in problems)]
    else:
        lines.append("OK: both workers shrank and grew back, and the budget was kept")
    return "\n".join(lines)


def _cell(timeline: Timeline, phase: str, name: str) -> str:
    seen = timeline.end_of(phase)
    if seen is None:
        return "?"
    worker = seen.worker(name)
    return "-" if worker.quality is None else f"{worker.quality:.2f} {worker.own_bytes / MIB:5.0f} MiB"


def _most(timeline: Timeline, name: str, attribute: str) -> int:
    return max((int(getattr(seen.worker(name), attribute)) for seen in timeline.observations), default=0)
