"""The run in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.two_engines import verdict
from examples.two_engines.timeline import ENGINES, Timeline, shares


def report(timeline: Timeline, problems: Sequence[str], folder: Path) -> str:
    """Share of the budget and of the tokens made, in each phase, and what follows from them."""
    lines = ["", *table(timeline), ""]
    over = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timeline.over_s.items())
    lines += [
        f"  longest over its budget: {over or 'never measured'} (a drain of {timeline.drain_s:g} s is allowed)",
        f"  lent on request: {timeline.confirmed_tokens} tokens; conversations that had to wait again: "
        f"{timeline.dropped}",
        f"  timeline: {folder / 'timeline.jsonl'}",
        "",
    ]
    if problems:
        return "\n".join([*lines, "FAILED", *(f"  - {problem}" for problem in problems)])
    return "\n".join(
        [
            *lines,
            "OK: budgets followed work, weight and priority, and tokens a second followed budgets within "
            f"{verdict.TOLERANCE:.0%}",
        ]
    )


def table(timeline: Timeline) -> list[str]:
    """One line for each phase: budget, its share, tokens a second, their share, for each engine."""
    titles = "".join(f"{name + ': budget':>16}{'tokens/s':>14}" for name in ENGINES)
    lines = [f"  {'phase':<8}{titles}{'followed in':>14}"]
    for measured in timeline.measured:
        budget, made = shares(measured.budgets), shares(measured.rates)
        cells = "".join(
            f"{measured.budgets[name]:>10} {budget[name]:>5.0%}{measured.rates[name]:>8.0f} {made[name]:>5.0%}"
            for name in ENGINES
        )
        lines.append(f"  {measured.phase:<8}{cells}{measured.followed_s:>12.1f} s")
    return lines
