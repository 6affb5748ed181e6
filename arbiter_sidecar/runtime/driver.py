"""The only place where time enters the core and where its effects leave it.

One event loop owns everything here. No command awaits between reading the core and carrying out its effects, so the
core needs no lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from arbiter_sidecar.arbiter import Arbiter, BeatOutcome, Dry, effects, explain
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.arbiter.explain import Explanation
from arbiter_sidecar.arbiter.shards import Evaluation
from arbiter_sidecar.errors import ArbiterError, InsufficientMemory, InsufficientQuality
from arbiter_sidecar.ledger.accounts import Account
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.kv import KvPlan, Reservation
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Plan
from arbiter_sidecar.ledger.shards import ShardGroup
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.ports import Clock, DeviceProbe, ProcessWatch
from arbiter_sidecar.requests import AllocationRequest, AssignmentRequest, Beat, PreemptionRequest, ReservationRequest
from arbiter_sidecar.runtime.events import EventLog
from arbiter_sidecar.runtime.guests import Guests
from arbiter_sidecar.runtime.news import News
from arbiter_sidecar.runtime.sampling import Measure, Sampler, SamplingRates
from arbiter_sidecar.types import DeviceId, DeviceSample, EventKind, Process, Ticket

#: The core is called at least this often, so that it can tell a pause of its own from silence of the others. A third
#: of the default pause guard.
PULSE_S = 0.25
#: Longest stretch of expiring leases in one turn of the loop; everything else waits so long.
SWEEP_BUDGET_S = 0.00025
#: So much suspended time on top means that the machine has slept; less is what the two clocks differ by when read.
SLEEP_S = 1.0
#: Leases that are looked at between two looks at the clock.
SWEEP_STEP = 8
#: Events that get a log line of their own in one turn; the rest is counted in one line, so that a mass event does not
#: hold up the loop.
LOGGED_PER_TURN = 20

#: After the end of a lease its device is measured often for so long; a process that keeps its memory longer is not
#: going to be quick.
EAGER_AFTER_END_S = 60.0
#: Events that come with every change of every worker: logged only when asked for.
QUIET = frozenset({EventKind.DIRECTIVE_APPLIED, EventKind.LEASE_CONFIRMED, EventKind.PRESSURE_CHANGED})

_log = structlog.get_logger("arbiter")


class Feed(Protocol):
    """Who wants to hear of leases: the subscriptions."""

    def directive_changed(self, lease: Lease) -> None:
        """The lease has a new directive."""

    def lease_ended(self, lease: Lease) -> None:
        """The lease is over."""

    def reclaim_cancelled(self, lease: Lease, reclaim_id: str) -> None:
        """The lease need not give memory back any more."""

    def draining(self) -> None:
        """The server goes away."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller of ``Runtime.allocate`` gets."""

    lease: Lease
    waited_s: float
    already_granted: bool


@dataclass(frozen=True, slots=True)
class Preempted:
    """What a caller of ``Runtime.preempt`` gets: the plan as it ended."""

    plan: Plan | KvPlan


