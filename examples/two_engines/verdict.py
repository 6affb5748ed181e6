"""Judges a run: did budgets follow work, weight and priority, tokens a second follow budgets, and nothing stay over?"""

from __future__ import annotations

from examples.two_engines import phases
from examples.two_engines.timeline import CHAT, ENGINES, Timeline, shares

#: By how much the share of an engine in the tokens made may differ from its share in the budget: requests are whole,
#: and a busy machine slows one engine more than the other.
TOLERANCE = 0.10
#: Of four times the budget at least so many times the tokens a second must come.
LEAST_GROWTH = 2.0
#: Over its budget an engine is ordered to free once the drain time is over, and obeys with its next step.
OBEY_S = 1.5


def judge(timeline: Timeline) -> list[str]:
    """Everything that did not go as it must, for people; empty when the run was good."""
    problems = list(timeline.troubles)
    completed = [measured.phase for measured in timeline.measured]
    if missing := [phase.name for phase in phases.SCRIPT if phase.name not in completed]:
        problems.append(f"not reached: {', '.join(missing)}")
    problems += _budgets(timeline)
    problems += _rates(timeline)
    problems += _growth(timeline)
    problems += _loan(timeline)
    problems += _over(timeline)
    return problems


def _budgets(timeline: Timeline) -> list[str]:
    wanted = {phase.name: phase.budgets for phase in phases.SCRIPT}
    problems = []
    for measured in timeline.measured:
        for name in ENGINES:
            expected, had = wanted[measured.phase].get(name, 0), measured.budgets[name]
            if had != expected:
                problems.append(f"{name} had a budget of {had} tokens in phase {measured.phase}, not {expected}")
    return problems


def _rates(timeline: Timeline) -> list[str]:
    problems = []
    for measured in timeline.measured:
        budget, made = shares(measured.budgets), shares(measured.rates)
        if not sum(measured.rates.values()):
            problems.append(f"nothing was made in phase {measured.phase}")
            continue
        problems += [
            f"{name} made {made[name]:.0%} of all with {budget[name]:.0%} of the budget in phase {measured.phase}"
            for name in ENGINES
            if abs(made[name] - budget[name]) > TOLERANCE
        ]
    return problems


def _growth(timeline: Timeline) -> list[str]:
    """Shares say nothing where one engine is alone: it must really make more of what it was given."""
    rates = {measured.phase: measured.rates[CHAT] for measured in timeline.measured}
    problems = []
    for narrow, wide in ((phases.BOTH, phases.IDLE), (phases.WAKES, phases.KILLED)):
        if narrow in rates and wide in rates and rates[wide] < LEAST_GROWTH * rates[narrow]:
            problems.append(
                f"{CHAT} made {rates[wide]:.0f} tokens a second in phase {wide}, not {LEAST_GROWTH:g} times the "
                f"{rates[narrow]:.0f} of phase {narrow}"
            )
    return problems


def _loan(timeline: Timeline) -> list[str]:
    if not any(measured.phase == phases.LENT for measured in timeline.measured):
        return []
    if timeline.confirmed_tokens != phases.LOAN_TOKENS:
        return [f"{timeline.confirmed_tokens} tokens were confirmed to be lent, not {phases.LOAN_TOKENS}"]
    return []


def _over(timeline: Timeline) -> list[str]:
    allowed = timeline.drain_s + OBEY_S
    problems = [
        f"{name} kept more than its budget for {seconds:.1f} s; {allowed:.1f} s are allowed"
        for name, seconds in timeline.over_s.items()
        if seconds > allowed
    ]
    return problems + [f"{name} was never measured" for name in ENGINES if name not in timeline.over_s]
