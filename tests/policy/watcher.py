"""Plays inputs to one publication and keeps what came out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from arbiter_sidecar.policy import publication

NOISE = 1e-9


@dataclass(slots=True)
class Watcher:
    """Feeds one publication and keeps what it published and when."""

    state: publication.Published
    wake: float | None = None
    published: list[tuple[float, float]] = field(default_factory=list)

    def observe(self, target: float, now: float) -> None:
        """One call with what holds from ``now`` on."""
        before = self.state.quality
        self.state, self.wake = publication.step(self.state, target, now)
        if self.state.quality != before:
            self.published.append((now, self.state.quality))

    def wait(self, target: float, until: float) -> None:
        """Calls at every wake time up to and including ``until``; each must bring the publication forward."""
        calls = 0
        while self.wake is not None and self.wake <= until:
            calls += 1
            assert calls <= 200, "does not come to rest"
            self.observe(target, self.wake)


def watch(quality: float) -> Watcher:
    return Watcher(publication.Published(quality))


def assert_published(watcher: Watcher, expected: list[tuple[float, float]]) -> None:
    """Exactly these changes at exactly these times; qualities up to float noise."""
    assert [time for time, _ in watcher.published] == [time for time, _ in expected]
    assert [value for _, value in watcher.published] == pytest.approx([value for _, value in expected], abs=NOISE)
