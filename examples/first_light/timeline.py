"""What the demonstration saw, as plain values that can be judged without any process running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LLM = "llm-server"
IMAGE = "image-generator"
WORKERS = (LLM, IMAGE)

MIB = 1024 * 1024
#: A worker counts as being at full quality from here on; targets are published in steps of a hundredth.
FULL_QUALITY = 0.995
#: What the summed measurement may exceed the budget by: pages of libraries that a worker touches after it has measured
#: itself, and the start of a worker, which is there for a moment before it has a lease.
_SLACK_BYTES = 32 * MIB
_SLACK_SHARE = 0.03


def slack_bytes(budget_bytes: int) -> int:
    """By how much the measured sum may exceed the budget."""
    return max(_SLACK_BYTES, int(budget_bytes * _SLACK_SHARE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker at one moment.

    Attributes:
        alive: Its process runs.
        quality: Published target; None without a lease.
        granted_bytes: What the books charge for its lease; 0 without one.
        measured_bytes: What the arbiter measured; None when unknown.
        own_bytes: What the demonstration itself measured, independently of the arbiter.
        full_bytes: What it asked for at full quality; 0 before it asked.
        rung: The size it says it runs at; empty before it said so.
        obeyed_quality: The target it says it has obeyed; None before it said so.
        made: Prompts answered or images made so far, over all its processes.
        made_at_rung: The same since it last obeyed a directive.
    """

    alive: bool = False
    quality: float | None = None
    granted_bytes: int = 0
    measured_bytes: int | None = None
    own_bytes: int = 0
    full_bytes: int = 0
    rung: str = ""
    obeyed_quality: float | None = None
    made: int = 0
    made_at_rung: int = 0

    @property
    def settled(self) -> bool:
        """It has obeyed its present target and made something since."""
        return self.alive and self.quality is not None and self.obeyed_quality == self.quality and self.made_at_rung > 0

    @property
    def full(self) -> bool:
        """It is settled at full quality."""
        return self.settled and self.quality is not None and self.quality >= FULL_QUALITY

    @property
    def reduced(self) -> bool:
        """It is settled below full quality."""
        return self.settled and self.quality is not None and self.quality < FULL_QUALITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything at one moment.

    Attributes:
        at: Seconds since the start.
        phase: Name of the phase.
        granted_bytes: Σ granted on the device.
        measured_bytes: Use of the device as the arbiter measured it; None when unknown.
        workers: Every worker by name.
    """

    at: float
    phase: str
    granted_bytes: int = 0
    measured_bytes: int | None = None
    workers: Mapping[str, Worker] = field(default_factory=dict)

    def worker(self, name: str) -> Worker:
        """The worker; one that is not there when there is none."""
        return self.workers.get(name, _ABSENT)


_ABSENT = Worker()


@dataclass(slots=True, kw_only=True)
class Timeline:
    """The whole run.

    Attributes:
        budget_bytes: What the arbiter was given.
        observations: Oldest first.
        completed: Phases that reached their goal, in order.
        troubles: What went wrong while it ran, for people.
        peak_bytes: The largest Σ of what the workers' process trees held, from the demonstration's own measurements.
        samples: How many of those there were.
        events: How many of each kind the arbiter reported.
    """

    budget_bytes: int
    observations: list[Observation] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    samples: int = 0
    events: dict[str, int] = field(default_factory=dict)

    def of(self, phase: str) -> Sequence[Observation]:
        """The observations of one phase."""
        return [observation for observation in self.observations if observation.phase == phase]

    def end_of(self, phase: str) -> Observation | None:
        """The last observation of a phase that reached its goal; None when it did not."""
        seen = self.of(phase)
        return seen[-1] if seen and phase in self.completed else None
