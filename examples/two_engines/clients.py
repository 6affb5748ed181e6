"""The people who use an engine: so many conversations at a time, each asking again when it was answered."""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from examples.first_light.processes import Child

PROMPTS = (
    "when the card is full the arbiter",
    "a good neighbour",
    "a worker that wakes up",
    "sometimes a worker dies",
    "a directive says",
    "the memory returns",
)
#: Words of answers, in turn: with the prompt at most three blocks, and not all ending in the same step.
ANSWER_TOKENS = (36, 24, 32, 28, 34, 26, 30)


class Load:
    """Talks to one engine over its pipes, and remembers what it says. Methods may be called from any thread.

    Args:
        child: The engine, started with pipes.
        priority: Of its requests.
    """

    def __init__(self, child: Child, priority: str) -> None:
        self.child = child
        self._priority = priority
        self._questions = zip(itertools.cycle(PROMPTS), itertools.cycle(ANSWER_TOKENS), strict=False)
        self._lock = threading.Lock()
        self._wanted = 0
        self._open = 0
        self._over_since: float | None = None
        self.resident = self.made = self.running = self.dropped = self.answered = 0
        self.at = 0.0
        self.over_s = 0.0
        self.lease_id = ""
        self.confirmed: int | None = None
        self.failure = ""
        self._reader = threading.Thread(target=self._read, name=f"load of {child.name}", daemon=True)
        self._reader.start()

    def clients(self, number: int) -> None:
        """So many people talk to it from now on; those that are too many hang up unless they are being answered."""
        with self._lock:
            if number < self._wanted:
                self._write({"hang_up": True})
            self._wanted = number
            self._ask()

    def preempt(self, tokens: int) -> None:
        """Has the engine take tokens from the less important."""
        with self._lock:
            self._write({"preempt": tokens})

    def close(self) -> None:
        """Ends its input, which ends the engine, and waits until everything it said was read."""
        with self._lock:
            self._wanted = 0
            if self.child.process.stdin is not None:
                try:
                    self.child.process.stdin.close()
                except BrokenPipeError:
                    # It has gone already; what could not be written is of no interest.
                    self._open = 0

    def join(self, limit_s: float) -> None:
        """Waits until everything it said was read."""
        self._reader.join(limit_s)

    def _ask(self) -> None:
        while self._open < self._wanted:
            self._open += 1
            prompt, tokens = next(self._questions)
            self._write({"prompt": prompt, "tokens": tokens, "priority": self._priority})

    def _write(self, order: dict[str, str | int]) -> None:
        assert self.child.process.stdin is not None
        try:
            self.child.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.child.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            # It has ended, which the stage finds out by itself.
            self._wanted = 0

    def _read(self) -> None:
        assert self.child.process.stdout is not None
        with self.child.process.stdout as lines:
            for line in lines:
                with self._lock:
                    self._take(json.loads(line))

    def _take(self, event: dict[str, str | int | float]) -> None:
        match event:
            case {"event": "round", "at": float(at), "limit": int(limit), "resident": int(resident)}:
                self.at, self.resident = at, resident
                self.made, self.running = int(event["made"]), int(event["running"])
                self._over_since = None if resident <= limit else self._over_since or at
                if self._over_since is not None:
                    self.over_s = max(self.over_s, at - self._over_since)
            case {"event": "answer"}:
                self._open -= 1
                self.answered += 1
                self._ask()
            case {"event": "hung_up", "requests": int(requests)}:
                self._open -= requests
                self._ask()
            case {"event": "leased", "lease_id": str(lease_id)}:
                self.lease_id = lease_id
            case {"event": "dropped", "conversations": int(conversations)}:
                self.dropped += conversations
            case {"event": "preempted", "confirmed": int(confirmed), "detail": str(detail)}:
                self.confirmed = confirmed
                self.failure = detail
            case {"event": "failed" | "lease_lost", "detail": str(detail)}:
                self.failure = detail

    def wait_leased(self, limit_s: float) -> None:
        """Returns when the engine has its lease.

        Raises:
            RuntimeError: It ended, or did not get one in time.
        """
        deadline = time.monotonic() + limit_s
        while not self.lease_id:
            if self.child.exit_code is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.child.name} has no lease ({self.failure or 'it was not ready in time'})")
            time.sleep(0.02)
