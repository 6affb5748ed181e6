"""Writes what the kernel would show of AMD cards into a folder."""

from __future__ import annotations

from pathlib import Path

from arbiter_sidecar.adapters import amd


def add_card(
    root: Path, index: int, *, total: int | str, used: int | str = 0, unique_id: str = "", pci: str = ""
) -> Path:
    """Adds ``card<index>`` to the folder that stands for ``/sys/class/drm``; returns its device folder."""
    address = pci or f"0000:0{index}:00.0"
    device = root.parent / "devices" / address
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text(f"{total}\n")
    (device / "mem_info_vram_used").write_text(f"{used}\n")
    (device / "uevent").write_text(f"DRIVER=amdgpu\nPCI_SLOT_NAME={address}\n")
    if unique_id:
        (device / "unique_id").write_text(f"{unique_id}\n")
    (device / "drm" / f"renderD{128 + index}").mkdir(parents=True)
    card = root / f"card{index}"
    card.mkdir(parents=True)
    (card / "device").symlink_to(device)
    return device


def config(folder: Path, *, cap_bytes: int | None = None) -> amd.AmdConfig:
    """Settings that look for cards, device files and processes below ``folder``."""
    return amd.AmdConfig(
        cap_bytes=cap_bytes, drm_root=folder / "drm", device_root=folder / "dri", proc_root=folder / "proc"
    )
