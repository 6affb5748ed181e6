"""A worker that makes images by iterative denoising and is as large as the arbiter lets it be.

    python -m examples.diffusion_worker --out DIR [--address ADDRESS] [--priority normal] [--memory 500MiB]

Writes DIR/NUMBER-QUALITY-RESOLUTION-STEPS.png. At a lower quality pictures are smaller and keep more grain. Exit code 0
when asked to stop, 1 on failure, 2 on wrong usage, 3 when the lease is lost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from examples import memory, options, worker_loop
from examples.journal import Journal
from examples.rungs import MIB, SizedRung
from examples.stop import Stop

options.one_thread_for_algebra()

import numpy as np  # after the environment that it reads  # isort: skip

if TYPE_CHECKING:
    pass
