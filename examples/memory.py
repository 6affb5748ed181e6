"""What a process really holds, asked from the kernel, and how it gives freed memory back.

The proportional set size (PSS) counts a page that several processes share once in total, so the sizes of several
workers can be added up. It never exceeds the resident set size (RSS).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_PROC = Path("/proc")
#: `M_ARENA_MAX` of glibc's mallopt(3).
_M_ARENA_MAX = -8


def proportional_bytes(pid: int | str = "self") -> int:
    """PSS of one process in bytes.

    Raises:
        OSError: The process is gone, or belongs to somebody else.
    """
    return _rollup(pid, "Pss:")


def resident_bytes(pid: int | str = "self") -> int:
    """RSS of one process in bytes: what its PSS would be if it shared nothing.

    Raises:
        OSError: The process is gone, or belongs to somebody else.
    """
    return _rollup(pid, "Rss:")


def tree(pid: int) -> list[int]:
    """The process and its living descendants; empty when it is gone."""
    found: list[int] = []
    pending = [pid]
    while pending:
        current = pending.pop()
        try:
            tasks = sorted((_PROC / str(current) / "task").iterdir())
            children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append(current)
        pending.extend(children)
    return found


def tree_proportional_bytes(pid: int) -> int:
    """Σ PSS of the process and its descendants in bytes; 0 when it is gone."""
    total = 0
    for member in tree(pid):
        try:
            total += proportional_bytes(member)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def return_freed_pages() -> None:
    """Makes the allocator give pages it keeps for later back to the kernel; does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def use_one_arena() -> None:
    """Stops glibc from giving each thread a heap of its own; does nothing without glibc.

    An engine that is reloaded starts new threads each time. With a heap for each of them tens of megabytes of freed
    memory stay behind, which no directive can reclaim. Call it before the first thread is started.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def _rollup(pid: int | str, name: str) -> int:
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    # A process without an address space (a zombie, on some kernels) has an empty file.
    return 0
