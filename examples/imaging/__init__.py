"""Drawing a small set of images, denoising towards it, and writing the results as PNG files."""

from __future__ import annotations
