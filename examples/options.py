"""The options that both workers understand."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import arbiter_client
from examples.worker_loop import Terms

_PRIORITIES = ("background", "low", "normal", "high", "critical")


def size(text: str) -> int:
    """A positive amount of memory such as 512MiB.

    Raises:
        ArgumentTypeError: It is none.
    """
    try:
        amount = arbiter_client.parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if amount == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return amount


def add(parser: argparse.ArgumentParser, *, name: str, priority: str) -> None:
    """Adds the options, with a worker's own defaults."""
    parser.add_argument("--address", help="where the arbiter listens: unix:/path, /path or host:port")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; made when it is not there")
    parser.add_argument("--name", default=name, help=f"name of the worker (default: {name})")
    parser.add_argument("--priority", choices=_PRIORITIES, default=priority, help=f"default: {priority}")
    parser.add_argument("--memory", type=size, help="lease at most this, such as 512MiB (default: the largest size)")


def terms(chosen: argparse.Namespace, workload_type: str, min_quality: float) -> Terms:
    """What the parsed options ask the arbiter for."""
    return Terms(
        name=str(chosen.name),
        workload_type=workload_type,
        priority=str(chosen.priority),
        min_quality=min_quality,
        memory_bytes=chosen.memory,
        address=chosen.address,
    )


def one_thread_for_algebra() -> None:
    """Makes numpy compute on one core; call it before numpy is imported.

    More threads would be no faster beside another worker, and each keeps tens of megabytes for itself.
    """
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
