"""A device and its waiting line, served by the policy; times are whole eighths of a second, so that sums are exact.

What may be said of the line is checked while it is served: its order, nobody ahead who fitted as well, no head passed
more often than allowed, nothing granted twice or beyond the capacity.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from arbiter_sidecar.policy import ranking
from arbiter_sidecar.types import Priority


@dataclass(slots=True)
class Job:
    """A request that holds ``size`` for ``service`` seconds once it is granted."""

    arrival: int
    priority: Priority
    size: int
    service: float
    since: float
    passed: int = 0
    granted_at: float | None = None


def tier_of(job: Job, now: float) -> int:
    """The tier by the definition: one more for each half minute, by counting them, at most the fourth of five."""
    tier = int(job.priority)
    moment = job.since + 30
    while tier < 4 and moment <= now:
        tier, moment = tier + 1, moment + 30
    return tier


@dataclass(slots=True)
class Service:
    """One device."""

    capacity: int
    backfill: int = ranking.BACKFILL
    now: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    line: list[Job] = field(default_factory=list)
    running: list[tuple[float, Job]] = field(default_factory=list)

    @property
    def free(self) -> int:
        """What is not granted."""
        return self.capacity - sum(job.size for _, job in self.running)

    def submit(self, priority: Priority, size: int, service: float) -> Job:
        """A request arrives."""
        job = Job(len(self.jobs), priority, size, service, self.now)
        self.jobs.append(job)
        self.line.append(job)
        self.serve()
        return job

    def advance(self, until: float) -> None:
        """Lets time pass; whoever is done gives back, whoever ages is looked at again."""
        while True:
            ends = [end for end, _ in self.running]
            rises = [ranking.next_rise(job.priority, since=job.since, now=self.now) for job in self.line]
            following = min([*ends, *(rise for rise in rises if rise is not None)], default=until)
            if following > until:
                break
            self.now = following
            self.running = [(end, job) for end, job in self.running if end > self.now]
            self.serve()
            if not self.running and not self.line:
                break
        self.now = until

    def serve(self) -> None:
        """Grants until nobody is next."""
        while True:
            by_rank = sorted(self.line, key=lambda job: (-tier_of(job, self.now), job.arrival))
            ranked = sorted(
                self.line,
                key=lambda job: ranking.rank(job.priority, since=job.since, arrival=job.arrival, now=self.now),
            )
            assert ranked == by_rank
            turn = ranking.next_turn(
                (ranking.Place(arrival=job.arrival, fits=job.size <= self.free, passed=job.passed) for job in ranked),
                backfill=self.backfill,
            )
            if turn is None:
                return
            self._grant(self.jobs[turn.arrival], turn.passes, ranked)

    def _grant(self, job: Job, passes: int | None, ranked: list[Job]) -> None:
        ahead = ranked[: ranked.index(job)]
        assert job.granted_at is None
        assert job.size <= self.free
        assert all(other.size > self.free for other in ahead)
        assert passes == (ahead[0].arrival if ahead else None)
        if ahead:
            ahead[0].passed += 1
            assert ahead[0].passed <= self.backfill
        job.granted_at = self.now
        self.line.remove(job)
        self.running.append((self.now + job.service, job))
