"""What the kernel says about processes and memory under one mounted ``/proc``.

Every reader here tolerates processes that vanish while they are read. Absence is an answer (``None``, zero or an empty
list, as documented), a refusal by the kernel is a ``PermissionError``, so that unknown is never taken for zero.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from arbiter_sidecar.types import Process

#: Positions after the closing parenthesis of the command name in ``/proc/<pid>/stat``.
_STATE, _PARENT, _THREADS, _START_TIME = 0, 1, 17, 19
#: One read takes a whole stat, status or smaps_rollup file; longer files are read in several.
_CHUNK_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Stat:
    """One process as the kernel describes it.

    Attributes:
        process: Identity.
        parent: Process id of the parent; 0 for a process without one that we can see.
        exited: Every thread has exited; only the exit status is still there to be collected.
    """

    process: Process
    parent: int
    exited: bool


@dataclass(frozen=True, slots=True)
class Resident:
    """Memory of one process.

    Attributes:
        size_bytes: Proportional share (PSS): pages shared by n processes count 1/n for each.
        estimated: The kernel has no proportional share; this is resident memory that is not shared.
    """

    size_bytes: int
    estimated: bool = False


class ProcFs:
    """Reads one mounted ``/proc``."""

    __slots__ = ("_lists_children", "_page_bytes", "root")

    def __init__(self, root: Path = Path("/proc")) -> None:
        self.root = root
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        # A build option of the kernel; without it children are found by reading every process.
        self._lists_children = (root / "thread-self" / "children").exists()

    def pids(self) -> list[int]:
        """Every process id that is visible now."""
        return [int(name) for name in os.listdir(self.root) if name.isdecimal()]

    def stat(self, pid: int) -> Stat | None:
        """The process that has this id now; ``None`` when there is none that we can see.

        Raises:
            PermissionError: There is one, and the kernel does not describe it to us.
        """
        text = self._text(pid, "stat")
        return None if text is None else _parse_stat(pid, text)

    def alive(self, process: Process) -> bool:
        """True while exactly this process runs, or is there and cannot be looked at."""
        try:
            stat = self.stat(process.pid)
        except PermissionError:
            return True
        return stat is not None and stat.process == process and not stat.exited

    @property
    def lists_children(self) -> bool:
        """True where the kernel lists the children of a process, so that no pass over the machine is needed."""
        return self._lists_children

    def children(self, pid: int) -> list[int]:
        """Process ids of the direct children; needs ``lists_children``.

        A child born or adopted during the reading may be missing; one that is not readable has none.
        """
        # Each thread has its own children.
        try:
            threads = os.listdir(self.root / str(pid) / "task")
            texts = [self._text(pid, f"task/{thread}/children") for thread in threads]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return []
        return [int(word) for text in texts if text for word in text.split()]

    def all_children(self) -> dict[int, list[int]]:
        """Process ids of the direct children of every process, from one pass over the machine."""
        found: dict[int, list[int]] = {}
        for pid in self.pids():
            try:
                stat = self.stat(pid)
            except PermissionError:
                continue  # A process we may not look at cannot be placed in a tree.
            if stat is not None:
                found.setdefault(stat.parent, []).append(pid)
        return found

    def resident(self, pid: int) -> Resident:
        """Memory of a process; zero bytes when it is gone.

        Raises:
            PermissionError: It is there, and the kernel does not tell us.
        """
        text = self._text(pid, "smaps_rollup")
        if text is not None:
            return Resident(_kib_field(text, b"Pss:") or 0)
        statm = self._text(pid, "statm")
        if statm is None:
            return Resident(0)
        _, resident_pages, shared_pages, *_ = (int(word) for word in statm.split())
        return Resident(max(0, resident_pages - shared_pages) * self._page_bytes, estimated=resident_pages > 0)

    def meminfo(self, name: str) -> int:
        """Bytes in one line of ``/proc/meminfo``, such as ``MemTotal``.

        Raises:
            OSError: The file or the line is not there.
        """
        path = self.root / "meminfo"
        value = _kib_field(path.read_bytes(), name.encode() + b":")
        if value is None:
            raise OSError(f"{path} has no line {name}")
        return value

    def namespace_pids(self, pid: int | str) -> list[int]:
        """The ids of a process from the namespace of this mount inwards; empty when it is gone or the kernel is old.

        Raises:
            PermissionError: The kernel does not describe the process to us.
        """
        text = self._text(pid, "status")
        for line in (text or b"").splitlines():
            if line.startswith(b"NSpid:"):
                return [int(word) for word in line.split()[1:]]
        return []

    def open_files(self, pid: int | str) -> dict[int, str]:
        """What each file descriptor of a process points at; empty when the process is gone.

        Raises:
            PermissionError: The kernel does not show us the descriptors.
        """
        folder = self.root / str(pid) / "fd"
        found: dict[int, str] = {}
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, ProcessLookupError):
            return found
        for name in names:
            try:
                found[int(name)] = os.readlink(folder / name)
            except (FileNotFoundError, ProcessLookupError):
                continue  # Closed meanwhile.
        return found

    def fdinfo(self, pid: int | str, descriptor: int) -> str:
        """What the kernel and the driver say about one descriptor; empty when it has been closed meanwhile.

        Raises:
            PermissionError: The kernel does not show it to us.
        """
        text = self._text(pid, f"fdinfo/{descriptor}")
        return (text or b"").decode("utf-8", "replace")

    def _text(self, pid: int | str, name: str) -> bytes | None:
        try:
            descriptor = os.open(f"{self.root}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            return None
        try:
            chunks: list[bytes] = []
            while chunk := os.read(descriptor, _CHUNK_BYTES):
                chunks.append(chunk)
            return b"".join(chunks)
        except ProcessLookupError:
            return None
        finally:
            os.close(descriptor)


def _parse_stat(pid: int, text: bytes) -> Stat | None:
    # The command name may hold spaces and parentheses; the last one closes it.
    fields = text[text.rfind(b")") + 2 :].split()
    if len(fields) <= _START_TIME:
        return None
    # A leader that left while other threads run on is a zombie by its letter and alive in fact.
    exited = fields[_STATE] in (b"Z", b"X", b"x") and int(fields[_THREADS]) <= 1
    return Stat(Process(pid, int(fields[_START_TIME])), int(fields[_PARENT]), exited)


def _kib_field(text: bytes, name: bytes) -> int | None:
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None
