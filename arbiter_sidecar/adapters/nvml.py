"""NVIDIA GPUs and MIG slices, each as a device of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arbiter_sidecar.adapters import lineage, nvml_driver, pid_translation, procfs
from arbiter_sidecar.policy import capacity
from arbiter_sidecar.types import MIB, Attribution, DeviceFacts, DeviceId, DeviceKind, DeviceSample, Guest, Process

#: The environment variable by which container runtimes cap a card's memory; with ``_<index>`` it caps one card.
CAP_VARIABLE = "CUDA_DEVICE_MEMORY_LIMIT"
#: Every user of the driver has one of these open.
_DEVICE_FILES = "/dev/nvidia"
#: Use of a card nobody uses, at most; with more than this, an empty process list was hidden from us.
_IDLE_BYTES = 256 * MIB
_NO_PROCESSES = "the NVIDIA driver lists no processes for this device"
_HIDDEN_PROCESSES = "the NVIDIA driver lists no processes although the device is in use"
_NO_MEMORY = "the NVIDIA driver does not report this device's memory; configure a cap to lease it"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlConfig:
    """How GPUs are measured.

    Attributes:
        cap_bytes: Size that is assumed at most, for every device.
        environ: Where ``CUDA_DEVICE_MEMORY_LIMIT`` and ``CUDA_DEVICE_MEMORY_LIMIT_<index>`` are looked up.
        proc_root: The ``/proc`` of the processes that we identify.
        host_proc: The host's ``/proc``, when it is mounted.
    """

    cap_bytes: int | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    proc_root: Path = field(default=Path("/proc"))
    host_proc: Path | None = None


def find(config: NvmlConfig) -> tuple[list[NvmlProbe], list[str]]:
    """A probe for every GPU or slice that answers, and a line about each one that does not.

    Raises:
        OSError: There is no driver, or it does not answer at all.
        ValueError: A cap in the environment is not a size.
    """
    driver = nvml_driver.Driver()
    probes: list[NvmlProbe] = []
    notes: list[str] = []
    try:
        count = driver.count()
        for index in range(count):
            cap = _cap_bytes(config, index)
            try:
                gpu = driver.by_index(index)
                slices = driver.slices(gpu)
            except OSError as error:
                notes.append(f"GPU {index} is left out: {error}")
                continue
            for handle in [gpu] if slices is None else slices:
                try:
                    probes.append(NvmlProbe(handle, index=index, cap_bytes=cap, config=config))
                except OSError as error:
                    notes.append(f"GPU {index} is left out: {error}")
            if slices == []:
                notes.append(f"GPU {index} is left out: MIG is on and it has no slices")
    finally:
        driver.close()
    return probes, notes


class NvmlProbe:
    """Measures one GPU or one MIG slice. Calls may block for as long as the driver does."""

    __slots__ = ("_driver", "_facts", "_guest_lineage", "_handle", "_lineage", "_sized", "_translation")

    def __init__(self, handle: nvml_driver.Handle, *, index: int, cap_bytes: int | None, config: NvmlConfig) -> None:
        """
        Raises:
            OSError: The driver does not say what the device is.
        """
        # Counted by the driver, which stays open until the last probe closes.
        self._driver = nvml_driver.Driver()
        try:
            self._handle: nvml_driver.Handle | None = handle
            proc = procfs.ProcFs(config.proc_root)
            self._lineage, self._guest_lineage = lineage.Lineage(proc), lineage.Lineage(proc)
            uuid = self._driver.uuid(handle)
            total = _total_bytes(self._driver, handle)
            #: False when the size comes from the cap alone, or is not known at all.
            self._sized = total is not None
            attribution, self._translation = _attribution(self._driver, handle, config)
            size = (cap_bytes or 0) if total is None else total
            self._facts = DeviceFacts(
                device_id=DeviceId(uuid),
                name=_name(self._driver, handle),
                index=index,
                kind=DeviceKind.NVIDIA,
                total_bytes=size,
                capacity_bytes=capacity.usable_bytes(size, cap_bytes),
                attribution=attribution,
            )
        except OSError:
            self._driver.close()
            raise

    @property
    def facts(self) -> DeviceFacts:
        """What the driver said at the start; a size of 0 means that it does not report one."""
        return self._facts

    def sample(self, holders: Sequence[Process], guests: Sequence[Process] = ()) -> DeviceSample:
        """Measures the device, and the trees of holders and guests where the attribution allows it.

        A lost device is looked for again by its UUID with every sample.

        Raises:
            OSError: The driver failed.
        """
        try:
            return self._measure(holders, guests)
        except nvml_driver.DeviceLost as error:
            self._handle = None
            return DeviceSample(
                self._facts.device_id,
                used_bytes=None,
                held_bytes=dict.fromkeys(holders),
                lost=True,
                detail=str(error),
            )

    def close(self) -> None:
        """Lets go of the driver."""
        self._driver.close()

    def _measure(self, holders: Sequence[Process], guests: Sequence[Process]) -> DeviceSample:
        if self._handle is None:
            self._handle = self._driver.by_uuid(self._facts.device_id)
        # Listed before and after the total is read, because the two cannot be read at one moment.
        before = self._processes(self._handle)
        used = self._used_bytes(self._handle)
        after = self._processes(self._handle)
        remark = "" if self._sized else _NO_MEMORY
        unknown: dict[Process, int | None] = dict.fromkeys(holders)
        if before is None or after is None:
            return DeviceSample(self._facts.device_id, used, unknown, detail=remark or _NO_PROCESSES)
        if self._translation is None:
            return DeviceSample(self._facts.device_id, used, unknown, detail=remark)
        if self._facts.attribution is Attribution.TRANSLATED and not after and (used or 0) > _IDLE_BYTES:
            return DeviceSample(self._facts.device_id, used, unknown, detail=remark or _HIDDEN_PROCESSES)
        earlier, _ = self._attribute(self._lineage, self._translation, before, holders)
        held, rest = self._attribute(self._lineage, self._translation, after, holders)
        foreign = _foreign_bytes(used, _total(earlier.values()), _total(held.values()), _total(rest.values()))
        # Without guests nobody asks who the strangers are, which would cost some reads for each of them.
        found, _ = self._attribute(self._guest_lineage, self._translation, rest if guests else {}, guests)
        visitors = {guest: Guest(size, size) for guest, size in found.items() if size is not None}
        return DeviceSample(self._facts.device_id, used, held, foreign, detail=remark, guests=visitors)

    def _processes(self, handle: nvml_driver.Handle) -> dict[int, int | None] | None:
        try:
            return self._driver.processes(handle)
        except nvml_driver.NotReported:
            return None

    def _used_bytes(self, handle: nvml_driver.Handle) -> int | None:
        try:
            return self._driver.memory(handle).used_bytes
        except nvml_driver.NotReported:
            return None

    @staticmethod
    def _attribute(
        kin: lineage.Lineage,
        translation: pid_translation.Translation,
        listed: Mapping[int, int | None],
        holders: Sequence[Process],
    ) -> tuple[dict[Process, int | None], dict[int, int | None]]:
        """Bytes of each holder's tree, and the listed processes that are in none."""
        ours = translation.ours(listed)
        owners = kin.owners(ours.values(), holders)
        shares: dict[Process, list[int | None]] = {holder: [] for holder in holders}
        strangers: dict[int, int | None] = {}
        for pid, size in listed.items():
            holder = owners.get(ours[pid]) if pid in ours else None
            if holder is None:
                strangers[pid] = size
            else:
                shares[holder].append(size)
        return {holder: _total(sizes) for holder, sizes in shares.items()}, strangers


