"""The numbers of the books for Prometheus, on a loopback address or a Unix socket of their own; off by default."""

from arbiter_sidecar.metrics.endpoint import Endpoint
from arbiter_sidecar.metrics.reading import Reader

__all__ = ["Endpoint", "Reader"]
