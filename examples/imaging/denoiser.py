"""Reverse diffusion with the best possible denoiser of a small image set, which has a closed form.

A noisy image is x = x₀ + σ·ε with x₀ from the set, each picture equally likely, and ε standard normal. The denoiser
with the least mean squared error is the posterior mean E[x₀ | x], and for a finite set that is a weighted mean of its
pictures with weights softmax(-|x - xᵢ|² / 2σ²). A sample starts as pure noise and moves towards the denoised image as σ
falls: each step halves σ, so a sample that gets fewer steps keeps more grain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from examples.imaging import shapes

#: Noise at the start as a multiple of the resolution. Two pictures of the set are about 1.2 resolutions apart
#: (Euclidean, all pixels), so half of that leaves it open at first which picture a sample becomes.
_START_NOISE = 0.6
_STEP_RATIO = 0.5


def noise_levels(resolution: int, steps: int) -> list[float]:
    """The falling noise levels σ of one sampling run, `steps` + 1 values.

    Raises:
        ValueError: Fewer than one step or pixel.
    """
    if resolution < 1 or steps < 1:
        raise ValueError("resolution and steps must be at least 1")
    return [_START_NOISE * resolution * _STEP_RATIO**step for step in range(steps + 1)]


class Denoiser:
    """The image set at one resolution with the work buffers of one batch; holds all its memory from the start.

    Args:
        resolution: Pixels per side, at least 2.
        batch: Images that are sampled together, at least 1.

    Raises:
        ValueError: A size is out of range.
    """

    __slots__ = ("_batch", "_denoised", "_norms", "_pictures", "_resolution", "_samples")

    def __init__(self, resolution: int, batch: int) -> None:
        if resolution < 2 or batch < 1:
            raise ValueError("resolution must be at least 2 and batch at least 1")
        self._resolution = resolution
        self._batch = batch
        pictures = np.empty((shapes.PICTURES, 3, resolution, resolution), dtype=np.float32)
        shapes.draw_set(pictures)
        self._pictures = pictures.reshape(shapes.PICTURES, -1)
        self._norms = np.array([float(np.dot(row, row)) for row in self._pictures])
        size = self._pictures.shape[1]
        # Zeros that are written, not promised by the kernel: the pages are resident from here on.
        self._samples = np.empty((batch, size), dtype=np.float32)
        self._samples.fill(0)
        self._denoised = np.empty((batch, size), dtype=np.float32)
        self._denoised.fill(0)

    @property
    def pictures(self) -> npt.NDArray[np.float32]:
        """The set, one flattened picture a row."""
        return self._pictures

    def denoise(self, noisy: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
        """The posterior mean of each row of `noisy`; the answer is overwritten by the next call.

        Args:
            noisy: At most `batch` rows, one flattened image each.
            sigma: Standard deviation of the noise, above 0.
        """
        products = (self._pictures @ noisy.T).astype(np.float64)
        # |x|² is the same for every picture and cancels in the softmax.
        logits = (2 * products - self._norms[:, None]) / (2 * sigma * sigma)
        weights = np.exp(logits - logits.max(axis=0))
        weights /= weights.sum(axis=0)
        denoised = self._denoised[: noisy.shape[0]]
        np.matmul(np.ascontiguousarray(weights.T, dtype=np.float32), self._pictures, out=denoised)
        return denoised

    def sample(
        self, rng: np.random.Generator, steps: int, interrupted: Callable[[], bool] = lambda: False
    ) -> npt.NDArray[np.float32] | None:
        """New images from noise, or None when `interrupted` said so between two steps.

        Returns:
            Batch × 3 × resolution × resolution, about [-1,1] plus what grain is left; overwritten by the next call.

        Raises:
            ValueError: Fewer than one step.
        """
        levels = noise_levels(self._resolution, steps)
        samples = self._samples
        rng.standard_normal(out=samples, dtype=np.float32)
        samples *= np.float32(levels[0])
        for sigma, following in itertools.pairwise(levels):
            if interrupted():
                return None
            denoised = self.denoise(samples, sigma)
            samples -= denoised
            samples *= np.float32(following / sigma)
            samples += denoised
        return samples.reshape(self._batch, 3, self._resolution, self._resolution)


def to_pixels(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """An image of 3 × height × width in [-1,1] as height × width × 3 bytes; values outside are clipped."""
    scaled = image * np.float32(127.5)
    scaled += np.float32(128)
    np.clip(scaled, 0, 255, out=scaled)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(1, 2, 0))
