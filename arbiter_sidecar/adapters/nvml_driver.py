"""The NVIDIA driver behind plain values and three kinds of failure.

The binding is the module ``pynvml`` of the distribution nvidia-ml-py. It is loaded when it is asked for, so that a
machine without NVIDIA hardware never pays for it, and it carries no types, so what we use of it is declared here.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol, cast

#: What the driver identifies a device by within this process.
Handle = NewType("Handle", object)

#: The process list is asked for again when it grew between being sized and being filled, this many times in all.
_LIST_ATTEMPTS = 3
#: The driver keeps a list of processes for each of these.
_LISTS = ("Compute", "Graphics")


class DeviceLost(OSError):
    """The device is gone: it fell off the bus, or the driver does not know it any more."""


class NotReported(OSError):
    """The driver does not report this about the device (N/A)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a device in bytes.

    Attributes:
        total_bytes: Physical size.
        used_bytes: Use, without the driver's own reserve where the driver tells them apart.
    """

    total_bytes: int
    used_bytes: int


class _MemoryStruct(Protocol):
    total: int
    used: int


class _ProcessStruct(Protocol):
    pid: int
    usedGpuMemory: int | None


class Binding(Protocol):
    """What is used of the module ``pynvml``."""

    nvmlMemory_v2: int
    NVMLError: type[Exception]
    NVMLError_FunctionNotFound: type[Exception]
    NVMLError_GpuIsLost: type[Exception]
    NVMLError_InsufficientSize: type[Exception]
    NVMLError_LibraryNotFound: type[Exception]
    NVMLError_NoPermission: type[Exception]
    NVMLError_NotFound: type[Exception]
    NVMLError_NotSupported: type[Exception]

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> str: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Handle: ...
    def nvmlDeviceGetName(self, handle: Handle) -> str: ...
    def nvmlDeviceGetUUID(self, handle: Handle) -> str: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Handle, version: int | None = None) -> _MemoryStruct: ...
    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Handle) -> Sequence[_ProcessStruct]: ...
    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: Handle) -> Sequence[_ProcessStruct]: ...
    def nvmlDeviceGetMigMode(self, handle: Handle) -> Sequence[int]: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int) -> Handle: ...


class Driver:
    """An open NVIDIA driver. Every call may block, and raises ``OSError`` with a sentence for people when it fails."""

    __slots__ = ("_nvml",)

    def __init__(self) -> None:
        """Opens the driver; each instance counts, and the last one that closes lets the driver go.

        Raises:
            OSError: There is no driver, or it does not answer.
        """
        self._nvml = cast("Binding", importlib.import_module("pynvml"))
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError_LibraryNotFound as error:
            raise FileNotFoundError("no NVIDIA driver (libnvidia-ml.so.1 not found)") from error
        except self._nvml.NVMLError as error:
            raise OSError(f"the NVIDIA driver did not start: {error}") from error

    def close(self) -> None:
        """Lets go of the driver."""
        with self._asking("to be closed"):
            self._nvml.nvmlShutdown()

    def version(self) -> str:
        """Version of the driver, such as ``550.54.15``."""
        with self._asking("its version"):
            return self._nvml.nvmlSystemGetDriverVersion()

    def count(self) -> int:
        """Number of GPUs, lost ones included."""
        with self._asking("how many GPUs there are"):
            return self._nvml.nvmlDeviceGetCount()

    def by_index(self, index: int) -> Handle:
        """The GPU at a place; places move when the machine changes."""
        with self._asking(f"which GPU is at index {index}"):
            return self._nvml.nvmlDeviceGetHandleByIndex(index)

    def by_uuid(self, uuid: str) -> Handle:
        """The GPU or MIG slice with a UUID, wherever it is now."""
        with self._asking(f"where {uuid} is"):
            return self._nvml.nvmlDeviceGetHandleByUUID(uuid)

    def uuid(self, handle: Handle) -> str:
        """The name that stays with the hardware."""
        with self._asking("the UUID"):
            return self._nvml.nvmlDeviceGetUUID(handle)

    def name(self, handle: Handle) -> str:
        """The product's name."""
        with self._asking("the name"):
            return self._nvml.nvmlDeviceGetName(handle)

    def memory(self, handle: Handle) -> Memory:
        """Size and use, without the driver's reserve where it can be told apart."""
        nvml = self._nvml
        try:
            with self._asking("the memory in use"):
                info = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
        except NotReported:
            # Drivers before 510 know only the first version, whose use includes the reserve.
            with self._asking("the memory in use"):
                info = nvml.nvmlDeviceGetMemoryInfo(handle)
        return Memory(info.total, info.used)

    def processes(self, handle: Handle) -> dict[int, int | None]:
        """Bytes of each process on a device, by the process id the driver gives; ``None`` is N/A.

        Raises:
            NotReported: The driver keeps no list for this device or does not show it to us.
            OSError: It failed otherwise.
        """
        found: dict[int, int | None] = {}
        missing: list[NotReported] = []
        for kind in _LISTS:
            try:
                entries = self._listed(handle, kind)
            except NotReported as error:
                # MIG slices have no graphics and some cards no compute list; one of the two is enough.
                missing.append(error)
                continue
            for entry in entries:
                # A process that does both is in both lists with the same number.
                known = [size for size in (found.get(entry.pid), entry.usedGpuMemory) if size is not None]
                found[entry.pid] = max(known, default=None)
        if len(missing) == len(_LISTS):
            raise missing[0]
        return found

    def slices(self, handle: Handle) -> list[Handle] | None:
        """The MIG slices of a GPU; ``None`` when it is not sliced."""
        nvml = self._nvml
        try:
            with self._asking("whether MIG is on"):
                current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        except NotReported:
            return None
        if not current:
            return None
        with self._asking("how many MIG slices there can be"):
            places = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
        found: list[Handle] = []
        for place in range(places):
            # An empty place is "not found"; nothing is lost.
            with contextlib.suppress(DeviceLost), self._asking(f"the MIG slice at {place}"):
                found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place))
        return found

    def _listed(self, handle: Handle, kind: str) -> Sequence[_ProcessStruct]:
        nvml = self._nvml
        ask = (
            nvml.nvmlDeviceGetComputeRunningProcesses_v3
            if kind == "Compute"
            else nvml.nvmlDeviceGetGraphicsRunningProcesses_v3
        )
        with self._asking("which processes use it"):
            for _ in range(_LIST_ATTEMPTS - 1):
                with contextlib.suppress(nvml.NVMLError_InsufficientSize):
                    return ask(handle)
            return ask(handle)

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        nvml = self._nvml
        try:
            yield
        except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_NotFound) as error:
            raise DeviceLost(f"the NVIDIA driver has lost the device (asked {what}: {error})") from error
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission) as error:
            raise NotReported(f"the NVIDIA driver does not report {what} ({error})") from error
        except nvml.NVMLError as error:
            raise OSError(f"the NVIDIA driver could not say {what}: {error}") from error
