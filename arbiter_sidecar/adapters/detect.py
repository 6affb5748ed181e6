"""Finds the devices of the machine, in a fixed order, and says in plain lines what it looked for.

It never invents a device: what is neither found nor configured is not there.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from arbiter_sidecar.adapters import amd, amd_tools, host, nvml, probing, static
from arbiter_sidecar.ports import DeviceProbe

#: Seconds one kind of driver may take to be found. A driver that nobody keeps awake needs two seconds for each card.
FIND_TIMEOUT_S = 30.0

Mode = Literal["auto", "nvidia", "amd", "host", "static"]


class DetectionError(OSError):
    """There is no device to arbitrate; the message names everything that was tried and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectConfig:
    """Which devices to look for.

    Attributes:
        mode: ``auto`` looks for NVIDIA and AMD, and takes host memory when there is no GPU; the others name one.
        cap_bytes: Size that is assumed at most for each discovered device; the reserve is taken from it.
        host_budget_bytes: Exactly this much host memory may be leased. Its presence asks for the host device.
        host_foreign: ``none``, ``machine``, ``cgroup:PATH`` or ``pids:FILE``; ``None`` is the default of the host.
        static_devices: Name and bytes of devices that cannot be discovered; added in every mode.
        host_proc: The ``/proc`` of the host, when it is mounted in our container.
        environ: Where the memory limits of container runtimes are looked up.
        proc_root: Our own ``/proc``.
        drm_root: Where the kernel lists graphics cards.
        device_root: Where the device files of graphics cards are.
    """

    mode: Mode = "auto"
    cap_bytes: int | None = None
    host_budget_bytes: int | None = None
    host_foreign: str | None = None
    static_devices: tuple[tuple[str, int], ...] = ()
    host_proc: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    proc_root: Path = field(default=Path("/proc"))
    drm_root: Path = field(default=Path("/sys/class/drm"))
    device_root: Path = field(default=Path("/dev/dri"))

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"device mode is {self.mode!r}; it must be one of {', '.join(get_args(Mode))}")
        names = [name for name, _ in self.static_devices]
        if len(set(names)) < len(names):
            raise ValueError("two static devices have the same name")


@dataclass(frozen=True, slots=True)
class Detection:
    """What was found.

    Attributes:
        probes: One for each device.
        notes: One plain line for each thing that was looked for.
    """

    probes: tuple[DeviceProbe, ...]
    notes: tuple[str, ...]


def detect(config: DetectConfig) -> Detection:
    """The devices of this machine. May block for as long as drivers take to answer, at most a minute and a half.

    Raises:
        DetectionError: There is none, or the one that the mode names is not there.
        ValueError: A size or a foreign rule in the configuration or the environment is wrong.
    """
    notes: list[str] = []
    probes: list[DeviceProbe] = []
    try:
        probes += _discovered(config, notes)
        for index, (name, size_bytes) in enumerate(config.static_devices):
            probes.append(static.StaticProbe(name=name, size_bytes=size_bytes, index=index))
            notes.append(f"static device {name}: {size_bytes} bytes by configuration, not measured")
        if not probes:
            notes.append("static devices: none configured")
            raise _nothing(notes)
        _refuse_same_names(probes)
    except (OSError, ValueError):
        for probe in probes:
            with contextlib.suppress(OSError):  # Why there is nothing to serve matters more.
                probe.close()
        raise
    return Detection(tuple(probes), tuple(notes))


def _discovered(config: DetectConfig, notes: list[str]) -> Sequence[DeviceProbe]:
    wants_host = config.mode == "host" or (config.host_budget_bytes is not None and config.mode != "static")
    gpus: list[DeviceProbe] = []
    if config.mode in ("auto", "nvidia"):
        gpus += _nvidia(config, notes)
    if config.mode in ("auto", "amd"):
        gpus += _amd(config, notes, ask_tools=not gpus)
    if config.mode in ("nvidia", "amd") and not gpus:
        raise _nothing(notes)
    if config.mode == "auto" and not any(probe.facts.capacity_bytes > 0 for probe in gpus):
        wants_host = True
    found = [*gpus, *_host(config, notes)] if wants_host else gpus
    # The first device is the one that a request gets which names none, so those with something to lease come first.
    return sorted(found, key=lambda probe: probe.facts.capacity_bytes == 0)


def _nvidia(config: DetectConfig, notes: list[str]) -> Sequence[DeviceProbe]:
    settings = nvml.NvmlConfig(
        cap_bytes=config.cap_bytes,
        environ=config.environ,
        proc_root=config.proc_root,
        host_proc=config.host_proc,
    )
    return _looked_for("NVIDIA", functools.partial(nvml.find, settings), notes)


def _amd(config: DetectConfig, notes: list[str], *, ask_tools: bool) -> Sequence[DeviceProbe]:
    settings = amd.AmdConfig(
        cap_bytes=config.cap_bytes,
        drm_root=config.drm_root,
        device_root=config.device_root,
        proc_root=config.proc_root,
    )
    found = _looked_for(f"AMD ({config.drm_root})", functools.partial(amd.find, settings), notes)
    if found or not ask_tools:
        return found
    return _looked_for("AMD tools", functools.partial(amd_tools.find, config.cap_bytes), notes)


def _looked_for(
    what: str, find: Callable[[], tuple[Sequence[DeviceProbe], list[str]]], notes: list[str]
) -> Sequence[DeviceProbe]:
    try:
        probes, remarks = probing.call_within(find, FIND_TIMEOUT_S, what)
    except OSError as error:
        notes.append(f"{what}: {error}")
        return []
    notes.extend(f"{what}: {remark}" for remark in remarks)
    notes.extend(f"{what}: {_described(probe)}" for probe in probes)
    if not probes and not remarks:
        notes.append(f"{what}: no card found")
    return probes


def _host(config: DetectConfig, notes: list[str]) -> Sequence[DeviceProbe]:
    settings = host.HostConfig(
        budget_bytes=config.host_budget_bytes,
        cap_bytes=config.cap_bytes,
        foreign=config.host_foreign,
        proc_root=config.proc_root,
    )
    try:
        probe = host.HostMemoryProbe(settings)
    except OSError as error:
        notes.append(f"host memory: {error}")
        return []
    notes.append(f"host memory: {_described(probe)}, foreign memory by rule {probe.foreign_word}")
    return [probe]


def _described(probe: DeviceProbe) -> str:
    facts = probe.facts
    if facts.capacity_bytes == 0:
        return f"{facts.device_id} ({facts.name}): nothing to lease of its {facts.total_bytes} bytes"
    return (
        f"{facts.device_id} ({facts.name}): {facts.capacity_bytes} of {facts.total_bytes} bytes to lease, "
        f"measured {facts.attribution.name.lower().replace('_', ' ')}"
    )


def _refuse_same_names(probes: Sequence[DeviceProbe]) -> None:
    names = [probe.facts.device_id for probe in probes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two devices are called {name}; rename the static one")


def _nothing(notes: Sequence[str]) -> DetectionError:
    tried = "; ".join(notes)
    return DetectionError(
        f"no device to arbitrate ({tried}). Install or mount the GPU's driver, set a host memory budget, "
        "or configure a static device with a name and a size."
    )
