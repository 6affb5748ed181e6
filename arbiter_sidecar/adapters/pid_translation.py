"""From the process ids that a driver reports to those that we see.

A driver counts in the host's namespace, or in ours, or in neither, depending on its version and on how the container
was started. Nothing here is configured: the start-up check looks at what is listed and decides.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from arbiter_sidecar.adapters import procfs

#: Inode of the first process namespace of every Linux machine: who is in it sees every process of the machine.
_FIRST_NAMESPACE = "pid:[4026531836]"


class Translation(Protocol):
    """Turns a driver's process ids into ours."""

    def ours(self, pids: Collection[int]) -> dict[int, int]:
        """Our ids of the processes that the driver calls ``pids``; those that we cannot see are missing."""


class SameIds:
    """The driver and we are in one namespace."""

    __slots__ = ()

    def ours(self, pids: Collection[int]) -> dict[int, int]:
        """The same ids."""
        return {pid: pid for pid in pids}


class HostIds:
    """The driver counts in the host's namespace, whose ``/proc`` is mounted somewhere."""

    __slots__ = ("_depth", "_host", "_last", "_proc")

    def __init__(self, proc: procfs.ProcFs, host: procfs.ProcFs) -> None:
        """
        Raises:
            OSError: ``host`` is no ``/proc`` of a namespace around ours.
        """
        own = host.namespace_pids("self")
        if not own:
            raise OSError(f"{host.root} does not show this process, so it is no /proc of a namespace around ours")
        self._proc = proc
        self._host = host
        #: How many namespaces lie between the host's and ours.
        self._depth = len(own) - 1
        self._last: dict[int, int] = {}

    def ours(self, pids: Collection[int]) -> dict[int, int]:
        """Our ids of processes of the host; those outside our namespace are missing.

        A process that has exited and is still listed keeps the id it had, as long as it is asked for.
        """
        found: dict[int, int] = {}
        for pid in pids:
            candidate = self._translate(pid)
            if candidate is not None:
                found[pid] = candidate
        self._last = found
        return dict(found)

    def _translate(self, pid: int) -> int | None:
        try:
            theirs = self._host.stat(pid)
            if theirs is None:
                return self._last.get(pid)
            ids = self._host.namespace_pids(pid)
            if len(ids) <= self._depth:
                return None
            ours = self._proc.stat(ids[self._depth])
        except PermissionError:
            return None
        # Another container at the same depth has the same small numbers, but not the same start time.
        if ours is None or theirs.process.start_time != ours.process.start_time:
            return None
        return ours.process.pid


def in_first_namespace(proc: procfs.ProcFs) -> bool:
    """True when this process sees every process of the machine."""
    try:
        return os.readlink(proc.root / "self" / "ns" / "pid") == _FIRST_NAMESPACE
    except OSError:
        return False


def listed_are_ours(pids: Collection[int], proc: procfs.ProcFs, device_files: str) -> bool:
    """True when at least one of ``pids`` is visible here with a file open whose path begins with ``device_files``.

    A visible number alone proves nothing: in a container every small number is somebody's.
    """
    for pid in pids:
        try:
            if any(target.startswith(device_files) for target in proc.open_files(pid).values()):
                return True
        except PermissionError:
            continue  # Somebody else's process proves nothing either way.
    return False


def host_ids(proc: procfs.ProcFs, host_proc: Path | None) -> HostIds | None:
    """The translation through a mounted host ``/proc``; ``None`` when there is none to use."""
    if host_proc is None:
        return None
    try:
        return HostIds(proc, procfs.ProcFs(host_proc))
    except OSError:
        return None
