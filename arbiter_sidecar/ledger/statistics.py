"""Counters and means. Every number here has exactly one writer: the core."""

from __future__ import annotations

from arbiter_sidecar.types import WorkloadType


class TimeMean:
    """The mean of a value over the time for which it held."""

    __slots__ = ("_area", "_since", "_span", "value")

    def __init__(self, value: float, now: float) -> None:
        self.value = value
        self._since = now
        self._area = 0.0
        self._span = 0.0

    def set(self, value: float, now: float) -> None:
        """The value is another one from now on."""
        self._area += self.value * (now - self._since)
        self._span += now - self._since
        self._since = now
        self.value = value

    def mean(self, now: float) -> float:
        """The mean up to now; the present value when no time has passed."""
        span = self._span + now - self._since
        return self.value if span <= 0.0 else (self._area + self.value * (now - self._since)) / span


class QualityMean:
    """Mean published quality of one kind of lease, over time; time without such leases does not count."""

    __slots__ = ("_area", "_since", "_span", "_sum", "count")

    def __init__(self, now: float) -> None:
        self.count = 0
        self._sum = 0.0
        self._since = now
        self._area = 0.0
        self._span = 0.0

    @property
    def present(self) -> float:
        """The mean of the living leases; 1 when there is none."""
        return self._sum / self.count if self.count else 1.0

    def _settle(self, now: float) -> None:
        if self.count:
            self._area += self.present * (now - self._since)
            self._span += now - self._since
        self._since = now

    def move(self, *, leases: int, quality: float, now: float) -> None:
        """``leases`` more of them (or fewer), and so much more quality in all."""
        self._settle(now)
        self.count += leases
        self._sum = self._sum + quality if self.count else 0.0

    def mean(self, now: float) -> float:
        """The mean over time; 1 before there was any lease."""
        self._settle(now)
        return self._area / self._span if self._span > 0.0 else self.present


class Statistics:
    """Totals since the start. The sum of the outcomes and of those that wait equals ``requests``."""

    def __init__(self, now: float) -> None:
        self.requests = 0
        self.granted = 0
        self.refused = 0
        self.timed_out = 0
        self.cancelled = 0
        self.released = 0
        self.expired = 0
        self.orphaned = 0
        self.preemptions = 0
        self.critical_entries = 0
        self.reductions = 0
        self.raises = 0
        self.heartbeats = 0
        self.events = 0
        self.pressure = TimeMean(0.0, now)
        self.llm = QualityMean(now)
        self.diffusion = QualityMean(now)

    def kind(self, workload: WorkloadType) -> QualityMean | None:
        """The mean that a workload counts in; ``None`` for OTHER."""
        if workload is WorkloadType.LLM_INFERENCE:
            return self.llm
        return None if workload is WorkloadType.OTHER else self.diffusion
