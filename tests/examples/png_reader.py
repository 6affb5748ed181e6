"""Reads the PNG files that the image worker writes, strictly: eight-bit RGB, one IDAT chunk, every check sum right."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt


def decode(content: bytes) -> npt.NDArray[np.uint8]:
    """The pixels, height × width × 3.

    Raises:
        ValueError: The file is not such a PNG.
    """
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("no PNG signature")
    chunks = _chunks(content)
    if [kind for kind, _ in chunks] != [b"IHDR", b"IDAT", b"IEND"]:
        raise ValueError(f"unexpected chunks {chunks}")
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    if (depth, colour, rest) != (8, 2, [0, 0, 0]):
        raise ValueError("not eight-bit RGB")
    rows = np.frombuffer(zlib.decompress(chunks[1][1]), dtype=np.uint8).reshape(height, 1 + 3 * width)
    if not (rows[:, 0] == 1).all():
        raise ValueError("a row does not use the filter Sub")
    differences = rows[:, 1:].reshape(height, width, 3)
    return np.cumsum(differences, axis=1, dtype=np.uint8)


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    offset = 8
    while offset < len(content):
        (length,) = struct.unpack_from(">I", content, offset)
        kind, body = content[offset + 4 : offset + 8], content[offset + 8 : offset + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, offset + 8 + length)
        if checksum != zlib.crc32(kind + body):
            raise ValueError(f"check sum of {kind!r} is wrong")
        found.append((kind, body))
        offset += 12 + length
    return found
