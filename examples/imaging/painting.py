"""The image worker's workload: sample a batch, write it as PNG files, be resized between denoising steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from examples import memory
from examples.imaging import denoiser, png, shapes
from examples.rungs import MIB, SizedRung

if TYPE_CHECKING:
    from examples.journal import Journal

#: Pixels per side, images at a time, denoising steps. Each step halves the noise; at the top what is left is less than
#: one level of a byte, at the bottom a third of full contrast. The rungs are this close because a worker between two of
#: them leaves memory unused that was granted to it.
_SIZES = tuple((resolution, 1 + resolution // 200, 8 + (resolution - 128) // 64) for resolution in range(640, 159, -32))
_PIXEL_BYTES = 3 * 4
#: Measured beside process, set and batch: at most 17 MiB, of which the finished image and its compression are the most.
_OVERHEAD_BYTES = 20 * MIB
_MARGIN_BYTES = 16 * MIB


class Painting:
    """Samples images and writes them. See `Workload` for the methods.

    Args:
        folder: Where the images go; numbering continues after those that are there.
        journal: Is told about every batch.
        seed: Makes the images repeatable; None for new ones each time.
    """

    __slots__ = (
        "_denoiser",
        "_folder",
        "_journal",
        "_made",
        "_number",
        "_quality",
        "_rng",
        "_rung",
        "_rungs",
        "_steps",
    )

    def __init__(self, folder: Path, journal: Journal, *, seed: int | None = None) -> None:
        self._folder = folder
        self._journal = journal
        self._rng = np.random.default_rng(seed)
        self._denoiser: denoiser.Denoiser | None = None
        self._number = max((int(path.name[:5]) for path in folder.glob("[0-9]" * 5 + "-*.png")), default=0)
        self._made = 0
        self._rung = ""
        self._quality = 0.0
        self._steps = 0
        fixed = memory.resident_bytes() + _OVERHEAD_BYTES + _MARGIN_BYTES
        self._rungs = tuple(_sized(fixed, *size) for size in _SIZES)

    @property
    def rungs(self) -> Sequence[SizedRung]:
        """Sizes, measured at start: this process as it is, and the image set and work buffers of each rung."""
        return self._rungs

    def resize(self, rung: SizedRung, quality: float) -> None:
        """See `Workload.resize`. Draws the image set at the new resolution, up to 1.5 s at the top."""
        self.close()
        self._steps = int(rung.settings["steps"])
        self._rung, self._quality = rung.name, quality
        self._denoiser = denoiser.Denoiser(int(rung.settings["resolution"]), int(rung.settings["batch"]))

    def work(self, interrupted: Callable[[], bool]) -> None:
        """Samples and writes one batch; gives it up between two steps, or two files, when `interrupted` says so.

        Raises:
            RuntimeError: `resize` has not been called.
            OSError: A file could not be written.
        """
        if self._denoiser is None:
            raise RuntimeError("resize the workload before it works")
        images = self._denoiser.sample(self._rng, self._steps, interrupted)
        if images is None:
            return
        for image in images:
            if interrupted():
                break
            self._number += 1
            name = f"{self._number:05d}-q{self._quality:.2f}-{image.shape[-1]}px-{self._steps}steps.png"
            png.write(self._folder / name, denoiser.to_pixels(image))
            self._made += 1
        self._journal.say("made", count=self._made, rung=self._rung, quality=self._quality)

    def close(self) -> None:
        """See `Workload.close`."""
        self._denoiser = None
        memory.return_freed_pages()


def _sized(fixed: int, resolution: int, batch: int, steps: int) -> SizedRung:
    # The set, and for each image of the batch the sample and its denoised version.
    floats = (shapes.PICTURES + 2 * batch) * resolution * resolution * _PIXEL_BYTES
    return SizedRung(
        name=f"{batch}x{resolution}px {steps} steps",
        memory_bytes=fixed + floats,
        settings={"resolution": resolution, "batch": batch, "steps": steps},
    )
