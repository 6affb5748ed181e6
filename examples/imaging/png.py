"""Writes PNG files with nothing but zlib."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Grainy images hardly compress at any level, so the fastest one is used.
_COMPRESSION = 1
_FILTER_SUB = 1


def encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The PNG file of an RGB image.

    Args:
        pixels: Height × width × 3.

    Raises:
        ValueError: The array has another shape.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"need height × width × 3, got {pixels.shape}")
    height, width, _ = pixels.shape
    rows = np.empty((height, 1 + width * 3), dtype=np.uint8)
    rows[:, 0] = _FILTER_SUB
    # Each byte as its difference from the pixel to the left, modulo 256: smooth images become runs of small numbers.
    rows[:, 1:4] = pixels[:, 0]
    np.subtract(pixels[:, 1:], pixels[:, :-1], out=rows[:, 4:].reshape(height, width - 1, 3))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), _COMPRESSION)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def write(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Writes an RGB image; the file appears complete or not at all.

    Raises:
        ValueError: The array is not height × width × 3.
        OSError: The file cannot be written.
    """
    partial = path.with_suffix(".partial")
    partial.write_bytes(encode(pixels))
    partial.replace(path)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
