"""Memory of control groups, version 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Where the unified hierarchy is mounted.
CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit and the group that has it.

    Attributes:
        group: Directory of the group.
        limit_bytes: Its ``memory.max``.
    """

    group: Path
    limit_bytes: int


def tightest_limit(proc_root: Path, cgroup_root: Path = CGROUP_ROOT) -> MemoryLimit | None:
    """The lowest ``memory.max`` from this process's group up to the root; ``None`` when nothing limits it."""
    limits = []
    for group in _own_groups(proc_root, cgroup_root):
        try:
            text = (group / "memory.max").read_text().strip()
        except (FileNotFoundError, NotADirectoryError):
            continue  # The root group has none, and version 1 has other files.
        if text.isdecimal():
            limits.append(MemoryLimit(group, int(text)))
    return min(limits, key=lambda limit: limit.limit_bytes, default=None)


def current_bytes(group: Path) -> int:
    """``memory.current`` of a group.

    Raises:
        OSError: It cannot be read or is no number.
    """
    path = group / "memory.current"
    text = path.read_text().strip()
    if not text.isdecimal():
        raise OSError(f"{path} says {text[:40]!r}, which is no number of bytes")
    return int(text)


def _own_groups(proc_root: Path, cgroup_root: Path) -> list[Path]:
    try:
        lines = (proc_root / "self" / "cgroup").read_text().splitlines()
    except FileNotFoundError:
        return []
    relative = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    # A path that leaves the mount belongs to another namespace's view and names nothing here.
    if relative is None or ".." in Path(relative).parts:
        return []
    group = cgroup_root / relative
    return [group, *(parent for parent in group.parents if parent.is_relative_to(cgroup_root))]
