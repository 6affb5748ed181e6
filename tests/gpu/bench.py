"""What every check works with: the probe of one card, and processes that hold its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arbiter_sidecar.adapters import procfs
from arbiter_sidecar.types import Attribution, DeviceSample, Process

if TYPE_CHECKING:
    from types import TracebackType

    from arbiter_sidecar.adapters import nvml

#: Seconds after which waiting for the driver is a failure.
GUARD_S = 30.0
#: Seconds between looks while a change is awaited; finer than any lag that matters to a lease of three seconds.
_LOOK_S = 0.002


class Worker:
    """A process with a CUDA context on the card."""

    def __init__(self, device_id: str) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": device_id},
            process_group=0,
        )
        self._expect("ready")
        stat = procfs.ProcFs().stat(self._popen.pid)
        assert stat is not None, "the worker is not visible in /proc"
        self.process: Process = stat.process

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # It ends with its input and collects its children first: one that was killed beside it would be left to
            # somebody else to collect, and be there until then.
            self._popen.communicate(timeout=GUARD_S)
        finally:
            if self._popen.poll() is None:
                os.killpg(self._popen.pid, signal.SIGKILL)
                self._popen.wait(GUARD_S)

    def tell(self, command: str) -> None:
        """Sends one command and waits until it is done."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(command + "\n")
        self._popen.stdin.flush()
        self._expect("done")

    def kill(self) -> None:
        """Kills it with SIGKILL and collects it."""
        self._popen.kill()
        self._popen.wait(GUARD_S)

    def _expect(self, word: str) -> None:
        assert self._popen.stdout is not None
        answer = self._popen.stdout.readline().strip()
        assert answer == word, f"the CUDA worker said {answer!r} and not {word!r}; its error is above"


@dataclass(frozen=True, slots=True)
class Bench:
    """One card under measurement."""

    probe: nvml.NvmlProbe

    @property
    def attributes(self) -> bool:
        """True when the memory of each process can be measured here."""
        return self.probe.facts.attribution in (Attribution.PER_PROCESS, Attribution.TRANSLATED)

    def worker(self) -> Worker:
        """A new process with a context on the card."""
        return Worker(self.probe.facts.device_id)

    def sample(self, *holders: Process) -> DeviceSample:
        """One sample."""
        return self.probe.sample(holders)

    def held(self, holder: Process) -> int:
        """Bytes of one holder's tree; unknown is a failure."""
        size = self.sample(holder).held_bytes[holder]
        assert size is not None, "the driver does not say what the holder uses"
        return size

    def used(self) -> int:
        """Bytes in use on the whole card; unknown is a failure."""
        size = self.sample().used_bytes
        assert size is not None, "the driver does not say what is in use"
        return size

    def lag(self, what: str, condition: Callable[[], bool]) -> float:
        """Seconds until ``condition`` holds."""
        begin = time.monotonic()
        while not condition():
            assert time.monotonic() - begin < GUARD_S, f"{what}: not within {GUARD_S:g} s"
            time.sleep(_LOOK_S)
        return time.monotonic() - begin
