"""A dozen real workers want three times the memory there is; one is killed, one is frozen.

``ARBITER_CROWD_SECONDS`` says for how long they go on; 60 unless set. ``ARBITER_CROWD_SEED`` makes them do the same
again, as far as real processes can.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import arbiter_client
from arbiter.v1 import lease_pb2
from arbiter.v1 import state_service_pb2 as pb
from tests.faults import crowd, history
from tests.faults.crowd_worker import MIB, PATIENCE_S
from tests.running import running_server

SECONDS = float(os.environ.get("ARBITER_CROWD_SECONDS", "60"))
SEED = int(os.environ.get("ARBITER_CROWD_SEED", str(time.time_ns() % 1_000_000)))
BUDGET_BYTES = 640 * MIB
#: How much more than the budget the workers may be measured at together: 2 MiB for each of them, for what an
#: interpreter grows by, and for pages of libraries that become its own when another worker exits, from one moment at
#: which it measures itself to the next. Everything else of an interpreter is inside the budget: the arbiter is told the
#: process ids, so that a worker without a lease counts as foreign.
SLACK_BYTES = len(crowd.PRIORITIES) * 2 * MIB
#: How often a blocked request may be passed here: never. So a single grant out of turn shows, and nothing that a later
#: request got can be the reason why an earlier one waits.
BACKFILL = 0
#: What can become of a request.
OUTCOMES = ("granted", "refused", "timed_out", "cancelled")
#: What the killed and the frozen worker must hold at least, so that it matters.
LEAST_HELD_BYTES = 64 * MIB


def _flags(folder: Path) -> tuple[str, ...]:
    return (
        *("--devices", "host", "--host-budget", str(BUDGET_BYTES), "--host-foreign", f"pids:{folder / 'pids'}"),
        *("--queue-aging", "5s", "--queue-backfill", str(BACKFILL)),
        *("--preemption-shrink-hold", "500ms", "--preemption-revoke-hold", "2s"),
    )


@dataclass(slots=True)
class Story:
    """What was seen.

    Attributes:
        workers: Everybody.
        scale: What they weighed.
        log: The audit events.
        killed: Who was killed.
        frozen: Who was frozen.
        frozen_lease: The lease that it had then.
        woken_at: When it was woken, by the wall clock.
        stats: The totals at the end.
    """

    workers: list[crowd.Member]
    scale: crowd.Scale
    log: crowd.Log
    killed: str = ""
    frozen: str = ""
    frozen_lease: str = ""
    woken_at: float = 0.0
    stats: pb.ArbiterStats | None = None

    def requests(self) -> dict[str, tuple[int, float, str, float]]:
        """Of each request its priority, its patience, its outcome for the caller, and the seconds until then."""
        found: dict[str, tuple[int, float, str, float]] = {}
        begun: dict[str, float] = {}
        for worker in self.workers:
            for line in worker.lines():
                name, word, at = str(line.get("request", "")), str(line["word"]), float(str(line["at"]))
                if word == "asked":
                    assert name not in found
                    begun[name] = at
                    found[name] = (int(str(line["priority"])), float(str(line["wait_s"])), "", 0.0)
                elif name:
                    priority, patience_s, outcome, _ = found[name]
                    assert not outcome, f"{name} was {outcome} and then {word}"
                    found[name] = (priority, patience_s, word, at - begun[name])
        return found


def _pass(begun: float, share: float) -> None:
    """Waits until so much of the time is over."""
    time.sleep(max(0.0, begun + share * SECONDS - time.monotonic()))


def _lease_of(state: pb.GetStateResponse, holder: str) -> lease_pb2.Lease:
    return next(lease for lease in state.leases if lease.holder == holder)


def _play(client: arbiter_client.BlockingClient, story: Story) -> None:
    """The whole minute, until nothing is left of anybody."""
    workers = story.workers
    begun = time.monotonic()
    crowd.begin(workers)
    _pass(begun, 1 / 3)
    victim, _ = crowd.freeze_a_holder(client, workers, LEAST_HELD_BYTES)
    victim.process.kill()
    story.killed = victim.name
    _pass(begun, 1 / 2)
    sleeper, seen = crowd.freeze_a_holder(client, workers, LEAST_HELD_BYTES)
    story.frozen, story.frozen_lease = sleeper.name, _lease_of(seen, sleeper.name).lease_id
    _pass(begun, 5 / 6)
    state = client.state(include_ended=True)
    lease = next(each for each in state.leases if each.lease_id == story.frozen_lease)
    assert lease.state == lease_pb2.LEASE_STATE_ENDED
    assert lease.measured_memory_bytes >= LEAST_HELD_BYTES, "it still holds its memory, and is charged for it"
    assert state.devices[0].draining_bytes >= lease.measured_memory_bytes
    story.woken_at = time.time()
    os.kill(sleeper.process.pid, signal.SIGCONT)
    _pass(begun, 1.0)
    codes = crowd.finish(workers)
    assert codes == {worker.name: -signal.SIGKILL if worker is victim else 0 for worker in workers}
    crowd.until("everything drains", lambda: not client.state(include_ended=True).leases)
    story.stats = client.state().stats
    crowd.until("the log is read", lambda: story.log.events[-1].sequence >= client.state().stats.events)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_crowd_keeps_the_budget_and_everybody_gets_an_answer(tmp_path: Path) -> None:
    socket = tmp_path / "arbiter.sock"
    with crowd.members(tmp_path, f"unix:{socket}", BUDGET_BYTES, SEED) as workers:
        pids = [worker.process.pid for worker in workers]
        (tmp_path / "pids").write_text("".join(f"{pid}\n" for pid in pids))
        with (
            running_server(tmp_path, *_flags(tmp_path)) as server,
            arbiter_client.connect_blocking(server.address) as client,
        ):
            story = Story(workers, crowd.Scale(pids, BUDGET_BYTES + SLACK_BYTES), crowd.Log(client))
            with story.log.reading(), story.scale.weighing():
                _play(client, story)
    _judge(story)


def _judge(story: Story) -> None:
    requests = story.requests()
    print(_told(story, requests))
    _judge_memory(story)
    _judge_outcomes(story, requests)
    _judge_waiting(story, requests)
    assert history.complaints(story.log.events) == []
    _judge_accidents(story, requests)


def _judge_memory(story: Story) -> None:
    assert not story.scale.failure
    assert story.scale.count >= SECONDS / crowd.PACE_S / 4, "weighed often enough to mean something"
    assert story.scale.peak_bytes > BUDGET_BYTES / 2, "the memory was really wanted"
    assert story.scale.peak_bytes <= story.scale.limit_bytes


def _judge_outcomes(story: Story, requests: Mapping[str, tuple[int, float, str, float]]) -> None:
    """Every request has exactly one outcome, and workers, log and totals tell the same."""
    logged = history.outcomes(story.log.events)
    for name, (_, _, outcome, _) in requests.items():
        if not outcome:
            assert name.startswith(f"{story.killed}-"), f"{name} never heard anything"
        elif outcome == "cancelled":
            # Its caller went away: while it waited; or in the breath of its answer, whatever that was, and a grant was
            # then given back; or in that of asking, before there was anything to cancel.
            assert logged.get(name, "cancelled") in OUTCOMES, name
        else:
            assert logged[name] == outcome, name
    assert set(logged) <= set(requests)
    stats, count = story.stats, Counter(logged.values())
    assert stats is not None
    assert stats.total_allocations == len(logged)
    assert stats.successful_allocations == count["granted"]
    assert stats.refused_allocations == count["refused"]
    assert stats.timed_out_allocations == count["timed_out"]
    assert stats.cancelled_allocations == count["cancelled"]


def _judge_waiting(story: Story, requests: Mapping[str, tuple[int, float, str, float]]) -> None:
    """Nobody starves.

    By the order of the line: nobody is passed by less important or later requests more often than the rules allow,
    which is exact. By the clock: who was ready to wait ``PATIENCE_S`` got the lease in that time. After 15 s everybody
    counts as HIGH, so that only one worker of the twelve, the CRITICAL one, could still come before; each holds its
    lease for 4 s at most.
    """
    line = history.waits(story.log.events, {name: priority for name, (priority, *_) in requests.items()})
    assert list(history.overtaking_complaints(line, BACKFILL)) == []
    patient = [name for name, (_, patience_s, outcome, _) in requests.items() if outcome == "timed_out"]
    assert [name for name in patient if requests[name][1] >= PATIENCE_S] == []
    assert sum(each.waited for each in line) >= SECONDS / 4, "there was a line to stand in"


def _judge_accidents(story: Story, requests: Mapping[str, tuple[int, float, str, float]]) -> None:
    """The killed and the frozen worker each lost its lease for its own reason, and the frozen one's bytes stayed."""
    events = story.log.events
    ended = {event.lease_id: event for event in events if event.kind == pb.EVENT_KIND_LEASE_ENDED}
    killed = [event for event in ended.values() if event.holder == story.killed]
    assert killed[-1].fields["reason"] == "ORPHANED"
    # Its memory may have been taken from it before its time to live was over.
    assert ended[story.frozen_lease].fields["reason"] in ("EXPIRED", "PREEMPTED")
    # Who is alive and behaves loses nothing: a lease that is wanted whole is released by its holder.
    # One whose caller went away in the breath of its grant, and then ended, ends with its process at the latest.
    others = [event for lease, event in ended.items() if lease != story.frozen_lease and event is not killed[-1]]
    seen = [event for event in others if requests[event.request_id][2] == "granted"]
    assert {event.fields["reason"] for event in seen} == {"RELEASED"}
    assert {event.fields["reason"] for event in others} <= {"RELEASED", "ORPHANED", "UNDELIVERED"}
    (drained,) = (
        event for event in events if event.kind == pb.EVENT_KIND_LEASE_DRAINED and event.lease_id == story.frozen_lease
    )
    assert drained.time.ToMicroseconds() / 1e6 > story.woken_at
    assert any(
        event.kind == pb.EVENT_KIND_LEASE_GRANTED
        and event.holder == story.frozen
        and event.sequence > ended[story.frozen_lease].sequence
        for event in events
    ), "who was woken goes on"
    if SECONDS >= 60:
        kinds = Counter(event.kind for event in events)
        assert kinds[pb.EVENT_KIND_QUALITY_CHANGED], "the log had changes of quality to explain"
        assert kinds[pb.EVENT_KIND_PREEMPTION_PLANNED], "and preemptions"


