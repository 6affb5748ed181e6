"""Which holder a process belongs to: the nearest of its ancestors that holds something.

Membership is remembered. When the process between a holder and its grandchild dies, the kernel hands the grandchild to
init and the link is lost; the same happens to every child of a holder that was killed. Their memory is still the
holder's, so a process that was seen in a tree stays in it until it exits or nobody asks for the holder any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from arbiter_sidecar.adapters import procfs
from arbiter_sidecar.types import Process

#: Parents followed upwards at most. Real trees are a few levels deep; the bound keeps a torn read from looping.
_MAX_DEPTH = 64


class Lineage:
    """Finds and remembers the processes of each holder. One instance per probe; not thread-safe."""

    __slots__ = ("_proc", "_remembered")

    def __init__(self, proc: procfs.ProcFs) -> None:
        self._proc = proc
        #: Member to holder, of the last answer.
        self._remembered: dict[Process, Process] = {}

    def trees(self, holders: Sequence[Process]) -> dict[Process, set[int]]:
        """The living processes under each holder, itself included; a process is in one tree only.

        A holder below another holder has a tree of its own, which is not part of the other's.
        """
        found: dict[Process, set[int]] = {holder: set() for holder in holders}
        living = {holder for holder in found if self._proc.alive(holder)}
        orphans = [(member, holder) for member, holder in self._remembered.items() if holder in found]
        owner = {holder.pid: holder for holder in living}
        children = self._proc.children if self._proc.lists_children else _Census(self._proc)
        # The orphans of the dead come before the walk, or whoever adopted them would be taken for their holder.
        for member, holder in orphans:
            if holder not in living and member.pid not in owner and self._proc.alive(member):
                owner[member.pid] = holder
        _descend(owner, set(owner), children)
        for member, holder in orphans:
            if member.pid not in owner and self._proc.alive(member):
                owner[member.pid] = holder
                _descend(owner, {member.pid}, children)
        self._remembered = {}
        for pid, holder in owner.items():
            if pid == holder.pid or self._remember(pid, holder):
                found[holder].add(pid)
        return found

    def owners(self, pids: Collection[int], holders: Collection[Process]) -> dict[int, Process]:
        """The holder of each of ``pids``; those that are nobody's are missing.

        Costs a few reads per process id and none for the rest of the machine. A process id that is no longer in
        ``/proc`` belongs to the holder that had it, or under whom it was last seen: a driver may list what has exited.
        """
        asked = frozenset(holders)
        found: dict[int, Process] = {}
        members: dict[Process, Process] = {}
        for pid in pids:
            try:
                stat = self._proc.stat(pid)
            except PermissionError:
                continue  # We identified every holder, so what we may not look at is a stranger.
            member, holder = self._last_owner(pid, asked) if stat is None else (stat.process, self._owner(stat, asked))
            if member is not None and holder is not None:
                found[pid] = members[member] = holder
        self._remembered = members
        return found

    def _owner(self, stat: procfs.Stat, asked: frozenset[Process]) -> Process | None:
        last = self._remembered.get(stat.process)
        if last in asked and not self._proc.alive(last):
            return last
        current: procfs.Stat | None = stat
        for _ in range(_MAX_DEPTH):
            if current is None:
                break
            if current.process in asked:
                return current.process
            try:
                current = self._proc.stat(current.parent) if current.parent > 0 else None
            except PermissionError:
                break
        return last if last in asked else None

    def _last_owner(self, pid: int, asked: frozenset[Process]) -> tuple[Process | None, Process | None]:
        own = max((holder for holder in asked if holder.pid == pid), key=lambda holder: holder.start_time, default=None)
        if own is not None:
            return own, own
        seen = ((member, holder) for member, holder in self._remembered.items() if member.pid == pid)
        return next(((member, holder) for member, holder in seen if holder in asked), (None, None))

    def _remember(self, pid: int, holder: Process) -> bool:
        """Remembers a member; False when it has exited."""
        try:
            stat = self._proc.stat(pid)
        except PermissionError:
            return True  # Not remembered: without its start time it could be confused with a later process.
        if stat is None or stat.exited:
            return False
        self._remembered[stat.process] = holder
        return True


def beside(guests: Mapping[Process, set[int]], holders: Mapping[Process, set[int]]) -> dict[Process, set[int]]:
    """The trees of guests without the processes that are in a holder's tree: those are the holder's."""
    held = set().union(*holders.values())
    return {guest: pids - held for guest, pids in guests.items()}


class _Census:
    """Children from one pass over the machine, made when first asked."""

    __slots__ = ("_children", "_proc")

    def __init__(self, proc: procfs.ProcFs) -> None:
        self._proc = proc
        self._children: dict[int, list[int]] | None = None

    def __call__(self, pid: int) -> list[int]:
        if self._children is None:
            self._children = self._proc.all_children()
        return self._children.get(pid, [])


def _descend(owner: dict[int, Process], start: set[int], children: Callable[[int], list[int]]) -> None:
    """Adds everything below ``start`` that has no owner yet, level by level."""
    level = start
    while level:
        fresh: set[int] = set()
        for parent in level:
            for pid in children(parent):
                if pid not in owner:
                    owner[pid] = owner[parent]
                    fresh.add(pid)
        level = fresh
