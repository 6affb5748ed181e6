"""One of a crowd: leases, holds what it is told, gives way, releases, and asks again until its input ends.

    python -m tests.faults.crowd_worker ADDRESS NAME SEED PRIORITY MIB RECORD

It prints "ready" and begins with the first line of its input. RECORD gets one line of JSON for each request when it is
made and one when it has its outcome, so that a request of a worker that was killed is on record too. What it does is
drawn from SEED. The memory is real: pages of its own, taken up to the directive's limit less a small spare, with the
interpreter's own counted in.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import random
import sys
import time
from collections.abc import Coroutine
from pathlib import Path

import arbiter_client
from arbiter_client import errors

MIB = 1 << 20
#: What the interpreter may grow by until it measures itself again.
SPARE_BYTES = 3 * MIB
#: Seconds between two looks at its own size.
LOOK_S = 0.1
TTL_S = 3.0
#: A patient request waits so long; nothing in the rules makes anybody wait as long as this.
PATIENCE_S = 40.0
#: From here on a worker has others preempted now and then.
HIGH = 4


def own_bytes() -> int:
    """The proportional share of this process, as the kernel counts it."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not tell the proportional share of a process")


class Pages:
    """Real memory in blocks that go back to the kernel one by one."""

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []

    def fit(self, limit_bytes: int, *, grow: bool = True) -> None:
        """Gives until the process is within the limit less the spare, or takes up to it."""
        more = (limit_bytes - SPARE_BYTES - own_bytes()) // MIB
        if grow:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
            self._blocks.extend(mmap.mmap(-1, MIB, flags=flags) for _ in range(more))
        for _ in range(min(-more, len(self._blocks))):
            self._blocks.pop().close()

    def drop(self) -> None:
        """Gives everything."""
        self.fit(0)


class Tenancy:
    """One lease from its grant to its end."""

    def __init__(self, lease: arbiter_client.Lease, pages: Pages) -> None:
        self._lease = lease
        self._pages = pages
        self._limit = lease.memory_limit_bytes
        self._orders: set[str] = set()
        self._leaving = asyncio.Event()

    async def last(self, hold_s: float) -> None:
        """Obeys for so long, or until the lease is lost or wanted whole; then nothing is held any more."""
        obeying = asyncio.create_task(self._obey())
        until = time.monotonic() + hold_s
        while time.monotonic() < until and not self._leaving.is_set() and not self._lease.lost:
            self._pages.fit(self._lease.memory_limit_bytes, grow=False)
            await asyncio.wait([obeying], timeout=LOOK_S)
        obeying.cancel()
        await asyncio.wait([obeying])
        if not obeying.cancelled() and (error := obeying.exception()) is not None:
            raise error
        self._pages.drop()

    async def _obey(self) -> None:
        async for directive in self._lease.directives():
            order = directive.reclaim
            if order is not None and order.reclaim_id not in self._orders:
                self._orders.add(order.reclaim_id)
                self._lease.acknowledge(order)
                if directive.memory_limit_bytes == self._limit:
                    # An order for the whole lease leaves the limit as it was.
                    self._leaving.set()
                    return
            self._limit = directive.memory_limit_bytes
            self._pages.fit(self._limit)
            self._lease.applied(directive, used_memory_bytes=own_bytes())


class Worker:
    """What one process does."""

    def __init__(self, name: str, seed: int, priority: int, memory_mib: int, record: Path) -> None:
        self._name = name
        self._random = random.Random(seed)
        self._priority = priority
        self._memory = memory_mib * MIB
        self._record = record.open("a", buffering=1)
        self._pages = Pages()
        self._asked = 0

    async def work(self, address: str, stop: asyncio.Event) -> None:
        """Leases over and over until it is told to stop."""
        async with arbiter_client.connect(address) as client:
            while not stop.is_set():
                lease = await self._ask(client, stop)
                if lease is not None:
                    async with lease:
                        await self._hold(lease, stop)
                await _until(stop, asyncio.sleep(self._random.uniform(0.05, 0.5)))

    async def _ask(self, client: arbiter_client.Client, stop: asyncio.Event) -> arbiter_client.Lease | None:
        draw = self._random
        self._asked += 1
        name = f"{self._name}-{self._asked}"
        wait = draw.choices([PATIENCE_S, draw.uniform(1.0, 4.0), 0.0], [0.6, 0.25, 0.15])[0]
        patience = draw.uniform(0.2, 2.0) if draw.random() < 0.1 else PATIENCE_S + 20.0
        wanted = client.lease(
            self._name,
            memory=self._memory,
            min_memory=int(self._memory * draw.uniform(0.35, 0.6)),
            workload_type=draw.choice(["llm", "image", "other"]),
            priority=self._priority,
            ttl=TTL_S,
            wait=wait,
            request_id=name,
            may_preempt=self._priority >= HIGH,
        )
        self._say(request=name, word="asked", priority=self._priority, wait_s=wait)
        asking = asyncio.create_task(wanted.acquire())
        await _until(stop, asyncio.wait([asking], timeout=patience))
        asking.cancel()
        await asyncio.wait([asking])
        outcome = _outcome(asking)
        self._say(request=name, word=outcome)
        return asking.result() if outcome == "granted" else None

    async def _hold(self, lease: arbiter_client.Lease, stop: asyncio.Event) -> None:
        tenancy = asyncio.create_task(Tenancy(lease, self._pages).last(self._random.uniform(1.0, 4.0)))
        if self._priority >= HIGH and self._random.random() < 0.5:
            await _until(stop, asyncio.wait([tenancy], timeout=0.5))
            await self._take(lease)
        await _until(stop, asyncio.wait([tenancy]))
        tenancy.cancel()
        await asyncio.wait([tenancy])
        self._pages.drop()
        if not tenancy.cancelled():
            tenancy.result()

    async def _take(self, lease: arbiter_client.Lease) -> None:
        """Has some memory taken from others; that nobody has any to give is an answer like any other."""
        try:
            taken = await lease.preempt(memory=self._random.randint(4, 24) * MIB, timeout=1.0, allow_partial=True)
        except (errors.NoDonor, errors.QueueFull, errors.LeaseNotFound, errors.Cancelled) as error:
            self._say(word="took", outcome=error.reason)
        else:
            self._say(word="took", outcome="TAKEN", confirmed_bytes=taken.confirmed_bytes)

    def _say(self, **what: object) -> None:
        print(json.dumps({**what, "at": time.monotonic()}), file=self._record)


def _outcome(asking: asyncio.Task[arbiter_client.Lease]) -> str:
    """What became of a request, from its caller's side; any other error is a failure of the worker."""
    if asking.cancelled():
        return "cancelled"
    match asking.exception():
        case None:
            return "granted"
        case errors.WaitTimeout():
            return "timed_out"
        case errors.InsufficientMemory() | errors.InsufficientQuality():
            return "refused"
        case error:
            raise error


async def _until(stop: asyncio.Event, what: Coroutine[object, object, object]) -> None:
    """Waits for ``what``, or until it is time to stop."""
    tasks = [asyncio.create_task(what), asyncio.create_task(stop.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def main() -> None:
    """Works from the first line of its input to the end of it."""
    address, name, seed, priority, memory_mib, record = sys.argv[1:]
    worker = Worker(name, int(seed), int(priority), int(memory_mib), Path(record))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    stop = asyncio.Event()
    reading = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    reading.add_done_callback(lambda _: stop.set())
    await worker.work(address, stop)
    await reading


if __name__ == "__main__":
    asyncio.run(main())
