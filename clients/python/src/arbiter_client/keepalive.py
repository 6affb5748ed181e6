"""When to beat, when to try again, and when a lease is lost. Pure: every time is passed in, nothing is read or sent.

Times are monotonic seconds, spans are seconds, ``u`` is a random number in [0, 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

T = TypeVar("T")

#: Handles in one heartbeat message; the arbiter refuses more.
MAX_HANDLES = 2000
#: Reports in one heartbeat message; the arbiter refuses more.
MAX_REPORTS = 256

#: A beat comes this share of the interval after the last one at the earliest. Early and never late: jitter above the
#: interval would eat into the time that is left for retries.
EARLIEST_SHARE = 0.8

#: First retry after a failure. One local round trip takes well under a millisecond, so this is long enough to matter
#: to a struggling server and short enough to be forgotten.
RETRY_FIRST_S = 0.1
#: No retry comes sooner, however the dice fall: without it full jitter could degenerate into a busy loop.
RETRY_FLOOR_S = 0.05

#: How much sooner than its local deadline a lease counts as lost: the holder needs a moment to stop.
MARGIN_SHARE = 0.05
MARGIN_MAX_S = 0.5

#: A lease that declared a silent span is given at most this much, which is the arbiter's own limit.
SILENCE_MAX_S = 900.0


def beat_interval(asked: float, shortest_ttl: float) -> float:
    """The interval to keep: what the arbiter asked for, but at most half of the shortest time to live.

    A longer one would leave no room for a single retry. An arbiter that asks for nothing (0) gets a third.
    """
    return min(asked if asked > 0 else shortest_ttl / 3, shortest_ttl / 2)


def first_beat(granted_at: float, interval: float, u: float) -> float:
    """The first beat of a lease: anywhere within the first interval, so that workers started together spread out."""
    return granted_at + interval * u


def next_beat(sent_at: float, interval: float, u: float) -> float:
    """The beat after the one sent at ``sent_at``: 0.8 to 1.0 intervals later."""
    return sent_at + interval * (EARLIEST_SHARE + (1.0 - EARLIEST_SHARE) * u)


def retry_delay(failures: int, interval: float, u: float) -> float:
    """How long to wait after the ``failures``-th failure in a row (counted from 1).

    Doubles from 100 ms up to half an interval, and is spread over the whole of that range so that workers that lost the
    same server do not return together.
    """
    ceiling = max(RETRY_FIRST_S, interval / 2)
    step = min(ceiling, RETRY_FIRST_S * 2.0 ** min(failures - 1, 20))
    return RETRY_FLOOR_S + (step - RETRY_FLOOR_S) * u


def local_deadline(sent_at: float, ttl: float, silence: float = 0.0) -> float:
    """When the holder must consider the lease over: counted from before it sent what was answered.

    The arbiter counts from when it received the same message, which is later; so this deadline comes first without any
    comparison of clocks.

    Args:
        sent_at: Before the request was sent.
        ttl: Time to live of the lease.
        silence: Declared silence that the arbiter accepted along with the message; 0 for none.
    """
    return sent_at + max(ttl, min(silence, SILENCE_MAX_S))


def lost_at(deadline: float, ttl: float) -> float:
    """When the holder is told, a little before ``deadline``."""
    return deadline - min(MARGIN_MAX_S, ttl * MARGIN_SHARE)


def silent_at(waiting_since: float, heard_at: float, interval: float) -> float:
    """When a connection is to be given up: after a whole interval in which nothing at all arrived, or two without the
    answer.

    Args:
        waiting_since: When the oldest unanswered beat was sent.
        heard_at: When anything last arrived on this connection, or when it was opened.
        interval: Present interval.
    """
    return min(max(waiting_since, heard_at) + interval, waiting_since + 2 * interval)


def is_silent(now: float, waiting_since: float | None, heard_at: float, interval: float) -> bool:
    """Whether a connection is to be given up now; never while no beat is unanswered."""
    return waiting_since is not None and now >= silent_at(waiting_since, heard_at, interval)


def quality_in_force(now: float, heard_at: float, quality: float, safe_quality: float, valid_for: float) -> float:
    """The quality a holder should run at: the target, or the safe one when the arbiter was silent for ``valid_for``.

    A ``valid_for`` of 0 holds for ever. The safe quality never raises: the lower of the two is taken.
    """
    if valid_for <= 0 or now - heard_at < valid_for:
        return quality
    return min(quality, safe_quality)


def split(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in order, in parts of at most ``size``; no part when there are none."""
    return (items[start : start + size] for start in range(0, len(items), size))


def earliest(times: Iterable[float | None]) -> float | None:
    """The earliest of the times that are set."""
    return min((time for time in times if time is not None), default=None)
