"""A worker that holds so many bytes and does nothing else; it says when it holds them."""

from __future__ import annotations

import signal
import sys

held = bytearray(int(sys.argv[1]))
for place in range(0, len(held), 4096):
    held[place] = 1
print("holding", flush=True)
signal.pause()
