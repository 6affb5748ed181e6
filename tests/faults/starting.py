"""Runs the other programs of this folder; whatever was started is ended when the block is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.faults.conftest import Worker

Run = Callable[..., Worker]


@contextmanager
def programs() -> Iterator[Run]:
    """Runs ``python -m tests.faults.NAME ARGUMENTS``."""
    started: list[Worker] = []

    def run(name: str, *arguments: object) -> Worker:
        command = [sys.executable, "-m", f"tests.faults.{name}", *map(str, arguments)]
        worker = Worker(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1))
        started.append(worker)
        return worker

    try:
        yield run
    finally:
        for worker in started:
            worker.end()
