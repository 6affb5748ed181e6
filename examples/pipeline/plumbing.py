"""How work travels between the processes of the pipeline: over Unix sockets, one item after the other."""

from __future__ import annotations

import time
from multiprocessing import connection
from pathlib import Path
from typing import TypeAlias

from examples.pipeline.layers import Activations

#: A number and its activations; ``None`` at the end of the stream.
Work: TypeAlias = tuple[int, Activations]
Item: TypeAlias = "Work | None"

#: A neighbour may still be importing its libraries.
_PATIENCE_S = 60.0
_PAUSE_S = 0.05


def connect(path: Path) -> connection.Connection[Item, Item]:
    """A connection to whoever listens there, now or soon.

    Raises:
        OSError: Nobody does for a minute.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return connection.Client(str(path), "AF_UNIX")
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)