def _total(sizes: Iterable[int | None]) -> int | None:
    """The sum, or ``None`` when a part of it is unknown."""
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


def _foreign_bytes(
    used: int | None, held_before: int | None, held_after: int | None, strangers: int | None
) -> int | None:
    """What the holders do not account for: listed strangers, and use that no process is listed for.

    The larger of the two sums is the holders': a holder that freed or took memory between the readings must not look
    like a stranger for one sample.
    """
    if held_before is None or held_after is None:
        return None
    if used is None:
        return strangers
    return max(strangers or 0, used - max(held_before, held_after))


def _total_bytes(driver: nvml_driver.Driver, handle: nvml_driver.Handle) -> int | None:
    try:
        return driver.memory(handle).total_bytes
    except nvml_driver.NotReported:
        return None


def _name(driver: nvml_driver.Driver, handle: nvml_driver.Handle) -> str:
    try:
        return driver.name(handle)
    except nvml_driver.NotReported:
        return "NVIDIA GPU"


def _attribution(
    driver: nvml_driver.Driver, handle: nvml_driver.Handle, config: NvmlConfig
) -> tuple[Attribution, pid_translation.Translation | None]:
    """Whether the listed process ids can be told apart, found out by looking at them."""
    try:
        listed = driver.processes(handle)
    except nvml_driver.NotReported:
        return Attribution.DEVICE_ONLY, None
    proc = procfs.ProcFs(config.proc_root)
    if pid_translation.in_first_namespace(proc) or pid_translation.listed_are_ours(listed, proc, _DEVICE_FILES):
        return Attribution.PER_PROCESS, pid_translation.SameIds()
    translation = pid_translation.host_ids(proc, config.host_proc)
    if translation is not None:
        return Attribution.TRANSLATED, translation
    return Attribution.DEVICE_ONLY, None


def _cap_bytes(config: NvmlConfig, index: int) -> int | None:
    """The lowest of the configured cap and that of the environment, where the card's own goes before the general."""
    caps = [] if config.cap_bytes is None else [config.cap_bytes]
    for variable in (f"{CAP_VARIABLE}_{index}", CAP_VARIABLE):
        text = config.environ.get(variable, "").strip()
        if text:
            try:
                caps.append(capacity.parse_bytes(text))
            except ValueError as error:
                raise ValueError(f"{variable}: {error}") from error
            break
    return min(caps, default=None)
