"""What a worker can ask and say about its lease, the same with asyncio and without."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from arbiter_client import reports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from arbiter.v1 import arbiter_service_pb2
    from arbiter_client.directive import Directive, Reclaim
    from arbiter_client.holding import Holding


class HeldLease:
    """A lease in the worker's hands. Nothing here blocks; everything may be called from any thread."""

    __slots__ = ("_held",)

    def __init__(self, held: Holding) -> None:
        self._held = held

    @property
    def lease_id(self) -> str:
        """Identifies the lease."""
        return self._held.lease_id

    @property
    def fence(self) -> int:
        """The fencing token that belongs to it."""
        return self._held.fence

    @property
    def device_id(self) -> str:
        """The device whose memory it is."""
        return self._held.device_id

    @property
    def ttl(self) -> float:
        """Seconds it lives without a heartbeat, as the arbiter granted."""
        return self._held.ttl

    @property
    def directive(self) -> Directive:
        """The newest directive, whether confirmed or not; the last one after the lease is over."""
        return self._held.directive

    @property
    def quality(self) -> float:
        """The quality to run at now, in [0, 1].

        That of the directive; its ``safe_quality``, where that is lower, once nothing has been heard from the arbiter
        for its ``valid_for``, until something is heard again.
        """
        return self._held.quality

    @property
    def memory_limit_bytes(self) -> int:
        """Device bytes that may be used now."""
        return self._held.directive.memory_limit_bytes

    @property
    def lost(self) -> bool:
        """Whether the memory may no longer be used: the lease ended for whatever reason, its own release included.

        True before the arbiter gives the memory to others. Judged by the clock, so right even in a process that has
        just woken up; once True, always True.
        """
        return self._held.lost

    @property
    def end_reason(self) -> str | None:
        """Why it is over, such as ``EXPIRED``, ``PREEMPTED``, ``REVOKED``, ``RELEASED``; ``None`` while it is not."""
        return self._held.end_reason if self._held.lost else None

    def check(self) -> None:
        """Does nothing while the lease stands; to be called before each allocation and each batch.

        Raises:
            LeaseLost: It does not stand any more.
        """
        self._held.check()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[Directive]:
        """Lets an allocation or a batch begin only while the lease stands: a ``with`` block, or a decorator.

        Gives the ``with`` block the directive to work under. As a decorator it looks at each call, which for a
        coroutine function is when the coroutine is made. What has begun is not interrupted.

        Raises:
            LeaseLost: On entry: the lease does not stand any more.
        """
        self.check()
        yield self.directive

    def applied(
        self,
        directive: Directive,
        *,
        used_memory_bytes: int | None = None,
        reclaim_acks: Sequence[arbiter_service_pb2.ReclaimAck] = (),
    ) -> None:
        """Confirms that the worker now runs within ``directive``; say it only after the memory has really been freed.

        Sent at once by the keeper's thread. Without effect once the lease is over. Where ``directive`` has a reclaim,
        and ``used_memory_bytes`` is given and within its memory limit, this also says that the reclaim is done.

        Args:
            directive: What was applied.
            used_memory_bytes: Device bytes in use now.
            reclaim_acks: Progress on reclaims; overrides what is said by itself.

        Raises:
            ValueError: Negative bytes.
        """
        self._held.say(
            reports.outcome(
                directive,
                reports.Outcome.APPLIED,
                used_memory_bytes=used_memory_bytes,
                reclaim_acks=reclaim_acks,
            )
        )

    def deferred(self, directive: Directive, *, used_memory_bytes: int | None = None) -> None:
        """Says that ``directive`` was understood and will be applied later.

        Raises:
            ValueError: Negative bytes.
        """
        self._held.say(reports.outcome(directive, reports.Outcome.DEFERRED, used_memory_bytes=used_memory_bytes))

    def refused(self, directive: Directive, *, achievable_quality: float, used_memory_bytes: int | None = None) -> None:
        """Says that ``directive`` cannot be applied, and which quality in [0, 1] can be reached instead.

        Raises:
            ValueError: A quality outside [0, 1] or negative bytes.
        """
        self._held.say(
            reports.outcome(
                directive,
                reports.Outcome.REFUSED,
                achievable_quality=achievable_quality,
                used_memory_bytes=used_memory_bytes,
            )
        )

    def acknowledge(
        self, reclaim: Reclaim, *, will_free: int | str | None = None, eta: float | timedelta | None = None
    ) -> None:
        """Says at once that work on an order to give memory back has begun; to be called before that work.

        A holder that says nothing is told after a part of the grace that it is pressing. Saying this frees nothing and
        does not move the deadline: bytes count when ``applied`` or ``freed`` says so and the arbiter does not measure
        otherwise. Of an order that is no longer wanted it is passed over.

        Args:
            reclaim: The order, from a directive.
            will_free: Bytes that are going to be freed, or a text such as ``"1GiB"``; absent: what the order says.
            eta: When that will be done, in seconds from now or as a ``timedelta``; absent: not said.

        Raises:
            ValueError: An amount or span that cannot be read.
        """
        self._held.say(reports.begun(reclaim, will_free, eta))

    def freed(self, reclaim: Reclaim, *, freed_bytes: int | str = 0, freed_tokens: int = 0, done: bool = True) -> None:
        """Says what has really been freed so far for an order to give memory back.

        Args:
            reclaim: The order, from a directive.
            freed_bytes: Bytes freed so far, or a text such as ``"1GiB"``.
            freed_tokens: KV tokens freed so far.
            done: Nothing more will be freed. Once said, it stays so.

        Raises:
            ValueError: An amount that cannot be read, or negative tokens.
        """
        self._held.say(reports.freed(reclaim, freed_bytes, freed_tokens, done=done))

    def report(
        self,
        *,
        used_memory_bytes: int | None = None,
        kv: arbiter_service_pb2.KvUsage | None = None,
        shard_latencies: Sequence[float] = (),
        busy_for: float = 0.0,
        reclaim_acks: Sequence[arbiter_service_pb2.ReclaimAck] = (),
    ) -> None:
        """Says how the worker is doing. What is said faster than it can be sent is gathered, the newest counts.

        Args:
            used_memory_bytes: Device bytes that the worker counts as its own.
            kv: State of a KV engine.
            shard_latencies: Seconds per forward pass since the last report, newest last; the newest 256 are kept.
            busy_for: Seconds for which the whole process will be silent, at most 900; counts only where the arbiter can
                see the worker's processes.
            reclaim_acks: Progress on reclaims.

        Raises:
            ValueError: Negative bytes or spans.
        """
        self._held.say(
            reports.usage(
                used_memory_bytes=used_memory_bytes,
                kv=kv,
                shard_latencies=shard_latencies,
                busy_for=busy_for,
                reclaim_acks=reclaim_acks,
            )
        )

    def __repr__(self) -> str:
        state = self._held.end_reason or "alive"
        return f"<{type(self).__name__} {self.lease_id} {state} quality={self._held.directive.quality:.3f}>"
