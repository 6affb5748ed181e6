"""Judges a timeline: did both workers shrink and grow back, really, and was the budget kept?"""

from __future__ import annotations

from examples.first_light import phases
from examples.first_light.timeline import FULL_QUALITY, IMAGE, LLM, MIB, WORKERS, Timeline, slack_bytes

#: Memory moved if at least this much went or came; less could be noise.
_MOVED_BYTES = 24 * MIB

_ALIVE = {
    phases.ALONE: (LLM,),
    phases.TOGETHER: WORKERS,
    phases.KILLED: (LLM,),
    phases.AGAIN: WORKERS,
    phases.PARTED: (IMAGE,),
}


def judge(timeline: Timeline) -> list[str]:
    """Everything that did not go as it must, for people; empty when the run was good."""
    problems = list(timeline.troubles)
    missing = [phase.name for phase in phases.SCRIPT if phase.name not in timeline.completed]
    if missing:
        problems.append(f"not reached: {', '.join(missing)}")
    problems += _budget(timeline)
    problems += _lowered(timeline, LLM, phases.ALONE, phases.TOGETHER)
    problems += _lowered(timeline, LLM, phases.KILLED, phases.AGAIN)
    problems += _raised(timeline, LLM, phases.TOGETHER, phases.KILLED)
    problems += _raised(timeline, IMAGE, phases.AGAIN, phases.PARTED)
    problems += _idle(timeline)
    return problems


def _budget(timeline: Timeline) -> list[str]:
    budget, allowed = timeline.budget_bytes, timeline.budget_bytes + slack_bytes(timeline.budget_bytes)
    problems = []
    if timeline.samples == 0:
        problems.append("the workers' memory was never measured")
    if timeline.peak_bytes > allowed:
        problems.append(
            f"the budget was passed: {_mib(timeline.peak_bytes)} at the peak, {_mib(allowed)} allowed with slack"
        )
    full = sum(max((seen.worker(name).full_bytes for seen in timeline.observations), default=0) for name in WORKERS)
    if timeline.end_of(phases.TOGETHER) is not None and full <= budget:
        problems.append(
            f"nothing to arbitrate: both workers at full size need {_mib(full)} and the budget is {_mib(budget)}"
        )
    return problems


def _lowered(timeline: Timeline, name: str, before: str, after: str) -> list[str]:
    earlier, later = timeline.end_of(before), timeline.end_of(after)
    if earlier is None or later is None:
        return []
    problems = []
    quality = later.worker(name).quality
    if quality is None or quality >= FULL_QUALITY:
        problems.append(f"{name} was not told to shrink in phase {after}: quality {_quality(quality)}")
    gone = earlier.worker(name).own_bytes - later.worker(name).own_bytes
    if gone < _MOVED_BYTES:
        problems.append(f"{name} did not really shrink in phase {after}: {_mib(gone)} went")
    return problems


def _raised(timeline: Timeline, name: str, before: str, after: str) -> list[str]:
    earlier, later = timeline.end_of(before), timeline.end_of(after)
    if earlier is None or later is None:
        return []
    problems = []
    if (quality := earlier.worker(name).quality) is None or quality >= FULL_QUALITY:
        problems.append(f"{name} was not below full quality in phase {before}: quality {_quality(quality)}")
    if (quality := later.worker(name).quality) is None or quality < FULL_QUALITY:
        problems.append(f"{name} did not grow back in phase {after}: quality {_quality(quality)}")
    came = later.worker(name).own_bytes - earlier.worker(name).own_bytes
    if came < _MOVED_BYTES:
        problems.append(f"{name} did not really grow in phase {after}: {_mib(came)} came")
    return problems


def _idle(timeline: Timeline) -> list[str]:
    problems = []
    for phase, names in _ALIVE.items():
        seen = timeline.of(phase)
        if not seen or phase not in timeline.completed:
            continue
        for name in names:
            if seen[-1].worker(name).made <= seen[0].worker(name).made:
                problems.append(f"{name} made nothing in phase {phase}")
    return problems


def _quality(quality: float | None) -> str:
    return "unknown" if quality is None else f"{quality:.2f}"


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"
