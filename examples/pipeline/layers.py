"""The model: layers that multiply real matrices, the same in every process that is asked for them.

A layer first computes, then rests. The rest stands for what a device does by itself while the processor waits: with
three busy processes on a machine of two cores, the cores and not the slowest stage would set the pace.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
from numpy.typing import NDArray

#: Width of the activations. One product takes well under a millisecond.
WIDTH = 256
#: Layers of the whole model.
LAYERS = 12
#: Rest of each layer, in seconds.
REST_S = 0.01

Activations = NDArray[np.float64]


@cache
def weights(layer: int) -> Activations:
    """The weights of a layer; a rotation by a random basis, so that numbers neither grow nor vanish."""
    basis, _ = np.linalg.qr(np.random.default_rng(layer).standard_normal((WIDTH, WIDTH)))
    return np.ascontiguousarray(basis)


def prompt(number: int) -> Activations:
    """What goes in."""
    return np.random.default_rng(1_000_000 + number).standard_normal((WIDTH, 8))


def forward(activations: Activations, begin: int, end: int, *, times: int = 1, rest_s: float = REST_S) -> Activations:
    """What comes out of the layers from ``begin`` up to ``end``.

    Args:
        activations: What goes in.
        begin: First layer.
        end: One past the last.
        times: How often each layer is computed; a slow worker does it twice, and the result is the same.
        rest_s: Rest of each layer each time.
    """
    for layer in range(begin, end):
        for _ in range(times):
            result = np.tanh(weights(layer) @ activations)
            time.sleep(rest_s)
        activations = result
    return activations


def reference(number: int) -> Activations:
    """What the whole model says to a prompt, computed in one place and without rest."""
    return forward(prompt(number), 0, LAYERS, rest_s=0.0)
