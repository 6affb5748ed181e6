"""A real server whose targets change as often as a test wants, which no workload could make them do.

python -m tests.faults.changing SOCKET

It prints "serving". Then it takes a line of words and answers each with one line:

change COUNT RATE   gives the leases new targets, one after the other, so many times at so many a second; the last one
                    of each lease has quality 0.5. Answers "changed REVISION": the newest one
resident            answers "resident BYTES": what it holds of the machine's memory
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from pathlib import Path

from arbiter_sidecar.arbiter import ArbiterConfig
from arbiter_sidecar.cli import logs
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy.publication import Published
from arbiter_sidecar.types import GIB, DirectiveReason
from tests.rpc.served import Served, Setting
from tests.runtime.fakes import FakeClock

#: Targets in turn: up and down, so that some may wait and some may not. The last one is what counts in the end.
QUALITIES = (0.7, 0.8, 0.65, 0.9, 0.6, 0.75, 0.5)
#: Changes are made in steps of so many seconds.
STEP_S = 0.01
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def _tell(served: Served, lease: Lease, quality: float) -> None:
    books = served.arbiter.books
    books.device_of(lease).publish(lease, Published(quality))
    books.announce(lease, DirectiveReason.PRESSURE)


async def _change(served: Served, count: int, rate: int) -> int:
    leases = [lease for lease in served.arbiter.books.leases if lease.alive]
    loop = asyncio.get_running_loop()
    begun, made = loop.time(), 0
    # Whole rounds over all leases and qualities, so that everybody ends at the last one.
    count -= count % (len(leases) * len(QUALITIES))
    while made < count:
        for _ in range(min(count - made, round(rate * STEP_S))):
            turn, place = divmod(made, len(leases))
            _tell(served, leases[place], QUALITIES[turn % len(QUALITIES)])
            made += 1
        # Any command carries the effects out.
        served.runtime.confirm(())
        # What tests within one process look at is the only thing here that remembers every change.
        served.feed.told.clear()
        await asyncio.sleep(max(0.0, begun + made / rate - loop.time()))
    return served.arbiter.books.revision


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


async def main(socket: Path) -> None:
    """Serves until its input ends. What happens is not logged: that would be all that the processor does."""
    logs.set_up("warning")
    # The time of the core stands still, so that nobody rises by itself.
    served = Served(Setting(core=ArbiterConfig(), devices={"card": GIB}, clock=FakeClock()), socket)
    await served.start()
    print("serving", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        match line.split():
            case ["change", count, rate]:
                print(f"changed {await _change(served, int(count), int(rate))}", flush=True)
            case ["resident"]:
                print(f"resident {_resident_bytes()}", flush=True)
            case words:
                raise ValueError(f"cannot do {words}")
    await served.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
