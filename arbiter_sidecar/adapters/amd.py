"""AMD GPUs through the kernel's own files, which need no package and no tool."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arbiter_sidecar.adapters import drm, lineage, procfs
from arbiter_sidecar.policy import capacity
from arbiter_sidecar.types import Attribution, DeviceFacts, DeviceId, DeviceKind, DeviceSample, Guest, Process

#: ``card0`` is a card; ``card0-DP-1`` is one of its connectors.
_CARD = re.compile(r"card(\d+)")
_TOTAL, _USED = "mem_info_vram_total", "mem_info_vram_used"


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdConfig:
    """How AMD GPUs are found.

    Attributes:
        cap_bytes: Size that is assumed at most, for every card.
        drm_root: Where the kernel lists graphics cards.
        device_root: Where their device files are.
        proc_root: The ``/proc`` of the processes that we identify.
    """

    cap_bytes: int | None = None
    drm_root: Path = field(default=Path("/sys/class/drm"))
    device_root: Path = field(default=Path("/dev/dri"))
    proc_root: Path = field(default=Path("/proc"))


def find(config: AmdConfig) -> tuple[list[SysfsProbe], list[str]]:
    """A probe for every AMD card that tells its memory, and a line about each one that does not."""
    probes: list[SysfsProbe] = []
    notes: list[str] = []
    places = {int(match[1]): entry for entry, match in _entries(config.drm_root) if match is not None}
    for index, entry in sorted(places.items()):
        card = entry / "device"
        if not (card / _TOTAL).exists():
            continue  # Another vendor's, or a display without memory of its own.
        try:
            probe = SysfsProbe(card, index=index, config=config)
        except OSError as error:
            notes.append(f"AMD card {index} is left out: {error}")
            continue
        if probe.facts.capacity_bytes > 0:
            probes.append(probe)
        else:
            # Integrated graphics: a small piece of the machine's memory, which is arbitrated as host memory.
            notes.append(f"AMD card {index} is left out: its {probe.facts.total_bytes} bytes are less than the reserve")
    return probes, notes


class SysfsProbe:
    """Measures one AMD card: totals from sysfs, processes from the descriptors they have open on it."""

    __slots__ = ("_card", "_facts", "_guest_lineage", "_lineage", "_pci_address", "_proc")

    def __init__(self, card: Path, *, index: int, config: AmdConfig) -> None:
        """
        Raises:
            OSError: The card's memory cannot be read.
        """
        self._card = card
        self._proc = procfs.ProcFs(config.proc_root)
        self._lineage, self._guest_lineage = lineage.Lineage(self._proc), lineage.Lineage(self._proc)
        self._pci_address = _pci_address(card)
        total = _number(card / _TOTAL)
        visible = _shows_memory(card, self._proc, config.device_root, self._pci_address)
        self._facts = DeviceFacts(
            device_id=DeviceId(_unique_id(card) or self._pci_address),
            name=_optional(card / "product_name") or f"AMD GPU {self._pci_address}",
            index=index,
            kind=DeviceKind.AMD,
            total_bytes=total,
            capacity_bytes=capacity.usable_bytes(total, config.cap_bytes),
            attribution=Attribution.PER_PROCESS if visible else Attribution.DEVICE_ONLY,
        )

    @property
    def facts(self) -> DeviceFacts:
        """What sysfs said at the start."""
        return self._facts

    def sample(self, holders: Sequence[Process], guests: Sequence[Process] = ()) -> DeviceSample:
        """Measures the card, and the trees of holders and guests where the kernel tells.

        Raises:
            OSError: The card's use cannot be read.
        """
        try:
            used = _number(self._card / _USED)
        except FileNotFoundError as error:
            return DeviceSample(
                self._facts.device_id, None, dict.fromkeys(holders), lost=True, detail=f"the card is gone ({error})"
            )
        if self._facts.attribution is Attribution.DEVICE_ONLY:
            return DeviceSample(self._facts.device_id, used, dict.fromkeys(holders))
        remarks: list[str] = []
        trees = self._lineage.trees(holders)
        held = {holder: self._tree_bytes(pids, remarks) for holder, pids in trees.items()}
        known = [size for size in held.values() if size is not None]
        foreign = max(0, used - sum(known)) if len(known) == len(held) else None
        found = {
            guest: size
            for guest, pids in lineage.beside(self._guest_lineage.trees(guests), trees).items()
            if (size := self._tree_bytes(pids, [])) is not None
        }
        visitors = {guest: Guest(size, size) for guest, size in found.items()}
        return DeviceSample(self._facts.device_id, used, held, foreign, detail="; ".join(remarks), guests=visitors)

    def close(self) -> None:
        """Nothing to let go of."""

    def _tree_bytes(self, pids: set[int], remarks: list[str]) -> int | None:
        try:
            return drm.vram_bytes(self._proc, sorted(pids), self._pci_address)
        except PermissionError as error:
            remarks.append(f"a holder's descriptors cannot be read ({error}): run the arbiter as the same user")
            return None


def _entries(root: Path) -> list[tuple[Path, re.Match[str] | None]]:
    try:
        return [(entry, _CARD.fullmatch(entry.name)) for entry in root.iterdir()]
    except FileNotFoundError:
        return []


def _shows_memory(card: Path, proc: procfs.ProcFs, device_root: Path, pci_address: str) -> bool:
    """True when the kernel tells, of a descriptor of our own on this card, how much video memory it uses."""
    nodes = sorted(node.name for node in (card / "drm").glob("renderD*"))
    for node in nodes:
        try:
            descriptor = os.open(device_root / node, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # Not in the container, or not in the render group: then we see no memory of others either.
        try:
            if any(True for _ in drm.clients(proc, "self", pci_address)):
                return True
        finally:
            os.close(descriptor)
    return False


def _pci_address(card: Path) -> str:
    for line in _optional(card / "uevent").splitlines():
        if line.startswith("PCI_SLOT_NAME="):
            return line.partition("=")[2]
    return card.resolve().name


def _unique_id(card: Path) -> str:
    """``GPU-`` and sixteen hexadecimal digits, as AMD's tools write it; empty for cards that have none."""
    text = _optional(card / "unique_id")
    return f"GPU-{text}" if text.strip("0") else ""


def _optional(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = path.read_text().strip()
    if not text.isdecimal():
        raise OSError(f"{path} says {text[:40]!r}, which is no number of bytes")
    return int(text)
