"""The process that sends heartbeats for another one whose interpreter may be stuck.

Started by ``connect(heartbeat_mode="process")`` as ``python -m arbiter_client.beater``; speaks JSON lines on its
standard input and output, see ``beater_process``. It ends when its input ends, so it never outlives its parent, and it
stops renewing when the parent has shown no life for ``max_silence`` seconds, so a frozen parent cannot hold memory for
ever.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from arbiter.v1 import arbiter_service_pb2, arbiter_service_pb2_grpc
from arbiter_client import beats, grpc_transport, keepalive

if TYPE_CHECKING:
    from collections.abc import Sequence

_STDIN = 0
_STDOUT = 1


@dataclass(slots=True)
class _Renewed:
    """A lease that is kept alive."""

    ttl: float
    interval: float


class Beater:
    """Keeps a set of handles alive."""

    def __init__(self, target: str, max_silence: float, parent: int) -> None:
        self._target = target
        self._parent = parent
        self._max_silence = max_silence
        self._leases: dict[int, _Renewed] = {}
        #: Handles that are over and why, until the parent drops them: reports can be replaced before they are read.
        self._over: dict[int, str] = {}
        self._generation = 0
        self._asked_interval = 0.0
        self._failures = 0
        self._next_beat_at: float | None = None
        self._sign_at = time.monotonic()
        self._channel: grpc.Channel | None = None
        self._unsent = b""
        self._begun = False

    def run(self, unread: bytes) -> None:
        """Works until standard input ends.

        Args:
            unread: What was read from standard input beyond the greeting.
        """
        while True:
            *lines, unread = unread.split(b"\n")
            for line in lines:
                self._obey(line)
            now = time.monotonic()
            if self._next_beat_at is not None and now >= self._next_beat_at:
                self._beat(now)
            part = self._listen()
            # A child that the parent forked may still hold the other end of the input open.
            if part is None or os.getppid() != self._parent:
                return
            unread += part

    def _listen(self) -> bytes | None:
        due = None if self._next_beat_at is None else max(0.0, self._next_beat_at - time.monotonic())
        readable, writable, _ = select.select([_STDIN], [_STDOUT] if self._unsent else [], [], due)
        if writable:
            self._flush()
        if not readable:
            return b""
        return os.read(_STDIN, 65536) or None

    def _obey(self, line: bytes) -> None:
        told = json.loads(line)
        self._sign_at = time.monotonic()
        self._generation = int(told.get("g", self._generation))
        if "add" in told:
            lease = _Renewed(float(told["ttl"]), float(told["interval"]) or float(told["ttl"]) / 3)
            self._leases[int(told["add"])] = lease
            first = keepalive.first_beat(self._sign_at, lease.interval, random.random())
            self._next_beat_at = min(first, self._next_beat_at or first)
        elif "drop" in told:
            self._leases.pop(int(told["drop"]), None)
            self._over.pop(int(told["drop"]), None)
        if not self._leases:
            self._next_beat_at = None

    def _beat(self, now: float) -> None:
        shortest = min(lease.ttl for lease in self._leases.values())
        interval = keepalive.beat_interval(self._asked_interval, shortest)
        self._next_beat_at = keepalive.next_beat(now, interval, random.random())
        if now - self._sign_at > self._max_silence:
            return
        bad: list[tuple[int, str]] = []
        try:
            for handles in keepalive.split(list(self._leases), keepalive.MAX_HANDLES):
                bad += self._renew(handles, interval)
        except grpc.RpcError:
            # The next attempt gets a connection of its own, without the delays that this one has gathered.
            self._disconnect()
            self._failures += 1
            self._next_beat_at = time.monotonic() + keepalive.retry_delay(self._failures, interval, random.random())
            return
        self._failures = 0
        for handle, reason in bad:
            del self._leases[handle]
            self._over[handle] = reason
        self._report(now)
        if not self._leases:
            self._next_beat_at = None

    def _renew(self, handles: Sequence[int], interval: float) -> list[tuple[int, str]]:
        """Renews some handles; returns those that are over, with the reason."""
        if self._channel is None:
            self._channel = grpc.insecure_channel(self._target, grpc_transport.FRESH_OPTIONS)
        # Without a worker's name, since the parent's session numbers that worker's messages.
        answer = arbiter_service_pb2_grpc.ArbiterServiceStub(self._channel).Heartbeat(
            arbiter_service_pb2.HeartbeatRequest(handles=handles), timeout=interval
        )
        self._asked_interval = answer.next_heartbeat_interval.ToNanoseconds() / 1e9
        reasons = ((result.handle, beats.final_reason(result)) for result in answer.results)
        return [(handle, reason) for handle, reason in reasons if reason and handle in self._leases]

    def _report(self, now: float) -> None:
        report: dict[str, object] = {"t": now, "g": self._generation}
        if self._over:
            report["bad"] = list(self._over.items())
        line = json.dumps(report, separators=(",", ":")).encode() + b"\n"
        # When the parent does not read, the newest report replaces all that have not begun to leave.
        begun = self._unsent[: self._unsent.index(b"\n") + 1] if self._begun else b""
        self._unsent = begun + line
        self._flush()

    def _flush(self) -> None:
        try:
            written = os.write(_STDOUT, self._unsent)
        except BlockingIOError:
            return
        self._begun = written < len(self._unsent) and self._unsent[written - 1 : written] != b"\n"
        self._unsent = self._unsent[written:]

    def _disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def main() -> int:
    """Reads the greeting and works until the parent is gone."""
    os.set_blocking(_STDOUT, False)
    unread = b""
    while b"\n" not in unread:
        part = os.read(_STDIN, 65536)
        if not part:
            return 0
        unread += part
    first, unread = unread.split(b"\n", 1)
    greeting = json.loads(first)
    try:
        Beater(str(greeting["target"]), float(greeting["max_silence"]), int(greeting["parent"])).run(unread)
    except BrokenPipeError:
        # The parent is gone; that is the ordinary end.
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