def _told(story: Story, requests: Mapping[str, tuple[int, float, str, float]]) -> str:
    """What came of it, for people; pytest shows it when the test fails, or with -s."""
    kinds = Counter(pb.EventKind.Name(event.kind).removeprefix("EVENT_KIND_") for event in story.log.events)
    waited: dict[int, list[float]] = {}
    for priority, _, outcome, seconds in requests.values():
        if outcome == "granted":
            waited.setdefault(priority, []).append(seconds)
    longest = {priority: round(max(values), 1) for priority, values in sorted(waited.items())}
    took = Counter(
        str(line["outcome"]) for worker in story.workers for line in worker.lines() if line["word"] == "took"
    )
    settled = Counter(
        event.fields["outcome"] for event in story.log.events if event.kind == pb.EVENT_KIND_PREEMPTION_SETTLED
    )
    ends = Counter(event.fields["reason"] for event in story.log.events if event.kind == pb.EVENT_KIND_LEASE_ENDED)
    return "\n".join(
        [
            f"seed {SEED}, {SECONDS:g} s; killed {story.killed}, frozen {story.frozen}",
            f"peak {story.scale.peak_bytes / MIB:.1f} MiB of {BUDGET_BYTES // MIB} in {story.scale.count} weighings",
            f"requests {len(requests)}: {dict(Counter(outcome for _, _, outcome, _ in requests.values()))}",
            f"longest wait of the granted by priority, seconds: {longest}",
            f"leases ended: {dict(ends)}; preemptions asked for: {dict(took)}; plans settled: {dict(settled)}",
            f"events: {dict(sorted(kinds.items()))}",
        ]
    )
