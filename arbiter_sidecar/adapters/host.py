"""Memory of the machine as a device: what is arbitrated where there is no GPU, or where a budget is configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arbiter_sidecar.adapters import cgroups, foreign, lineage, procfs
from arbiter_sidecar.policy import capacity
from arbiter_sidecar.types import Attribution, DeviceFacts, DeviceId, DeviceKind, DeviceSample, Guest, Process

#: The one host device of a machine.
HOST_ID = DeviceId("host")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """How host memory is arbitrated.

    Attributes:
        budget_bytes: Exactly this much may be leased; ``None``: the machine's memory less the reserve.
        cap_bytes: Without a budget, the size that is assumed at most; the reserve is taken from it.
        foreign: ``none``, ``machine``, ``cgroup:PATH`` or ``pids:FILE``; ``None``: ``none`` with a budget, else the
            control group that limits us, else ``machine``.
        proc_root: The ``/proc`` to read.
        cgroup_root: The unified control group hierarchy; ``PATH`` is relative to it unless absolute.
    """

    budget_bytes: int | None = None
    cap_bytes: int | None = None
    foreign: str | None = None
    proc_root: Path = field(default=Path("/proc"))
    cgroup_root: Path = field(default=cgroups.CGROUP_ROOT)


class HostMemoryProbe:
    """Measures the machine's memory by the proportional share of each holder's process tree."""

    __slots__ = ("_facts", "_foreign", "_foreign_word", "_guest_lineage", "_lineage", "_proc")

    def __init__(self, config: HostConfig) -> None:
        """
        Raises:
            ValueError: The budget is not positive or the foreign word is unknown.
            OSError: The machine's memory cannot be read.
        """
        if config.budget_bytes is not None and config.budget_bytes <= 0:
            raise ValueError(f"the host memory budget is {config.budget_bytes} bytes, it must be positive")
        self._proc = procfs.ProcFs(config.proc_root)
        self._lineage, self._guest_lineage = lineage.Lineage(self._proc), lineage.Lineage(self._proc)
        limit = cgroups.tightest_limit(config.proc_root, config.cgroup_root)
        machine = self._proc.meminfo("MemTotal")
        limited = limit is not None and limit.limit_bytes < machine
        total = limit.limit_bytes if limit is not None and limited else machine
        if config.foreign is not None:
            word = config.foreign
        elif config.budget_bytes is not None:
            word = "none"
        else:
            word = f"cgroup:{limit.group}" if limit is not None and limited else "machine"
        self._foreign_word = word
        self._foreign = foreign.parse(word, self._proc, config.cgroup_root)
        self._facts = _facts(config, total)

    @property
    def facts(self) -> DeviceFacts:
        """Size and capacity as found at the start, or as configured."""
        return self._facts

    @property
    def foreign_word(self) -> str:
        """The rule for foreign memory that is in force, as it would be configured."""
        return self._foreign_word

    def sample(self, holders: Sequence[Process], guests: Sequence[Process] = ()) -> DeviceSample:
        """Measures every tree of holders and guests once.

        A holder that is gone, and has left no process behind, holds 0; one that the kernel does not let us read is
        ``None``, and the detail says who.

        Raises:
            OSError: The kernel could not be asked.
        """
        trees = self._lineage.trees(holders)
        remarks: dict[str, None] = {}
        held = {holder: self._tree_bytes(pids, remarks) for holder, pids in trees.items()}
        known = [size for size in held.values() if size is not None]
        all_held = sum(known) if len(known) == len(held) else None
        measured = self._foreign.measure(all_held, {pid for pids in trees.values() for pid in pids})
        if measured.detail:
            remarks[measured.detail] = None
        used = measured.used_bytes
        if used is None and all_held is not None and measured.size_bytes is not None:
            used = all_held + measured.size_bytes
        return DeviceSample(
            HOST_ID,
            used_bytes=used,
            held_bytes=held,
            foreign_bytes=measured.size_bytes,
            machine_available_bytes=self._proc.meminfo("MemAvailable"),
            detail="; ".join(remarks),
            guests=self._guests(lineage.beside(self._guest_lineage.trees(guests), trees), measured),
        )

    def close(self) -> None:
        """Nothing to let go of."""

    def _guests(self, trees: Mapping[Process, set[int]], measured: foreign.Measured) -> dict[Process, Guest]:
        found = {}
        for guest, pids in trees.items():
            looked_at = pids if measured.looked_at is None else pids & measured.looked_at
            counted, other = self._tree_bytes(looked_at, {}), self._tree_bytes(pids - looked_at, {})
            if counted is not None and other is not None:
                found[guest] = Guest(held_bytes=counted + other, foreign_bytes=counted)
        return found

    def _tree_bytes(self, pids: set[int], remarks: dict[str, None]) -> int | None:
        total = 0
        for pid in sorted(pids):
            try:
                resident = self._proc.resident(pid)
            except PermissionError:
                remarks[f"process {pid} cannot be read (permission denied): run the arbiter as the same user"] = None
                return None
            if resident.estimated:
                remarks["the kernel has no proportional share (smaps_rollup): shared memory is not counted"] = None
            total += resident.size_bytes
        return total


def _facts(config: HostConfig, total: int) -> DeviceFacts:
    budget = config.budget_bytes
    return DeviceFacts(
        device_id=HOST_ID,
        name="host memory",
        index=0,
        kind=DeviceKind.HOST,
        total_bytes=budget if budget is not None else total,
        capacity_bytes=budget if budget is not None else capacity.usable_bytes(total, config.cap_bytes),
        attribution=Attribution.PER_PROCESS,
    )
