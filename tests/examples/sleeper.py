"""A process that sleeps until it is asked to stop, and then ends with the exit code it was given."""

from __future__ import annotations

import signal
import sys
import threading


def main() -> int:
    """Sleeps; returns the exit code."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    print("asleep", flush=True)
    # Bounded, so that a test that fails leaves nothing behind.
    asked.wait(60)
    return int(sys.argv[1]) if len(sys.argv) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
