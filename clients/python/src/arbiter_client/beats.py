"""Heartbeat messages: putting them together, and reading what the arbiter made of each lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arbiter.v1 import arbiter_service_pb2, lease_pb2
from arbiter_client import directive, keepalive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from arbiter_client.holding import Holding
    from arbiter_client.reports import Report

#: Verdicts that end a lease; any other leaves it to its deadline.
_FINAL = frozenset(
    {
        arbiter_service_pb2.Verdict.VERDICT_FENCED,
        arbiter_service_pb2.Verdict.VERDICT_NOT_FOUND,
        arbiter_service_pb2.Verdict.VERDICT_DENIED,
    }
)


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat message in flight.

    Attributes:
        sent_at: Monotonic time before it was queued.
        quiet: Leases renewed by handle.
        talking: Leases with their reports.
    """

    sent_at: float
    quiet: Sequence[Holding]
    talking: Sequence[tuple[Holding, Report]]


class Heart:
    """Numbers the messages of one worker.

    Attributes:
        worker: Name of the worker.
        epoch: Server epoch that was last heard of; 0 for none.
    """

    __slots__ = ("_sequence", "epoch", "worker")

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.epoch = 0
        self._sequence = 0

    def compose(
        self, now: float, incarnation: int, holdings: Iterable[Holding], *, by_handle: bool
    ) -> Iterator[tuple[Beat, arbiter_service_pb2.HeartbeatRequest]]:
        """Messages that carry what the holdings have to say and, with ``by_handle``, renew the others as well.

        Each is as large as the arbiter takes at most. No message for no holdings.
        """
        quiet: list[Holding] = []
        talking: list[tuple[Holding, Report]] = []
        for holding in holdings:
            if holding.end_reason is not None:
                continue
            if (report := holding.take_report()) is not None:
                talking.append((holding, report))
            elif by_handle:
                quiet.append(holding)
        handle_parts = list(keepalive.split(quiet, keepalive.MAX_HANDLES))
        report_parts = list(keepalive.split(talking, keepalive.MAX_REPORTS))
        for index in range(max(len(handle_parts), len(report_parts))):
            beat = Beat(
                now,
                handle_parts[index] if index < len(handle_parts) else (),
                report_parts[index] if index < len(report_parts) else (),
            )
            yield beat, self._message(beat, incarnation)

    def hello(self, now: float, incarnation: int) -> tuple[Beat, arbiter_service_pb2.HeartbeatRequest]:
        """A message about no lease. Its answer tells a server that lets us wait from one that is not there."""
        beat = Beat(now, (), ())
        return beat, self._message(beat, incarnation)

    def _message(self, beat: Beat, incarnation: int) -> arbiter_service_pb2.HeartbeatRequest:
        self._sequence += 1
        return arbiter_service_pb2.HeartbeatRequest(
            worker=self.worker,
            incarnation=incarnation,
            sequence=self._sequence,
            handles=[holding.handle for holding in beat.quiet],
            reports=[report.message(holding.lease_id, holding.fence, self.epoch) for holding, report in beat.talking],
            server_epoch=self.epoch,
        )


def read_answer(beat: Beat, answer: arbiter_service_pb2.HeartbeatResponse) -> None:
    """Gives each lease of ``beat`` its verdict. Silence about a handle is a renewal, about a report it is not."""
    by_handle = {result.handle: result for result in answer.results if result.handle}
    by_id = {result.lease_id: result for result in answer.results if result.lease_id}
    for holding in beat.quiet:
        result = by_handle.get(holding.handle) or by_id.get(holding.lease_id)
        if result is None:
            holding.renewed(beat.sent_at)
        else:
            _apply(holding, result, beat.sent_at, 0.0, answer.server_epoch)
    for holding, report in beat.talking:
        result = by_id.get(holding.lease_id)
        if result is not None:
            _apply(holding, result, beat.sent_at, report.busy_for, answer.server_epoch)


def _apply(
    holding: Holding,
    result: arbiter_service_pb2.HeartbeatResponse.Result,
    sent_at: float,
    silence: float,
    epoch: int,
) -> None:
    if result.verdict == arbiter_service_pb2.Verdict.VERDICT_RENEWED:
        holding.renewed(sent_at, silence)
        if result.HasField("directive"):
            holding.obey(directive.from_message(result.directive, epoch))
    elif reason := final_reason(result):
        holding.end(reason)


def final_reason(result: arbiter_service_pb2.HeartbeatResponse.Result) -> str:
    """Why the lease is over by this verdict; empty when it is not."""
    if result.verdict not in _FINAL:
        return ""
    return end_name(result.end_reason, arbiter_service_pb2.Verdict.Name(result.verdict))


def end_name(reason: int, otherwise: str) -> str:
    """The short name of an end reason, such as ``PREEMPTED``; ``otherwise``, shortened too, when none was given."""
    if reason and reason in lease_pb2.EndReason.values():
        return lease_pb2.EndReason.Name(lease_pb2.EndReason.ValueType(reason)).removeprefix("END_REASON_")
    return otherwise.removeprefix("VERDICT_").removeprefix("END_REASON_")


def read_quality(holdings: Mapping[str, Holding], message: arbiter_service_pb2.StreamQualityResponse) -> None:
    """Takes over the directives and ends of a pushed message; what is not ours is passed over."""
    for told in message.directives:
        if (holding := holdings.get(told.lease_id)) is not None:
            holding.obey(directive.from_message(told, message.server_epoch))
    for reclaim_id in message.reclaim_cancelled:
        for holding in holdings.values():
            holding.cancel_reclaim(reclaim_id)
    for ended in message.ended:
        if (holding := holdings.get(ended.lease_id)) is not None:
            holding.end(end_name(ended.end_reason, "REVOKED"))
