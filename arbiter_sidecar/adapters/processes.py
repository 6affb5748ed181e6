"""Notices the death of processes through pidfds, the moment it happens and without asking again."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from arbiter_sidecar.adapters import procfs
from arbiter_sidecar.types import Process

if TYPE_CHECKING:
    import asyncio

#: Seconds between looks at processes that the kernel gives us no pidfd for (old kernel, seccomp, out of descriptors).
#: Slow enough to cost nothing with a thousand of them, fast against the shortest lease time of three seconds.
LOOK_INTERVAL_S = 1.0


@dataclass(slots=True)
class _Watched:
    pidfd: int | None
    callbacks: list[Callable[[Process], None]] = field(default_factory=list)


class PidfdWatch:
    """Knows processes and notices their death; implements the process watch port.

    Used on the thread of ``loop`` only. Where the kernel refuses a pidfd the process is looked at every
    ``LOOK_INTERVAL_S`` seconds instead.
    """

    __slots__ = ("_look", "_loop", "_proc", "_watched")

    def __init__(self, loop: asyncio.AbstractEventLoop, proc: procfs.ProcFs | None = None) -> None:
        self._loop = loop
        self._proc = proc or procfs.ProcFs()
        self._watched: dict[Process, _Watched] = {}
        self._look: asyncio.TimerHandle | None = None

    def identify(self, pid: int) -> Process | None:
        """The process that has this id now; ``None`` when there is none that we can see, or it has exited."""
        if pid <= 0:  # What the kernel says of a peer in a namespace that we cannot see.
            return None
        try:
            stat = self._proc.stat(pid)
        except PermissionError:
            return None
        return None if stat is None or stat.exited else stat.process

    def watch(self, process: Process, on_exit: Callable[[Process], None]) -> bool:
        """Calls ``on_exit`` once, on the event loop, when ``process`` has exited; False when it is gone already."""
        watched = self._watched.get(process)
        if watched is None:
            watched = self._begin(process)
            if watched is None:
                return False
            self._watched[process] = watched
        watched.callbacks.append(on_exit)
        return True

    def signal(self, process: Process, number: int) -> bool:
        """Sends a signal through the pidfd of a watched process; False when there is none, or it is not allowed."""
        watched = self._watched.get(process)
        if watched is None or watched.pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(watched.pidfd, number)
        except OSError:
            return False
        return True

    def unwatch(self, process: Process) -> None:
        """Forgets every watch of ``process``; unknown ones are fine."""
        watched = self._watched.pop(process, None)
        if watched is not None:
            self._end(watched)

    def close(self) -> None:
        """Forgets everything and gives the descriptors back."""
        for process in list(self._watched):
            self.unwatch(process)
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _begin(self, process: Process) -> _Watched | None:
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return None
        except OSError:
            if self.identify(process.pid) != process:
                return None
            self._look_later()
            return _Watched(None)
        # Asked after opening: from here on the descriptor is this process's, whoever gets its id later.
        if self.identify(process.pid) != process:
            os.close(pidfd)
            return None
        self._loop.add_reader(pidfd, self._exited, process)
        return _Watched(pidfd)

    def _end(self, watched: _Watched) -> None:
        if watched.pidfd is not None:
            self._loop.remove_reader(watched.pidfd)
            os.close(watched.pidfd)

    def _exited(self, process: Process) -> None:
        watched = self._watched.pop(process, None)
        if watched is None:  # Another callback of this round forgot it.
            return
        self._end(watched)
        # The stack runs every callback even when one raises, and still lets the loop report what was raised.
        with contextlib.ExitStack() as calls:
            for callback in reversed(watched.callbacks):
                calls.callback(callback, process)

    def _look_later(self) -> None:
        if self._look is None:
            self._look = self._loop.call_later(LOOK_INTERVAL_S, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        unseen = [process for process, watched in self._watched.items() if watched.pidfd is None]
        gone = [process for process in unseen if not self._proc.alive(process)]
        if len(gone) < len(unseen):
            self._look_later()
        with contextlib.ExitStack() as calls:
            for process in gone:
                calls.callback(self._exited, process)
