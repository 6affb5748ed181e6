"""The requests of a KV engine and the tokens they keep: exact books that any thread may write."""

from __future__ import annotations

import threading
from enum import Enum
from typing import TYPE_CHECKING, Self

from arbiter.v1 import lease_pb2
from arbiter_client import amounts, terms

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeAlias

    Priority: TypeAlias = lease_pb2.Priority.ValueType

_NORMAL = lease_pb2.Priority.PRIORITY_NORMAL
_PRIORITIES = frozenset(lease_pb2.Priority.values()) - {lease_pb2.Priority.PRIORITY_UNSPECIFIED}


class RequestState(Enum):
    """Where a request stands: WAITING for tokens, RUNNING with tokens resident, FINISHED with none."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class KvRequest:
    """One request of an engine, from the queue to its end; leaving its ``with`` block ends it however that happens.

    Its tokens count in whole blocks: as demand while it waits, as resident while it runs, not at all once finished.
    What is returned is what was counted, whatever was used in truth. Everything may be called from any thread; what
    comes after the end, such as a step that raced with a cancellation, has no effect.
    """

    __slots__ = ("_books", "_state", "_tokens", "priority")

    def __init__(self, books: KvBooks, tokens: int, priority: Priority) -> None:
        self._books = books
        self._state = RequestState.WAITING
        self._tokens = tokens
        self.priority = priority

    @property
    def state(self) -> RequestState:
        """Where it stands."""
        return self._state

    @property
    def tokens(self) -> int:
        """Tokens it is counted with, in whole blocks; 0 once finished."""
        return self._tokens

    def try_admit(self) -> bool:
        """Lets it run when its tokens fit the budget now; True when it runs."""
        return self._books.admit(self)

    def try_resize(self, tokens: int) -> bool:
        """Counts it with ``tokens`` from now on, unless it runs and the growth does not fit; True when it was done.

        To be asked before more tokens are computed. Fewer always fit; so does anything while it waits.

        Raises:
            ValueError: Negative tokens, or beyond 2^63-1.
        """
        return self._books.resize(self, tokens, asking=True)

    def record(self, tokens: int) -> None:
        """Counts it with the ``tokens`` that it has in truth, within the budget or not.

        Raises:
            ValueError: Negative tokens, or beyond 2^63-1.
        """
        self._books.resize(self, tokens, asking=False)

    def requeue(self) -> None:
        """Sends a running request back to wait: its tokens have been dropped, or moved off the device."""
        self._books.requeue(self)

    def finish(self) -> None:
        """Ends it, for whatever reason, and returns its tokens; once, then without effect.

        Say it after the blocks have really been freed.
        """
        self._books.finish(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.value} {self._tokens} tokens>"


class KvBooks:
    """Totals over the requests of one engine.

    Every change takes away what a request counted and adds what it counts now, so totals are sums at any time.

    Attributes:
        block_tokens: Tokens per block.
        resident: Tokens of running requests.
        waiting: Tokens of waiting requests.
        unfinished: Requests that wait or run.
    """

    __slots__ = (
        "_limit",
        "_lock",
        "_numbers",
        "_on_turn",
        "_tokens",
        "block_tokens",
        "resident",
        "unfinished",
        "waiting",
    )

    def __init__(self, block_tokens: int, limit: Callable[[], int], on_turn: Callable[[], object]) -> None:
        """Begins with no request.

        Args:
            block_tokens: Tokens per block, at least 1.
            limit: Tokens that may be resident now; asked at every admission, from any thread.
            on_turn: Called after the first request came or the last one ended, on the thread that did it.
        """
        self.block_tokens = block_tokens
        self.resident = self.waiting = self.unfinished = 0
        self._limit = limit
        self._on_turn = on_turn
        self._lock = threading.Lock()
        #: Running requests of each priority, and the tokens of those.
        self._numbers = dict.fromkeys(sorted(_PRIORITIES), 0)
        self._tokens = dict.fromkeys(sorted(_PRIORITIES), 0)

    def whole(self, tokens: int, least: int = 0) -> int:
        """Tokens of the blocks that hold ``tokens``, which are at least ``least``.

        Raises:
            ValueError: Fewer, or blocks beyond 2^63-1 tokens.
        """
        if tokens < least:
            raise ValueError(f"a request cannot have {tokens} tokens; give at least {least}")
        if (rounded := -(-tokens // self.block_tokens) * self.block_tokens) > amounts.MAX_BYTES:
            raise ValueError(f"{tokens} tokens in whole blocks are beyond 2^63-1; give what the request needs")
        return rounded

    def queue(self, tokens: int, priority: int | str | None) -> KvRequest:
        """A new waiting request."""
        request = KvRequest(self, self.whole(tokens, 1), priority_of(priority))
        with self._lock:
            self._add(request)
            self.unfinished += 1
            turned = self.unfinished == 1
        if turned:
            self._on_turn()
        return request

    def try_admit(self, tokens: int, priority: int | str | None) -> KvRequest | None:
        """A new running request, or nothing at all."""
        request = KvRequest(self, self.whole(tokens, 1), priority_of(priority))
        with self._lock:
            if not self._fits(request._tokens):
                return None
            request._state = RequestState.RUNNING
            self._add(request)
            self.unfinished += 1
            turned = self.unfinished == 1
        if turned:
            self._on_turn()
        return request

    def admit(self, request: KvRequest) -> bool:
        """Turns a waiting request into a running one where it fits."""
        with self._lock:
            if request._state is RequestState.WAITING and self._fits(request._tokens):
                self._remove(request)
                request._state = RequestState.RUNNING
                self._add(request)
            return request._state is RequestState.RUNNING

    def resize(self, request: KvRequest, tokens: int, *, asking: bool) -> bool:
        """Counts a request with other tokens; when asking, a running one only where its growth fits."""
        wanted = self.whole(tokens)
        with self._lock:
            if request._state is RequestState.FINISHED:
                return False
            growth = wanted - request._tokens
            running = request._state is RequestState.RUNNING
            if asking and running and growth > 0 and not self._fits(growth):
                return False
            self._remove(request)
            request._tokens = wanted
            self._add(request)
            return True

    def requeue(self, request: KvRequest) -> None:
        """Turns a running request into a waiting one."""
        with self._lock:
            if request._state is RequestState.RUNNING:
                self._remove(request)
                request._state = RequestState.WAITING
                self._add(request)

    def finish(self, request: KvRequest) -> None:
        """Takes a request out of the books."""
        with self._lock:
            if request._state is RequestState.FINISHED:
                return
            self._remove(request)
            request._state, request._tokens = RequestState.FINISHED, 0
            self.unfinished -= 1
            turned = self.unfinished == 0
        if turned:
            self._on_turn()

    def picture(self) -> tuple[bool, int, int, Priority, int]:
        """Of one moment: whether there is work, tokens resident and waiting, the lowest running priority, its tokens.

        Without a running request the priority is UNSPECIFIED and its tokens are 0.
        """
        with self._lock:
            lowest = next((each for each, number in self._numbers.items() if number), None)
            if lowest is None:
                return self.unfinished > 0, 0, self.waiting, lease_pb2.Priority.PRIORITY_UNSPECIFIED, 0
            return True, self.resident, self.waiting, lowest, self._tokens[lowest]

    def _fits(self, growth: int) -> bool:
        """Whether so much more may be resident. Read under the lock, so that no admission outlasts a smaller limit."""
        limit = self._limit()
        return limit > 0 and self.resident + growth <= limit

    def _add(self, request: KvRequest) -> None:
        self._count(request, 1)

    def _remove(self, request: KvRequest) -> None:
        self._count(request, -1)

    def _count(self, request: KvRequest, sign: int) -> None:
        """Adds or takes away what a request counts as it stands."""
        tokens = sign * request._tokens
        if request._state is RequestState.RUNNING:
            self.resident += tokens
            self._tokens[request.priority] += tokens
            self._numbers[request.priority] += sign
        else:
            self.waiting += tokens


def priority_of(value: int | str | None) -> Priority:
    """The priority that ``"high"``, a value of ``Priority`` and the like name; NORMAL where none is named.

    Raises:
        ValueError: No such priority.
    """
    if value is None or value == lease_pb2.Priority.PRIORITY_UNSPECIFIED:
        return _NORMAL
    priority = terms.priority(value)
    if priority not in _PRIORITIES:
        raise ValueError(f"{value!r} is not a priority; take background, low, normal, high or critical")
    return priority
