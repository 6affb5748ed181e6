"""Draws the image set: discs, rings and bars on colour gradients, the same pictures at every resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]

#: Pictures in the set. Enough that two samples are rarely alike, few enough that a set of 640 × 640 fits in 300 MiB.
PICTURES = 64
_SHAPES_PER_PICTURE = 3
#: Width of a soft edge in pixels; 1.5 hides the staircase without looking blurred.
_EDGE_PIXELS = 1.5
_SEED = 20260721


@dataclass(frozen=True, slots=True)
class _Grid:
    """Pixel centres in [-1,1] and the width of a soft edge in the same unit."""

    u: Plane
    v: Plane
    edge: float


def draw_set(out: npt.NDArray[np.float32]) -> None:
    """Draws the whole set in place; the second half are mirror images of the first with the colours turned.

    Args:
        out: PICTURES × 3 × resolution × resolution; values come out in [-1,1].

    Raises:
        ValueError: The array has another shape.
    """
    resolution = out.shape[-1]
    if out.shape != (PICTURES, 3, resolution, resolution):
        raise ValueError(f"need {PICTURES} × 3 × R × R, got {out.shape}")
    axis = (np.arange(resolution, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / resolution) - np.float32(1)
    ones = np.ones(resolution, dtype=np.float32)
    grid = _Grid(np.outer(ones, axis), np.outer(axis, ones), 2 * _EDGE_PIXELS / resolution)
    half = PICTURES // 2
    for index in range(half):
        _draw(np.random.default_rng((_SEED, index)), grid, out[index])
        # Copying is ten times faster than drawing, and a worker that grows should be back at work soon.
        for channel in range(3):
            out[half + index, channel] = out[index, (channel + 1) % 3, :, ::-1]


def _draw(rng: np.random.Generator, grid: _Grid, picture: npt.NDArray[np.float32]) -> None:
    angle = rng.uniform(0, 2 * np.pi)
    slope = (grid.u * np.float32(np.cos(angle)) + grid.v * np.float32(np.sin(angle)) + np.float32(1.5)) / np.float32(3)
    start, end = rng.uniform(-0.9, 0.9, 3), rng.uniform(-0.9, 0.9, 3)
    for channel in range(3):
        np.multiply(slope, np.float32(end[channel] - start[channel]), out=picture[channel])
        picture[channel] += np.float32(start[channel])
    for _ in range(_SHAPES_PER_PICTURE):
        mask = _mask(rng, grid)
        colour = rng.uniform(-1, 1, 3)
        for channel in range(3):
            picture[channel] += mask * (np.float32(colour[channel]) - picture[channel])
    np.clip(picture, -1, 1, out=picture)


def _mask(rng: np.random.Generator, grid: _Grid) -> Plane:
    """Coverage of one shape in [0,1]: 1 inside, 0 outside, a ramp of `edge` between."""
    x = grid.u - np.float32(rng.uniform(-0.6, 0.6))
    y = grid.v - np.float32(rng.uniform(-0.6, 0.6))
    size = float(rng.uniform(0.2, 0.5))
    kind = int(rng.integers(3))
    if kind == 0:
        distance = np.sqrt(x * x + y * y) - np.float32(size)
    elif kind == 1:
        distance = np.abs(np.sqrt(x * x + y * y) - np.float32(size)) - np.float32(size / 4)
    else:
        turn = float(rng.uniform(0, np.pi))
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        distance = np.maximum(
            np.abs(x * cos + y * sin) - np.float32(size), np.abs(y * cos - x * sin) - np.float32(size / 3)
        )
    coverage: Plane = np.clip(np.float32(0.5) - distance / np.float32(grid.edge), 0, 1).astype(np.float32, copy=False)
    return coverage
