"""PNG files decode to the pixels that went in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from examples.imaging import png
from tests.examples import png_reader

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 1), (16, 9)])
def test_decode_gives_the_same_pixels_when_they_are_noise(height: int, width: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)

    assert (png_reader.decode(png.encode(pixels)) == pixels).all()


def test_encode_refuses_when_the_shape_is_not_rgb() -> None:
    with pytest.raises(ValueError, match="height × width × 3"):
        png.encode(np.zeros((4, 4), dtype=np.uint8))


def test_write_leaves_only_the_finished_file_when_done(tmp_path: Path) -> None:
    pixels = np.full((3, 3, 3), 7, dtype=np.uint8)
    png.write(tmp_path / "picture.png", pixels)

    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert (png_reader.decode((tmp_path / "picture.png").read_bytes()) == pixels).all()
