"""The KV reservations of the in-memory arbiter: granted where they fit the budget at once, else refused. Not locked."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import errors

if TYPE_CHECKING:
    from arbiter_client.memory_books import Books


class Reservations:
    """Who has reserved how many tokens."""

    def __init__(self, books: Books) -> None:
        self._books = books
        #: Lease, tokens and request id of each open reservation.
        self._open: dict[str, tuple[str, int, str]] = {}
        self._used: dict[str, int] = {}

    def reserve(self, request: arbiter_service_pb2.ReserveKvRequest) -> arbiter_service_pb2.ReserveKvResponse:
        """Tokens of the lease's present budget, or those that the same request id has already.

        Raises:
            ArbiterClientError: ``LeaseNotFound``, ``Fenced``, ``InvalidRequest`` or ``InsufficientTokens``.
        """
        budget = self._books.token_budget(request.lease_id, request.fence)
        for reservation_id, (lease_id, tokens, request_id) in self._open.items():
            if request_id and (lease_id, request_id) == (request.lease_id, request.request_id):
                return _granted(reservation_id, tokens)
        free = budget - self.reserved(request.lease_id)
        if request.tokens > free:
            raise errors.InsufficientTokens(f"{request.tokens} tokens are wanted, {max(0, free)} are free")
        reservation_id = secrets.token_hex(8)
        self._open[reservation_id] = (request.lease_id, request.tokens, request.request_id)
        return _granted(reservation_id, request.tokens)

    def complete(self, request: arbiter_service_pb2.CompleteKvRequest) -> arbiter_service_pb2.CompleteKvResponse:
        """Returns a reservation; again is fine.

        Raises:
            ReservationNotFound: There was none.
        """
        if request.reservation_id not in self._used:
            if self._open.pop(request.reservation_id, None) is None:
                raise errors.ReservationNotFound()
            self._used[request.reservation_id] = request.actual_tokens
        return arbiter_service_pb2.CompleteKvResponse()

    def end(self, lease_id: str) -> None:
        """Strikes out those of a lease that has ended."""
        self._open = {name: each for name, each in self._open.items() if each[0] != lease_id}

    def reserved(self, lease_id: str) -> int:
        """Tokens that are reserved for a lease."""
        return sum(tokens for holder, tokens, _ in self._open.values() if holder == lease_id)

    def used(self, reservation_id: str) -> int:
        """Tokens that were said to be used of a returned reservation.

        Raises:
            ReservationNotFound: It has not been returned.
        """
        if reservation_id not in self._used:
            raise errors.ReservationNotFound()
        return self._used[reservation_id]


def _granted(reservation_id: str, tokens: int) -> arbiter_service_pb2.ReserveKvResponse:
    return arbiter_service_pb2.ReserveKvResponse(reservation_id=reservation_id, granted_tokens=tokens)
