"""Shows what the calls have counted, under the names that dashboards of gRPC servers look for."""

from __future__ import annotations

from itertools import accumulate

from arbiter_sidecar.metrics import catalogue as of
from arbiter_sidecar.metrics.picture import Picture
from arbiter_sidecar.rpc import handlers

#: Upper bounds of the buckets as text, the open one too.
_BOUNDS = (*map(str, handlers.BUCKETS_S), "+Inf")
#: Names of codes that dashboards write otherwise than gRPC's own enumeration.
_CODES = {"OK": "OK", "CANCELLED": "Canceled"}


def code_name(code: str) -> str:
    """A code as dashboards write it: ``NotFound`` for ``NOT_FOUND``."""
    return _CODES.get(code) or "".join(part.capitalize() for part in code.split("_"))


def put_calls(picture: Picture) -> None:
    """The calls of this process, method by method."""
    for tally in handlers.tallies():
        labels = (tally.kind, tally.service, tally.method)
        picture.put(of.CALLS_STARTED, tally.started, *labels)
        for code, count in tally.handled.items():
            picture.put(of.CALLS_HANDLED, count, *labels, code_name(code))
        if tally.kind == handlers.UNARY:
            buckets = list(zip(_BOUNDS, accumulate(tally.buckets), strict=True))
            picture.distribution(of.CALL_SECONDS, buckets, tally.seconds, *labels)
