"""Sends work through the pipeline, takes the results, and measures how fast they come."""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Self

import numpy as np

from examples.pipeline import layers, plumbing

if TYPE_CHECKING:
    from multiprocessing import connection
    from types import TracebackType

#: Items under way at once: enough that every stage always has one waiting.
UNDER_WAY = 6
#: A result takes a tenth of a second.
_GUARD_S = 30.0


class Flow:
    """Both ends of the pipeline.

    Attributes:
        items: Results that came out.
        wrong: Those that differ from what the whole model says.
    """

    def __init__(
        self,
        source: connection.Connection[plumbing.Item, plumbing.Item],
        sink: connection.Connection[plumbing.Item, plumbing.Item],
    ) -> None:
        self._source = source
        self._sink = sink
        self._sent = 0
        self.items = 0
        self.wrong = 0

    def measure(self, count: int) -> float:
        """Sends so many items through and waits for all; returns results a second while the pipeline was full.

        It is one over the median time between two results, so that a moment in which the machine was busy elsewhere
        counts for no more than it is.

        Raises:
            RuntimeError: Nothing comes out any more.
        """
        for _ in range(min(UNDER_WAY, count)):
            self._send()
        times = []
        for done in range(count):
            number, result = self._take()
            times.append(time.monotonic())
            if done + UNDER_WAY < count:
                self._send()
            self.items += 1
            self.wrong += not np.allclose(result, layers.reference(number))
        # The first results come while the pipeline fills.
        first = min(UNDER_WAY, count - 2)
        return 1.0 / median(later - earlier for earlier, later in pairwise(times[first:]))

    def _send(self) -> None:
        self._source.send((self._sent, layers.prompt(self._sent)))
        self._sent += 1

    def _take(self) -> plumbing.Work:
        if not self._sink.poll(_GUARD_S):
            raise RuntimeError(f"nothing came out of the pipeline for {_GUARD_S:g} s")
        item = self._sink.recv()
        if item is None:
            raise RuntimeError("the pipeline has ended")
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._source.send(None)
        self._source.close()
        self._sink.close()
