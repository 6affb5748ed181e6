"""Lets requests in: at once where they fit, else in order of arrival as memory comes free."""

from __future__ import annotations

from dataclasses import dataclass

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import effects, preempting, publishing, shards
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.waiting import Waiter
from arbiter_sidecar.policy import publication, ranking
from arbiter_sidecar.policy.publication import Published
from arbiter_sidecar.policy.quality import Elastic
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import DeviceId, EventKind, LeaseId, Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What a request could have on one device now.

    Attributes:
        device: The device.
        elastic: The request as the solver sees it.
        quality: The quality it would start with.
        start_bytes: Bytes at that quality.
        short_bytes: What is missing even with everybody at the minimum; 0 when quality can make room.
        frozen: Whether too little is known of the device to grant anything on it.
        starting: Why it must wait because of somebody's start-up; empty when it need not.
        fits: Whether it may have the bytes now.
    """

    device: DeviceBook
    elastic: Elastic
    quality: float
    start_bytes: int
    short_bytes: int
    frozen: bool
    starting: str
    fits: bool

    @property
    def feasible(self) -> bool:
        """Whether lowering everybody's quality makes room."""
        return self.short_bytes == 0

    @property
    def rank(self) -> tuple[bool, bool, float, int]:
        """Larger is better: granted now, granted after reductions, better quality, more room."""
        possible = self.feasible and not self.frozen and not self.starting
        return (self.fits, possible, self.quality, self.device.available_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dry:
    """What a dry run of an allocation found.

    Attributes:
        device_id: Where it would be.
        quality: With which quality it would start.
        memory_bytes: Bytes at that quality.
        fits: Whether it would be granted at once; else after those who wait already, or after reductions.
    """

    device_id: DeviceId
    quality: float
    memory_bytes: int
    fits: bool


def prospect(books: Books, device: DeviceBook, request: AllocationRequest, now: float) -> Prospect:
    """Looks at a request and a device; changes nothing."""
    elastic = books.shape(request)
    short, start = 0, elastic.max_quality
    if not publishing.at_ease(books, device, request, now):
        solution = publishing.solve(books, device, request, now, leniently=True)
        short = solution.hard_deficit_bytes
        start = publication.quantise(solution.targets[-1], minimum=elastic.min_quality, maximum=elastic.max_quality)
    start_bytes = elastic.bytes_at(start)
    starting = _starting(device, request, now)
    return Prospect(
        device=device,
        elastic=elastic,
        quality=start,
        start_bytes=start_bytes,
        short_bytes=short,
        frozen=device.frozen(now),
        starting=starting,
        fits=short == 0 and not starting and device.fits(start_bytes, now, own=device.own(request)),
    )


def _starting(device: DeviceBook, request: AllocationRequest, now: float) -> str:
    """Why somebody's start-up keeps a request out: another starts up, or it would while memory changes hands."""
    starter = device.fenced_by(now)
    if starter is not None:
        return f"{starter.request.holder} is starting up"
    plan = device.plan
    if request.startup_window_s <= 0.0 or plan is None or (plan.waiter is not None and plan.waiter.request is request):
        return ""
    return "memory changes hands"


def eligible(books: Books, request: AllocationRequest) -> list[DeviceBook]:
    """The devices that could hold a request, in order.

    Raises:
        DeviceNotFound: It names a device that is not there.
        ExceedsCapacity: Its minimum is larger than every device it may use, or than the KV tokens left to promise.
        DeviceStale: Every device that is large enough is lost.
    """
    found = able(books, request)
    if found:
        return found
    allowed = _allowed(books, request)
    if not allowed:
        raise errors.DeviceNotFound(
            f"no device {request.device_id!r}; there is {', '.join(books.devices) or 'none'}",
            device_id=request.device_id,
        )
    floor = books.shape(request).floor_bytes
    largest = max(allowed, key=lambda device: device.facts.capacity_bytes)
    large = [device for device in allowed if floor <= device.facts.capacity_bytes]
    for device in large:
        if not device.lost and request.kv is not None:
            raise errors.ExceedsCapacity(
                f"min_tokens {request.kv.min_tokens} do not fit: of {device.kv.total} KV tokens {device.kv.floors} are "
                "promised already; ask for less",
                requested_tokens=request.kv.min_tokens,
                capacity_tokens=device.kv.total,
            )
    if large:
        raise errors.DeviceStale(
            f"device {largest.device_id} is lost; retry when it is back", device_id=largest.device_id
        )
    raise errors.ExceedsCapacity(
        f"the minimum of {floor} bytes is larger than the capacity of {largest.facts.capacity_bytes} bytes; "
        "ask for less",
        requested_bytes=floor,
        capacity_bytes=largest.facts.capacity_bytes,
    )


def _allowed(books: Books, request: AllocationRequest) -> list[DeviceBook]:
    return [device for device in books.devices.values() if request.device_id in ("", device.device_id)]


def able(books: Books, request: AllocationRequest) -> list[DeviceBook]:
    """The devices that are there and large enough for the minimum of a request, in bytes and in KV tokens."""
    floor = books.shape(request).floor_bytes
    tokens = request.kv.min_tokens if request.kv is not None else 0
    return [
        device
        for device in _allowed(books, request)
        if floor <= device.facts.capacity_bytes
        and not device.lost
        and (tokens == 0 or device.kv.floors + tokens <= device.kv.total)
    ]


def admit(books: Books, now: float) -> None:
    """Grants waiting requests by rank on each device, and marks who is made room for.

    A device is closed to whoever comes later in the line while its bytes are being freed for somebody, while it cannot
    be measured, and when its blocked head has been passed often enough.
    """
    for device in books.devices.values():
        device.awaited, device.candidate = False, None
    for waiter in books.queue:
        waiter.closing, waiter.reclaiming, waiter.reason = False, False, ""
    heads: dict[DeviceId, Waiter] = {}
    for waiter in _ranked(books, now):
        if all(device.awaited for device in books.devices.values()):
            break
        large = able(books, waiter.request)
        free = [prospect(books, device, waiter.request, now) for device in large if not device.awaited]
        best = _best(books, free, waiter)
        if best is None:
            # Its device may have gone while it waited; it waits on, the device may come back.
            waiter.device_id, waiter.reclaiming = None, False
            waiter.reason = "" if large else "its device is lost, or has no KV tokens left to promise"
            continue
        head = heads.get(best.device.device_id)
        if best.fits:
            books.queue.remove(waiter)
            grant(books, best, waiter, now)
            if head is not None:
                head.passed += 1
        else:
            best = _await_turn(books, waiter, best, free, now)
            heads.setdefault(best.device.device_id, waiter)
            head = waiter
        if head is not None:
            best.device.awaited |= head.passed >= books.config.queue.backfill
            head.closing = best.device.awaited


def closed(books: Books, priority: Priority, now: float) -> set[DeviceId | None]:
    """The devices on which a newcomer of this priority would be granted nothing: somebody before it waits for them."""
    aging_s = books.config.queue.aging_s
    pinned = _pinned(books)
    return {
        waiter.device_id
        for waiter in books.queue
        if waiter.closing
        and (
            waiter in pinned
            or ranking.effective_tier(waiter.request.priority, since=waiter.since, now=now, aging_s=aging_s) >= priority
        )
    }


def _pinned(books: Books) -> list[Waiter | None]:
    return [device.plan.waiter for device in books.devices.values() if device.plan is not None]


def _best(books: Books, free: list[Prospect], waiter: Waiter) -> Prospect | None:
    """Where a request is best off. Whoever preempts stays where bytes are freed for it, unless it fits elsewhere."""
    best = max(free, key=lambda each: each.rank, default=None)
    if best is None or best.fits:
        return best
    return next((each for each in free if each.device.plan is not None and each.device.plan.waiter is waiter), best)


def _ranked(books: Books, now: float) -> list[Waiter]:
    """The waiting line with the next first. Whoever preempts for its place has it."""
    aging_s = books.config.queue.aging_s
    pinned = _pinned(books)
    rises = []
    for waiter in books.queue:
        rise = ranking.next_rise(waiter.request.priority, since=waiter.since, now=now, aging_s=aging_s)
        if rise is not None:
            rises.append(rise)
    books.queue.next_rise = min(rises, default=None)
    return sorted(
        books.queue,
        key=lambda each: (
            each not in pinned,
            ranking.rank(each.request.priority, since=each.since, arrival=each.arrival, now=now, aging_s=aging_s),
        ),
    )


def _await_turn(books: Books, waiter: Waiter, best: Prospect, free: list[Prospect], now: float) -> Prospect:
    """Lets a request wait on its best device, or on the best where others can be made to go; returns which."""
    if not best.feasible and not best.frozen and not best.starting:
        preempted = (each for each in _preferred(free, best) if _preempts(books, each, waiter, now))
        best = next(preempted, best)
    device = best.device
    waiter.device_id = device.device_id
    waiter.reclaiming = False
    if best.frozen:
        device.awaited = True
        waiter.reason = "the device cannot be measured at present"
    elif best.starting:
        device.awaited = True
        waiter.reason = f"{best.starting}, nobody may grow or shrink while a worker starts up"
    elif device.plan is not None and device.plan.waiter is waiter:
        _reserve_turn(device, waiter)
        waiter.reason = f"{device.plan.need_bytes} bytes are being taken from less important leases"
    elif best.feasible:
        _reserve_turn(device, waiter)
        waiter.reason = _planned(best)
    else:
        waiter.reason = f"{best.short_bytes} bytes are missing even with every lease at its minimum quality"
    return best


def _preferred(free: list[Prospect], best: Prospect) -> list[Prospect]:
    return [best, *sorted((each for each in free if each is not best), key=lambda each: each.rank, reverse=True)]


def _preempts(books: Books, place: Prospect, waiter: Waiter, now: float) -> bool:
    if place.frozen or place.starting:
        return False
    return preempting.for_waiter(books, place.device, waiter, place.short_bytes, now)


def _planned(best: Prospect) -> str:
    """What a request waits for that lower targets make room for."""
    device = best.device
    free = max(0, device.available_bytes)
    plan = f"{best.start_bytes} bytes at quality {best.quality:.2f} are planned, {free} are free"
    over = device.accounted_bytes - device.granted_bytes
    if over and best.start_bytes <= device.available_bytes + over:
        return f"{plan}; other leases use {over} bytes more than they were told"
    if device.residue_bytes and best.start_bytes <= device.available_bytes + over + device.residue_bytes:
        return f"{plan}; memory that ended leases still hold must be measured gone"
    return f"{plan}; lower targets are published and must be confirmed"


def _reserve_turn(device: DeviceBook, waiter: Waiter) -> None:
    device.awaited = True
    device.candidate = waiter.request
    waiter.reclaiming = True


def grant(books: Books, best: Prospect, waiter: Waiter, now: float) -> Lease:
    """Opens the lease that a prospect promises and answers everybody who waits for it."""
    request, device = waiter.request, best.device
    lease = Lease(
        lease_id=LeaseId(books.names.lease_id()),
        handle=_fresh_handle(books),
        fence=books.leases.next_fence(device.device_id),
        device_id=device.device_id,
        request=request,
        now=now,
    )
    lease.elastic = best.elastic
    lease.published = Published(best.quality)
    lease.limit_bytes = lease.charged_bytes = best.start_bytes
    own = device.own(request)
    device.open(lease, own)
    for former in own.leases:
        # Its bytes have not gone: they are the new lease's from here on.
        books.bury(former, now)
    books.leases.add(lease)
    if request.startup_window_s > 0.0:
        books.later(device.fence_ends(lease), "unfence", lease)
    books.revision += 1
    lease.revision = books.revision
    if request.request_id:
        books.by_request[(request.namespace, request.request_id)] = lease
    books.accounts.open(request.namespace, request.holder)
    mean = books.stats.kind(request.workload)
    if mean is not None:
        mean.move(leases=1, quality=best.quality, now=now)
    shards.enter(books, lease, now)
    books.pending.append(effects.Opened(lease))
    books.happened(
        EventKind.LEASE_GRANTED,
        lease,
        quality=round(best.quality, 4),
        memory_bytes=best.start_bytes,
        waited_s=round(now - waiter.since, 3),
        priority=request.priority.name,
        workload_type=request.workload.name,
    )
    preempting.settle_for(books, waiter, now)
    for position, ticket in enumerate(waiter.tickets):
        books.answer(ticket, lease, waited_s=now - waiter.since, already_granted=position > 0)
    return lease


def _fresh_handle(books: Books) -> int:
    handle = books.names.handle()
    while books.leases.by_handle(handle) is not None or books.leases.grave_by_handle(handle) is not None:
        handle = books.names.handle()
    return handle


def refusal(best: Prospect | None, request: AllocationRequest) -> errors.ArbiterError:
    """Why a request that will not wait cannot have its memory now."""
    if best is None:
        return errors.InsufficientMemory(
            "earlier requests wait for the same memory", requested_bytes=request.memory_bytes
        )
    device = best.device
    if best.frozen:
        return errors.DeviceStale(device_id=device.device_id)
    if best.starting:
        return errors.InsufficientMemory(
            f"{best.starting} on {device.device_id}; wait, or try again soon", device_id=device.device_id
        )
    if not best.feasible:
        reachable = _reachable_quality(best)
        if request.min_quality is not None and 0.0 < reachable < best.elastic.min_quality:
            return errors.InsufficientQuality(
                f"quality {best.elastic.min_quality:.2f} was asked at least, {reachable:.2f} could be had",
                minimum=best.elastic.min_quality,
                achievable=reachable,
                device_id=device.device_id,
            )
    available = max(0, device.available_bytes)
    return errors.InsufficientMemory(
        f"{best.start_bytes} bytes are needed on {device.device_id}, {available} are free now; wait, or ask for less",
        requested_bytes=best.start_bytes,
        available_bytes=available,
        device_id=device.device_id,
    )


def _reachable_quality(best: Prospect) -> float:
    """The quality at which the request would just fit with everybody else at the minimum, on the grid."""
    if best.elastic.slope <= 0.0:
        return 0.0
    reachable = best.elastic.min_quality - best.short_bytes / best.elastic.slope
    return publication.quantise(reachable, minimum=0.0, maximum=1.0)
