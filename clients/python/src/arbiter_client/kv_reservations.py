"""KV tokens that an engine reserves at the arbiter before it uses them: what is said, and what is held.

    async with lease.reserve_kv(2048, wait=5) as reservation:
        answer = await engine.answer(prompt)
        reservation.used(answer.tokens)

For engines that want the arbiter to admit their work. One that asks ``KvBudget`` sends nothing at all for each request.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import amounts, terms

if TYPE_CHECKING:
    from concurrent.futures import Future
    from datetime import timedelta

    from arbiter_client.keeper import Keeper


@dataclass(frozen=True, slots=True)
class Reserved:
    """What the arbiter has reserved.

    Attributes:
        reservation_id: Its name.
        tokens: How many, at least 1.
    """

    reservation_id: str
    tokens: int


class HeldReservation:
    """Reserved tokens in the engine's hands, until they are returned. Everything may be called from any thread.

    They count against the engine's budget. What is returned is what was reserved, whatever was used; an engine that
    says nothing for longer than the arbiter's ``kv.reservation`` loses them, one whose lease is over at once.
    """

    __slots__ = ("_keeper", "_patience", "_reserved", "_returned", "_used")

    def __init__(self, reserved: Reserved, keeper: Keeper, patience: float) -> None:
        self._reserved = reserved
        self._keeper = keeper
        #: Seconds for which returning them is tried: a lease that the arbiter has not heard of for longer is over.
        self._patience = patience
        self._used = reserved.tokens
        self._returned: Future[None] | None = None

    @property
    def reservation_id(self) -> str:
        """Identifies the reservation."""
        return self._reserved.reservation_id

    @property
    def tokens(self) -> int:
        """Tokens that are reserved."""
        return self._reserved.tokens

    def used(self, tokens: int) -> None:
        """Says how many tokens were really used, for the arbiter's records; absent: all that were reserved.

        Raises:
            ValueError: Negative, or beyond 2^63-1.
        """
        self._used = checked("used tokens", tokens, least=0)

    def _return(self) -> Future[None]:
        """Begins to return them, once; the future tells when the arbiter has them back."""
        if self._returned is None:
            self._returned = self._keeper.complete(self.reservation_id, self._used, self._patience)
        return self._returned

    def __repr__(self) -> str:
        state = "held" if self._returned is None else "returned"
        return f"<{type(self).__name__} {self.reservation_id} {self.tokens} tokens {state}>"


def message(
    lease_id: str, fence: int, tokens: int, wait: float | timedelta, request_id: str | None
) -> arbiter_service_pb2.ReserveKvRequest:
    """The request that reserves; always with a request id, so that it can be sent again safely.

    Raises:
        ValueError: Less than one token or beyond 2^63-1, or a span that cannot be read.
    """
    return arbiter_service_pb2.ReserveKvRequest(
        lease_id=lease_id,
        fence=fence,
        tokens=checked("tokens", tokens, least=1),
        request_id=request_id or uuid.uuid4().hex,
        wait_timeout=terms.duration(wait),
    )


def from_message(answer: arbiter_service_pb2.ReserveKvResponse) -> Reserved:
    """The value of an answer."""
    return Reserved(answer.reservation_id, answer.granted_tokens)


def checked(name: str, tokens: int, *, least: int) -> int:
    """``tokens``, where that is an amount of tokens.

    Raises:
        ValueError: Fewer than ``least``, or beyond 2^63-1.
    """
    if not least <= tokens <= amounts.MAX_BYTES:
        raise ValueError(f"{name} {tokens} is not between {least} and 2^63-1")
    return tokens
