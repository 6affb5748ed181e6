"""The KV tokens that an engine may keep now, asked by its scheduler in each round without a message to anybody.

    layout = KvLayout(layers=32, kv_heads=8, head_size=128)
    with client.lease("llm", memory="20GiB", workload_type="llm", kv=layout.share(min_tokens=4096)) as lease:
        budget = KvBudget(lease, block_tokens=layout.block_tokens)
        request = budget.queue(prompt_tokens)
        while not lease.lost:
            if request.try_admit():
                ...
            budget.tell()

The requests and what they count are in ``kv_requests``, the sizes of a model's cache in ``kv_layout``.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import amounts, kv_layout, kv_requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from arbiter_client.kv_requests import KvRequest
    from arbiter_client.lease import HeldLease

#: A number that moved by more than one part in this many is told at once; the arbiter itself acts on no less.
STEP_DIVISOR = 20
#: Smaller changes are told once in so many times to live; as often as heartbeats come.
TELL_PER_TTL = 3


class KvBudget:
    """The token budget of one lease, and the tokens its engine keeps and waits for.

    The budget is read from the newest directive at each question, and is 0 from the moment the lease counts as lost, by
    the clock. Nothing here waits for the arbiter. Everything may be called from any thread, with asyncio or without.

    An engine either lets the budget count its requests (``queue``, ``try_admit``), or has books of its own and asks
    ``free(resident)`` and ``over(resident)`` and tells with ``tell(usage)``.
    """

    __slots__ = ("_books", "_clock", "_lease", "_telling", "_told", "_told_at", "_told_over")

    def __init__(
        self,
        lease: HeldLease,
        *,
        block_tokens: int = kv_layout.BLOCK_TOKENS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with no request.

        Args:
            lease: A lease that was asked for with ``kv``.
            block_tokens: Tokens that the engine allocates at a time, at least 1; as in the lease's ``kv``.
            clock: Monotonic seconds.

        Raises:
            ValueError: The lease has no token budget, or a block of less than one token.
        """
        if block_tokens < 1:
            raise ValueError(f"block_tokens {block_tokens} is below 1")
        if lease.directive.kv_token_budget is None:
            raise ValueError(f"lease {lease.lease_id} has no KV token budget; ask for it with kv=KvLayout(...).share()")
        self._lease = lease
        self._clock = clock
        self._books = kv_requests.KvBooks(block_tokens, self._tokens_now, self.tell)
        self._telling = threading.Lock()
        self._told: arbiter_service_pb2.KvUsage | None = None
        self._told_at = 0.0
        self._told_over = False

    # What a scheduler asks.

    @property
    def limit(self) -> int:
        """Tokens that may be resident now; 0 once the lease is lost."""
        return self._tokens_now()

    @property
    def resident(self) -> int:
        """Tokens of running requests, in whole blocks."""
        return self._books.resident

    @property
    def demand(self) -> int:
        """Tokens of running and waiting requests, in whole blocks."""
        _, resident, waiting, _, _ = self._books.picture()
        return resident + waiting

    @property
    def unfinished(self) -> int:
        """Requests that wait or run; 0 when every one was finished."""
        return self._books.unfinished

    def free(self, resident: int | None = None) -> int:
        """Tokens that may be taken now, in whole blocks; 0 when nothing may.

        Args:
            resident: Tokens that are resident, where the engine counts them itself.

        Raises:
            ValueError: Negative tokens.
        """
        left = self._tokens_now() - self._resident(resident)
        return left - left % self._books.block_tokens if left > 0 else 0

    def over(self, resident: int | None = None) -> int:
        """Tokens that are resident beyond the budget and have to go; 0 when all is well.

        An engine that is over may finish what it has begun, takes nothing more, and frees so many tokens in the few
        seconds it is given before the arbiter takes them: all of them at once when the lease is lost.

        Args:
            resident: Tokens that are resident, where the engine counts them itself.

        Raises:
            ValueError: Negative tokens.
        """
        return max(0, self._resident(resident) - self._tokens_now())

    # What a scheduler does.

    def queue(self, tokens: int, *, priority: int | str | None = None) -> KvRequest:
        """A request that waits for ``tokens``; they count as demand until it runs or ends.

        Args:
            tokens: What it will keep, at least 1: its prompt and, where room for the answer is reserved, that.
            priority: ``"background"``, ``"low"``, ``"normal"`` (default), ``"high"``, ``"critical"``, or a value of
                ``Priority``.

        Raises:
            ValueError: Less than one token or beyond 2^63-1, or no such priority.
        """
        return self._books.queue(tokens, priority)

    def try_admit(self, tokens: int, *, priority: int | str | None = None) -> KvRequest | None:
        """A request that runs with ``tokens``, or ``None`` when they do not fit now; then nothing is counted.

        An engine that comes to wait for a larger budget shows its demand with ``queue`` instead: an engine without work
        may have a budget of 0 until it says that it has some.

        Raises:
            ValueError: As for ``queue``.
        """
        return self._books.try_admit(tokens, priority)

    def usage(self) -> arbiter_service_pb2.KvUsage:
        """What the requests add up to at one moment, as reports carry it.

        Freeable is what runs at the lowest priority. Without a running request there is no lowest priority.
        """
        active, resident, waiting, lowest, freeable = self._books.picture()
        # Sums of what requests claim may be more than a message can say; nobody has so much to give.
        return arbiter_service_pb2.KvUsage(
            active=active,
            resident_tokens=min(resident, amounts.MAX_BYTES),
            demand_tokens=min(resident + waiting, amounts.MAX_BYTES),
            lowest_running_priority=lowest,
            freeable_tokens=min(freeable, amounts.MAX_BYTES),
        )

    def tell(self, usage: arbiter_service_pb2.KvUsage | None = None) -> bool:
        """Reports the use to the arbiter where that is worth a message; to be called in each round. True when it was.

        At once: having work or none, another lowest priority, coming within or beyond the budget, and any number that
        moved by more than a twentieth. Less than that as often as heartbeats come, and nothing when nothing changed.
        The budget does this by itself when the first request comes and when the last one ends. Without effect once the
        lease is over.

        Args:
            usage: What to report, where the engine counts for itself.
        """
        with self._telling:
            # Read under the lock, so that the newest numbers are also the last ones to leave.
            usage = self.usage() if usage is None else usage
            now, over = self._clock(), usage.resident_tokens > self._tokens_now()
            if not self._worth_telling(usage, over, now):
                return False
            self._lease.report(kv=usage)
            self._told, self._told_at, self._told_over = usage, now, over
            return True

    def _worth_telling(self, usage: arbiter_service_pb2.KvUsage, over: bool, now: float) -> bool:
        told = self._told
        if told is None or over is not self._told_over:
            return True
        if usage == told:
            return False
        return (
            now - self._told_at >= self._lease.ttl / TELL_PER_TTL
            or usage.active != told.active
            or usage.lowest_running_priority != told.lowest_running_priority
            or usage.HasField("demand_tokens") != told.HasField("demand_tokens")
            or _moved(told.resident_tokens, usage.resident_tokens)
            or _moved(told.demand_tokens, usage.demand_tokens)
            or _moved(told.freeable_tokens, usage.freeable_tokens)
        )

    def _tokens_now(self) -> int:
        lease = self._lease
        # An order to have nothing at all and a directive that does not say are the same here: take nothing.
        return 0 if lease.lost else lease.directive.kv_token_budget or 0

    def _resident(self, counted: int | None) -> int:
        if counted is None:
            return self._books.resident
        if counted < 0:
            raise ValueError(f"{counted} tokens cannot be resident; give 0 or more")
        return counted

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.resident} of {self.limit} tokens resident, {self.unfinished} requests>"


def _moved(told: int, present: int) -> bool:
    return abs(present - told) * STEP_DIVISOR > told
