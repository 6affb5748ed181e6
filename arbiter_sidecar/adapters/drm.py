"""Video memory of processes as the kernel's graphics drivers tell it, per open device file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from arbiter_sidecar.adapters import procfs

_DEVICE_FILES = "/dev/dri/"
#: The first is what amdgpu has said since Linux 5.14, the second what newer kernels say for every driver.
_KEYS = ("drm-memory-vram", "drm-resident-vram")
_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


@dataclass(frozen=True, slots=True)
class Client:
    """One user of a graphics device; several descriptors, of several processes even, may be the same one.

    Attributes:
        client_id: Distinguishes the clients of one device.
        vram_bytes: Its video memory.
    """

    client_id: str
    vram_bytes: int


def clients(proc: procfs.ProcFs, pid: int | str, pci_address: str) -> Iterator[Client]:
    """The clients that a process has open on the device at ``pci_address``, duplicates included.

    Raises:
        PermissionError: The kernel does not show us the process's descriptors.
    """
    for descriptor, target in proc.open_files(pid).items():
        if target.startswith(_DEVICE_FILES):
            client = _parse(proc.fdinfo(pid, descriptor), pci_address)
            if client is not None:
                yield client


def vram_bytes(proc: procfs.ProcFs, pids: Iterable[int], pci_address: str) -> int:
    """Video memory of a process tree on one device; shared clients count once.

    Raises:
        PermissionError: One of the processes cannot be read.
    """
    sizes: dict[str, int] = {}
    for pid in pids:
        for client in clients(proc, pid, pci_address):
            sizes[client.client_id] = client.vram_bytes
    return sum(sizes.values())


def _parse(text: str, pci_address: str) -> Client | None:
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    if fields.get("drm-pdev") != pci_address:
        return None
    client_id = fields.get("drm-client-id", "")
    for key in _KEYS:
        number, _, unit = fields.get(key, "").partition(" ")
        if number.isdecimal() and unit.strip() in _UNITS:
            return Client(client_id, int(number) * _UNITS[unit.strip()])
    return None
