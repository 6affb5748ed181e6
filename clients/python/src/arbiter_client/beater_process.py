"""The parent's side of the process that sends heartbeats while this interpreter is stuck.

Lines of JSON travel both ways. Down: first a greeting, then changes to the set of leases, numbered, and signs of life.
Up: after each beat that was answered, when it was sent, which set it covered, and which leases were not renewed.
Monotonic time is the same for all processes of a machine, so the times need no translation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arbiter_client.holding import Holding


#: Range of ``max_silence``. Below, an ordinary pause would cost the lease. Above, the reports of the beats might not
#: fit into the pipe while nobody reads them: 600 s of the shortest interval, 0.8 s, are 750 lines of under 80 bytes; a
#: pipe holds 64 KiB.
MIN_SILENCE_S = 1.0
MAX_SILENCE_S = 600.0
#: Bytes to the beater that may wait while it is in a call. Reached only when it hangs.
MAX_UNSENT = 1 << 20
#: Shortest time between two signs of life; half the shortest ``max_silence``.
SIGN_EVERY_S = 0.5
#: How long the beater gets to leave after its input was closed.
EXIT_PATIENCE_S = 2.0


class BeaterProcess:
    """A spawned process that renews leases by handle. Methods may be called from any thread and never block for long.

    Attributes:
        heard_at: Monotonic time of the last beat that was answered; 0 before the first.
        failure: Why it can no longer be relied on; empty while it can.
    """

    def __init__(self, target: str, max_silence: float) -> None:
        """Starts the process.

        Args:
            target: gRPC target of the arbiter.
            max_silence: Seconds after the last sign of this process for which leases are still renewed; 1 to 600.

        Raises:
            ValueError: ``max_silence`` is out of range.
            OSError: The process cannot be started.
        """
        if not MIN_SILENCE_S <= max_silence <= MAX_SILENCE_S:
            raise ValueError(f"max_silence {max_silence} is not between {MIN_SILENCE_S:g} and {MAX_SILENCE_S:g} s")
        self.heard_at = 0.0
        self.failure = ""
        self._lock = threading.Lock()
        self._generation = 0
        self._holdings: dict[int, tuple[Holding, int]] = {}
        self._signed_at = 0.0
        self._unsent = bytearray()
        self._unread = bytearray()
        self._process = _spawn()
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("the beater process has no pipes")
        self._down = self._process.stdin.fileno()
        self._up = self._process.stdout.fileno()
        os.set_blocking(self._down, False)
        os.set_blocking(self._up, False)
        self._tell({"target": target, "max_silence": max_silence, "parent": os.getpid()})

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def add(self, holding: Holding) -> None:
        """Renews a lease from now on."""
        with self._lock:
            self._generation += 1
            self._holdings[holding.handle] = (holding, self._generation)
            self._tell({"add": holding.handle, "ttl": holding.ttl, "interval": holding.interval, "g": self._generation})

    def drop(self, holding: Holding) -> None:
        """Renews it no longer."""
        with self._lock:
            if self._holdings.pop(holding.handle, None) is not None:
                self._generation += 1
                self._tell({"drop": holding.handle, "g": self._generation})

    def sign(self, now: float) -> None:
        """Shows that this process lives, at most twice a second."""
        with self._lock:
            if now - self._signed_at >= SIGN_EVERY_S and not self._unsent:
                self._signed_at = now
                self._tell({})
            self._flush()

    def catch_up(self) -> None:
        """Takes over everything that the beater has reported so far."""
        with self._lock:
            self._read()

    def close(self, patience: float = EXIT_PATIENCE_S) -> None:
        """Lets the process end, and makes it end if it has not after ``patience`` seconds; may be called again."""
        with self._lock:
            self._fail("closed")
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: dict[str, int | float | str]) -> None:
        if self.failure:
            return
        self._unsent += json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        if self.failure or not self._unsent:
            return
        try:
            del self._unsent[: os.write(self._down, self._unsent)]
        except BlockingIOError:
            if len(self._unsent) > MAX_UNSENT:
                self._fail("it does not read")
        except OSError as error:
            self._fail(str(error))

    def _read(self) -> None:
        while not self.failure:
            try:
                part = os.read(self._up, 65536)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(str(error))
                return
            if not part:
                self._fail(f"exit status {self._process.poll()}")
                return
            self._unread += part
            *lines, rest = self._unread.split(b"\n")
            self._unread = bytearray(rest)
            for line in lines:
                self._take(bytes(line))

    def _take(self, line: bytes) -> None:
        told = json.loads(line)
        sent_at, generation = float(told["t"]), int(told["g"])
        bad = {int(handle): str(reason) for handle, reason in told.get("bad", ())}
        self.heard_at = max(self.heard_at, sent_at)
        for handle, (holding, since) in self._holdings.items():
            if handle in bad:
                holding.end(bad[handle])
            elif since <= generation:
                holding.renewed(sent_at)

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why


def _spawn() -> subprocess.Popen[bytes]:
    # Spawned and not forked: gRPC's threads do not survive a fork. The new interpreter finds its modules where this one
    # does, and a session of its own keeps the terminal's Ctrl-C away: it ends when its input ends.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "arbiter_client.beater"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=environment,
        start_new_session=True,
    )