class Runtime:
    """Commands from the outside, with the time added; effects to the outside, in order.

    Attributes:
        clock: The clock.
        events: The audit events.
        shard_news: Rings when something about a split model has changed.
        started_at: When it was made, monotonic seconds.
        settled: Set while no lease lives.
        failed: Set when a defect has stopped its time: nothing expires and nobody's wait ends any more, so the process
            must.
    """

    def __init__(
        self,
        arbiter: Arbiter,
        *,
        clock: Clock,
        watch: ProcessWatch,
        probes: Sequence[DeviceProbe],
        measure: Measure,
        rates: SamplingRates,
    ) -> None:
        self._arbiter = arbiter
        self._watch = watch
        self._feeds: list[Feed] = []
        self._waiting: dict[Ticket, asyncio.Future[Grant]] = {}
        self._preempting: dict[Ticket, asyncio.Future[Preempted]] = {}
        self._reserving: dict[Ticket, asyncio.Future[Reservation]] = {}
        self._watched: set[Process] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.clock = clock
        self.events = EventLog()
        self.shard_news = News()
        self.started_at = clock.now()
        self._slept_s = clock.slept()
        self.settled = asyncio.Event()
        self.failed = asyncio.Event()
        for probe in probes:
            arbiter.add_device(probe.facts, clock.now())
        self._guests = Guests(arbiter.books)
        self._samplers = {
            probe.facts.device_id: self._sampler(probe, measure, rates)
            for probe in probes
            if arbiter.books.devices[probe.facts.device_id].measured
        }
        self._carry_out()

    @property
    def books(self) -> Books:
        """The ledgers, to be read only."""
        return self._arbiter.books

    @property
    def epoch(self) -> int:
        """The epoch of this run."""
        return self._arbiter.epoch

    @property
    def watch(self) -> ProcessWatch:
        """Knows processes."""
        return self._watch

    def feed(self, feed: Feed) -> None:
        """Adds somebody who wants to hear of leases."""
        self._feeds.append(feed)

    # Life -------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes a first sample of every device, then keeps sampling and keeps time until ``stop``."""
        for sampler in self._samplers.values():
            await sampler.once()
        self._tasks = [asyncio.create_task(sampler.run()) for sampler in self._samplers.values()]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        self._tick()

    async def stop(self) -> None:
        """Stops sampling and keeping time; forgets the processes."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._watch.close()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # Without samples nothing can be granted soon: say so loudly, the device's health shows it too.
            _log.error("sampling_stopped", error=repr(error))

    def _tick(self) -> None:
        try:
            self._pass_time()
        except Exception as error:
            _log.error("time_stopped", error=repr(error), exc_info=error)
            self.failed.set()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._rest(), self._tick)

    def _pass_time(self) -> None:
        self._notice_sleep()
        begun = self.clock.now()
        more = True
        while more and self.clock.now() - begun < SWEEP_BUDGET_S:
            more = self._arbiter.advance(self.clock.now(), SWEEP_STEP)
        self._carry_out()

    def _notice_sleep(self) -> None:
        """Tells the core when the machine has been suspended since the last look, and has everything measured anew."""
        slept = self.clock.slept() - self._slept_s
        if slept > SLEEP_S:
            self._slept_s += slept
            self._arbiter.resumed(slept, self.clock.now())
            for sampler in self._samplers.values():
                sampler.hurry()

    def _rest(self) -> float:
        """Seconds until something is due, at most a pulse."""
        due = self._arbiter.next_deadline()
        return PULSE_S if due is None else min(PULSE_S, max(0.0, due - self.clock.now()))

    def _wake_in_time(self) -> None:
        """Brings the next look forward: a caller that waits less than a pulse must not wait for one."""
        if self._timer is None:
            return
        loop, rest = asyncio.get_running_loop(), self._rest()
        if loop.time() + rest < self._timer.when():
            self._timer.cancel()
            self._timer = loop.call_later(rest, self._tick)

    # Commands ---------------------------------------------------------------------------------------------------------

    async def allocate(self, request: AllocationRequest) -> Grant:
        """Waits for a lease.

        Raises:
            ArbiterError: It was refused.
            asyncio.CancelledError: The caller has gone; the request, or the grant it did not see, is undone.
        """
        self._notice_sleep()
        since = await self._measure_guests(request)
        ticket = self._arbiter.allocate(request, self.clock.now(), since=since)
        answer: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = answer
        self._carry_out()
        if not answer.done():
            self._wake_in_time()
        try:
            grant = await answer
        except asyncio.CancelledError:
            self._arbiter.cancel(ticket, self.clock.now())
            self._carry_out()
            raise
        finally:
            self._waiting.pop(ticket, None)
        self._arbiter.delivered(ticket)
        return grant

    async def _measure_guests(self, request: AllocationRequest) -> float | None:
        """Has the processes of a request measured where that may decide: what they hold must not count against it.

        Returns:
            When it began to wait for that; ``None`` when it did not.
        """
        since = self.clock.now()
        unknown = self._guests.unknown(request, since)
        if not unknown or not self._in_doubt(request):
            return None
        await self._guests.measure(request, [self._samplers[device.device_id] for device in unknown])
        self._notice_sleep()
        return since

    def _in_doubt(self, request: AllocationRequest) -> bool:
        """Whether a request would get less than its best now, for want of memory."""
        try:
            dry = self._arbiter.dry_run(request, self.clock.now())
        except (InsufficientMemory, InsufficientQuality):
            return True
        except ArbiterError:
            # It can never have it, or no sample changes that.
            return False
        return not dry.fits or dry.quality < request.max_quality

    async def preempt(self, asked: PreemptionRequest) -> Preempted:
        """Waits until memory was taken from others, or was not.

        Raises:
            ArbiterError: It was refused, or too little came free in time.
            asyncio.CancelledError: The caller has gone; when nobody else waits for it the donors are let off.
        """
        ticket = self._arbiter.preempt(asked, self.clock.now())
        answer: asyncio.Future[Preempted] = asyncio.get_running_loop().create_future()
        self._preempting[ticket] = answer
        self._carry_out()
        self._wake_in_time()
        try:
            return await answer
        except asyncio.CancelledError:
            self._arbiter.withdraw(ticket, self.clock.now())
            self._carry_out()
            raise
        finally:
            self._preempting.pop(ticket, None)

    async def reserve(self, asked: ReservationRequest) -> Reservation:
        """Waits for KV tokens.

        Raises:
            ArbiterError: They were refused.
            asyncio.CancelledError: The caller has gone; whatever was reserved for it has returned.
        """
        ticket = self._arbiter.reserve(asked, self.clock.now())
        answer: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        self._reserving[ticket] = answer
        self._carry_out()
        if not answer.done():
            self._wake_in_time()
        try:
            return await answer
        except asyncio.CancelledError:
            self._arbiter.abandon(ticket, self.clock.now())
            self._carry_out()
            raise
        finally:
            self._reserving.pop(ticket, None)

    def evaluate_balance(self, namespace: str, group: str, layers: int = 0) -> Evaluation:
        """Whether layers of a split model should move. Raises ShardNotFound, InvalidRequest."""
        found = self._arbiter.evaluate_balance(namespace, group, layers, self.clock.now())
        self._carry_out()
        return found

    def assign(self, asked: AssignmentRequest) -> ShardGroup:
        """Moves layers of a split model. Raises what ``Arbiter.assign`` raises."""
        group = self._arbiter.assign(asked, self.clock.now())
        self._carry_out()
        return group

    def complete(self, reservation_id: str) -> None:
        """Returns a reservation of KV tokens. Raises ReservationNotFound."""
        self._arbiter.complete(reservation_id, self.clock.now())
        self._carry_out()

    def dry_preempt(self, asked: PreemptionRequest) -> preemption.Plan:
        """Who would lose what; changes nothing. Raises what ``preempt`` raises about the request itself."""
        return self._arbiter.dry_preempt(asked, self.clock.now())

    def dry_run(self, request: AllocationRequest) -> Dry:
        """What ``allocate`` would do now. Raises what it would raise."""
        return self._arbiter.dry_run(request, self.clock.now())

    def heartbeat(self, beat: Beat) -> BeatOutcome:
        """Renews leases and takes reports in."""
        outcome = self._arbiter.heartbeat(beat, self.clock.now())
        self._carry_out()
        for device_id in outcome.touched:
            # Somebody says that bytes are free for which somebody waits; they count when they are measured.
            if (sampler := self._samplers.get(device_id)) is not None:
                sampler.at_once()
        return outcome

    def confirm(self, lease_ids: Iterable[str]) -> None:
        """A quality stream was opened for these leases."""
        self._arbiter.confirm(lease_ids, self.clock.now())
        self._carry_out()

    def release(self, lease_id: str, fence: int) -> bool:
        """Gives a lease back; True when it had ended before. Raises LeaseNotFound, Fenced."""
        already = self._arbiter.release(lease_id, fence, self.clock.now())
        self._carry_out()
        # Bytes that nobody could see, and whose holder is believed, are free now and not a pulse later.
        self._wake_in_time()
        return already

    def drain(self) -> None:
        """Stops granting and tells everybody."""
        self._arbiter.drain(self.clock.now())
        self._carry_out()
        for feed in self._feeds:
            feed.draining()

    def accounts(self) -> list[Account]:
        """What sharing has cost each holder up to now."""
        return self._arbiter.accounts(self.clock.now())

    def explain_lease(self, lease_id: str) -> Explanation:
        """Why a lease has its quality. Raises LeaseNotFound."""
        return explain.lease(self.books, lease_id, self.clock.now())

    def explain_request(self, request_id: str) -> Explanation:
        """Why a request waits or was refused. Raises LeaseNotFound."""
        return explain.request(self.books, request_id, self.clock.now())

    def explain_device(self, device_id: str) -> Explanation:
        """The numbers of a device. Raises DeviceNotFound."""
        return explain.device(self.books, device_id, self.clock.now())

    # Effects ----------------------------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        happened = 0
        while pending := self._arbiter.take_effects():
            for effect in pending:
                if isinstance(effect, effects.Happened):
                    happened += 1
                    self._record(effect, happened)
                else:
                    self._carry(effect)
        if happened > LOGGED_PER_TURN:
            _log.info("events_not_logged", count=happened - LOGGED_PER_TURN)
        if not len(self.books.leases):
            self.settled.set()
        else:
            self.settled.clear()

    def _record(self, happened: effects.Happened, place: int) -> None:
        event = self.events.add(happened, self.clock.wall())
        if place <= LOGGED_PER_TURN:
            named = {
                name: value
                for name in ("lease_id", "request_id", "device_id", "holder", "namespace")
                if (value := getattr(happened, name))
            }
            write = _log.debug if happened.kind in QUIET else _log.info
            write(happened.kind.name.lower(), sequence=event.sequence, **named, **happened.fields)

    def _carry(self, effect: effects.Effect) -> None:
        if isinstance(effect, effects.DirectiveChanged):
            for feed in self._feeds:
                feed.directive_changed(effect.lease)
        elif isinstance(effect, effects.Granted):
            self._answer(effect.ticket, Grant(effect.lease, effect.waited_s, effect.already_granted))
        elif isinstance(effect, effects.Refused):
            self._answer(effect.ticket, effect.error)
        elif isinstance(effect, effects.PlanClosed):
            self._close_plan(effect)
        elif isinstance(effect, effects.Reserved | effects.ReservationRefused):
            self._answer_reservation(effect)
        elif isinstance(effect, effects.ReclaimCancelled):
            for feed in self._feeds:
                feed.reclaim_cancelled(effect.lease, effect.reclaim_id)
        elif isinstance(effect, effects.ShardsChanged):
            self.shard_news.ring()
        elif isinstance(effect, effects.Opened):
            self._hurry(effect.lease)
            for process in effect.lease.request.processes:
                self._watch_process(process)
        elif isinstance(effect, effects.Ended):
            self._hurry(effect.lease)
            for feed in self._feeds:
                feed.lease_ended(effect.lease)
        elif isinstance(effect, effects.Drained):
            for process in effect.lease.request.processes:
                self._unwatch_process(process)
        else:
            raise TypeError(f"nobody carries out {effect!r}")

    def _answer(self, ticket: Ticket, answer: Grant | ArbiterError) -> None:
        waiting = self._waiting[ticket]
        if waiting.done():
            # The caller was cancelled in this very turn; its own clean-up tells the core.
            return
        if isinstance(answer, Grant):
            waiting.set_result(answer)
        else:
            waiting.set_exception(answer)

    def _close_plan(self, closed: effects.PlanClosed) -> None:
        answer = self._preempting[closed.ticket]
        if answer.done():
            return
        if closed.error is not None:
            answer.set_exception(closed.error)
        elif closed.plan is not None:
            answer.set_result(Preempted(closed.plan))

    def _answer_reservation(self, effect: effects.Reserved | effects.ReservationRefused) -> None:
        answer = self._reserving[effect.ticket]
        if answer.done():
            return
        if isinstance(effect, effects.Reserved):
            answer.set_result(effect.reservation)
        else:
            answer.set_exception(effect.error)

    def _watch_process(self, process: Process) -> None:
        if process in self._watched:
            return
        if self._watch.watch(process, self._process_exited):
            self._watched.add(process)
        else:
            asyncio.get_running_loop().call_soon(self._process_exited, process)

    def _unwatch_process(self, process: Process) -> None:
        if process in self._watched and not self.books.leases.holding(process):
            self._watched.discard(process)
            self._watch.unwatch(process)

    def _process_exited(self, process: Process) -> None:
        self._watched.discard(process)
        self._arbiter.process_exited(process, self.clock.now())
        self._carry_out()

    def _hurry(self, lease: Lease) -> None:
        sampler = self._samplers.get(lease.device_id)
        if sampler is not None:
            sampler.hurry()

    # Samples ----------------------------------------------------------------------------------------------------------

    def _sampler(self, probe: DeviceProbe, measure: Measure, rates: SamplingRates) -> Sampler:
        book = self.books.devices[probe.facts.device_id]
        return Sampler(
            probe,
            measure=measure,
            clock=self.clock,
            rates=rates,
            holders=lambda: list(book.processes()),
            guests=lambda: self._guests.on(book),
            eager=lambda: book.expecting or self._draining(book),
            on_sample=self._sampled,
            on_failure=lambda detail: self._failed(probe.facts.device_id, detail),
        )

    def _draining(self, book: DeviceBook) -> bool:
        since = self.clock.now() - EAGER_AFTER_END_S
        return any(lease.ended_at > since and book.watched(lease) for lease in book.ended.values())

    def _sampled(self, sample: DeviceSample, taken_at: float) -> None:
        self._notice_sleep()
        self._arbiter.observe(sample, taken_at, self.clock.now())
        self._carry_out()

    def _failed(self, device_id: DeviceId, detail: str) -> None:
        self._arbiter.sample_failed(device_id, detail, self.clock.now())
        self._carry_out()
