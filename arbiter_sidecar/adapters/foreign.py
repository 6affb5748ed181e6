"""Memory of everything that holds no lease, on the host device: which part of the machine counts as foreign."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from arbiter_sidecar.adapters import cgroups, procfs

#: A list of process ids longer than this is refused; it is read with every sample.
_MAX_LISTED = 4096
_MAX_LIST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """What a foreign rule found.

    Attributes:
        size_bytes: Foreign bytes; ``None`` when they cannot be told.
        used_bytes: Use of everything the rule looks at, holders included; ``None`` when holders and foreign make it up.
        detail: What went wrong, for people.
        looked_at: The only processes of which the rule counts anything as foreign; ``None``: it counts all of them.
    """

    size_bytes: int | None
    used_bytes: int | None = None
    detail: str = ""
    looked_at: frozenset[int] | None = None


class Foreign(Protocol):
    """A rule for what counts as foreign."""

    def measure(self, held_bytes: int | None, tree_pids: Collection[int]) -> Measured:
        """Foreign bytes, given what all holders' trees use together (``None``: unknown) and who is in them.

        Raises:
            OSError: The source cannot be read.
        """


def parse(text: str, proc: procfs.ProcFs, cgroup_root: Path = cgroups.CGROUP_ROOT) -> Foreign:
    """The rule that a configured word names.

    Raises:
        ValueError: It is none of ``none``, ``machine``, ``cgroup:PATH`` and ``pids:FILE``.
    """
    word, _, place = text.partition(":")
    match word, place:
        case "none", "":
            return NoForeign()
        case "machine", "":
            return MachineForeign(proc)
        case "cgroup", place if place:
            return CgroupForeign(cgroup_root / place)
        case "pids", place if place:
            return ListedForeign(Path(place), proc)
    raise ValueError(f"host.foreign is {text!r}; it must be none, machine, cgroup:PATH or pids:FILE")


class NoForeign:
    """Nothing is foreign: the budget belongs to the holders."""

    __slots__ = ()

    def measure(self, held_bytes: int | None, tree_pids: Collection[int]) -> Measured:
        """Always zero."""
        del held_bytes, tree_pids
        return Measured(0, looked_at=frozenset())


class MachineForeign:
    """Everything on the machine that the holders do not account for."""

    __slots__ = ("_proc",)

    def __init__(self, proc: procfs.ProcFs) -> None:
        self._proc = proc

    def measure(self, held_bytes: int | None, tree_pids: Collection[int]) -> Measured:
        """``MemTotal - MemAvailable`` less the holders; unknown while a holder is."""
        del tree_pids
        used = max(0, self._proc.meminfo("MemTotal") - self._proc.meminfo("MemAvailable"))
        return _remainder(used, held_bytes)


class CgroupForeign:
    """Everything in one control group, which contains the holders, that they do not account for."""

    __slots__ = ("_group",)

    def __init__(self, group: Path) -> None:
        self._group = group

    def measure(self, held_bytes: int | None, tree_pids: Collection[int]) -> Measured:
        """``memory.current`` less the holders; unknown while a holder is."""
        del tree_pids
        return _remainder(cgroups.current_bytes(self._group), held_bytes)


class ListedForeign:
    """The processes whose ids a file lists, one a line; holders' processes among them do not count twice."""

    __slots__ = ("_path", "_proc")

    def __init__(self, path: Path, proc: procfs.ProcFs) -> None:
        self._path = path
        self._proc = proc

    def measure(self, held_bytes: int | None, tree_pids: Collection[int]) -> Measured:
        """Sum of their memory; a listed process that has exited holds nothing."""
        del held_bytes
        total, listed = 0, self._listed()
        for pid in listed - set(tree_pids):
            try:
                total += self._proc.resident(pid).size_bytes
            except PermissionError:
                return Measured(None, detail=f"listed process {pid} cannot be read (permission denied)")
        return Measured(total, looked_at=listed)

    def _listed(self) -> frozenset[int]:
        with self._path.open("rb") as file:
            text = file.read(_MAX_LIST_BYTES + 1)
        words = text.decode("utf-8", "replace").split("\n")
        if len(text) > _MAX_LIST_BYTES or len(words) > _MAX_LISTED:
            raise OSError(f"{self._path} is longer than {_MAX_LISTED} lines or {_MAX_LIST_BYTES} bytes")
        for number, word in enumerate(words, start=1):
            if word.strip() and not word.strip().isdecimal():
                raise OSError(f"{self._path} line {number}: {word.strip()[:40]!r} is not a process id")
        return frozenset(int(word) for word in words if word.strip())


def _remainder(used: int, held_bytes: int | None) -> Measured:
    if held_bytes is None:
        return Measured(None, used_bytes=used)
    return Measured(max(0, used - held_bytes), used_bytes=max(used, held_bytes))
