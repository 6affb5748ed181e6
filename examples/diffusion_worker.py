"""A worker that makes images by iterative denoising and is as large as the arbiter lets it be.

    python -m examples.diffusion_worker --out DIR [--address ADDRESS] [--priority normal] [--memory 400MiB]

Writes DIR/NUMBER-QUALITY-RESOLUTION-STEPS.png. At a lower quality pictures are smaller and keep more grain. Exit code 0
when asked to stop, 1 on failure, 2 on wrong usage, 3 when the lease is lost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from examples import memory, options, worker_loop
from examples.journal import Journal
from examples.stop import Stop

if TYPE_CHECKING:
    from pathlib import Path

    from examples.imaging.painting import Painting

#: Below this the pictures are mostly noise.
MIN_QUALITY = 0.3


def make_workload(folder: Path, journal: Journal, *, seed: int | None = None) -> Painting:
    """The image generator; numpy is imported here, after the environment that it reads has been set."""
    options.one_thread_for_algebra()
    from examples.imaging import painting

    return painting.Painting(folder, journal, seed=seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the worker until it is told to stop; returns its exit code."""
    memory.use_one_arena()
    parser = argparse.ArgumentParser(prog="python -m examples.diffusion_worker", description=__doc__.split("\n\n")[0])
    options.add(parser, name="image-generator", priority="normal")
    parser.add_argument("--seed", type=int, help="makes the images repeatable; 0 or more (default: new ones each time)")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None and chosen.seed < 0:
        parser.error("--seed must be 0 or more")
    journal = Journal(sys.stdout, chosen.name)
    stop = Stop()
    stop.install()
    chosen.out.mkdir(parents=True, exist_ok=True)
    workload = make_workload(chosen.out, journal, seed=chosen.seed)
    return worker_loop.run(workload, options.terms(chosen, "image", MIN_QUALITY), journal, stop)


if __name__ == "__main__":
    sys.exit(main())
