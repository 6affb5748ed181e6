"""Measures what the workers hold, ten times a second, without asking the arbiter or the workers."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from examples import memory

_PAUSE_S = 0.1


class Meter:
    """Samples the process trees of the workers on a thread of its own."""

    __slots__ = ("_failure", "_latest", "_lock", "_peak", "_pids", "_samples", "_stop", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pids: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        self._peak = 0
        self._samples = 0
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def start(self) -> None:
        """Begins to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; returns when the last sample has been taken. Without effect before `start`."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def follow(self, name: str, pid: int) -> None:
        """Counts the tree under `pid` as this worker's from now on; a process that is gone counts 0."""
        with self._lock:
            self._pids[name] = pid

    def latest(self) -> Mapping[str, int]:
        """Bytes of each worker in the newest sample."""
        with self._lock:
            return dict(self._latest)

    @property
    def peak_bytes(self) -> int:
        """The largest sum over the workers in any sample."""
        with self._lock:
            return self._peak

    @property
    def samples(self) -> int:
        """How many samples were taken."""
        with self._lock:
            return self._samples

    @property
    def failure(self) -> str:
        """Why sampling ended by itself; empty while it goes on."""
        with self._lock:
            return self._failure

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            with self._lock:
                pids = dict(self._pids)
            try:
                sizes = {name: memory.tree_proportional_bytes(pid) for name, pid in pids.items()}
            except OSError as error:
                with self._lock:
                    self._failure = f"memory could not be measured: {error}"
                return
            with self._lock:
                self._latest = sizes
                self._peak = max(self._peak, sum(sizes.values()))
                self._samples += 1
