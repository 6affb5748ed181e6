"""What was seen: of each engine at each moment, and of each phase as a whole. Plain values, no judgement."""

from __future__ import annotations

from dataclasses import dataclass, field

CHAT, BATCH = "chat", "batch"
ENGINES = (CHAT, BATCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One engine at one moment.

    Attributes:
        budget: KV tokens that the arbiter shows as its budget.
        resident: Tokens of the blocks that it has taken, counted in its pool.
        made: Tokens it has made so far.
        at: When it said the last two, monotonic seconds.
        running: Conversations.
        donated: Tokens it lends.
        borrowed: Tokens it has from others.
    """

    budget: int = 0
    resident: int = 0
    made: int = 0
    at: float = 0.0
    running: int = 0
    donated: int = 0
    borrowed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Both engines at one moment; one that does not live is missing.

    Attributes:
        at: Seconds since the beginning.
        phase: Name of the phase.
        engines: By name.
    """

    at: float
    phase: str
    engines: dict[str, Seen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One phase, once budgets had settled.

    Attributes:
        phase: Its name.
        followed_s: Seconds from what was done until every engine had and kept what it should.
        budgets: Tokens at the end, by engine; 0 for one that does not live.
        rates: Tokens made in a second, by engine.
    """

    phase: str
    followed_s: float
    budgets: dict[str, int]
    rates: dict[str, float]


@dataclass(slots=True, kw_only=True)
class Timeline:
    """A whole run.

    Attributes:
        total_tokens: What the engines share.
        drain_s: How long an engine may keep more than its budget before tokens are ordered back.
        measured: The phases that were completed, in order.
        over_s: The longest time for which each engine had more resident than its budget, seconds.
        confirmed_tokens: What the preemption brought; `None` before its answer.
        dropped: Conversations that were sent back to wait because tokens were ordered back.
        troubles: What went wrong on the way.
        observations: Everything that was seen.
    """

    total_tokens: int
    drain_s: float
    measured: list[Measured] = field(default_factory=list)
    over_s: dict[str, float] = field(default_factory=dict)
    confirmed_tokens: int | None = None
    dropped: int = 0
    troubles: list[str] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)


def shares(amounts: dict[str, float] | dict[str, int]) -> dict[str, float]:
    """Each part of the whole, in [0,1]; all 0 where there is nothing."""
    whole = sum(amounts.values())
    return {name: amounts.get(name, 0) / whole if whole else 0.0 for name in ENGINES}
