"""Who keeps the memory of a lease that was taken is ended, and nobody else."""

from __future__ import annotations

import asyncio
import signal

from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.runtime import Enforcer, EnforcerTimes
from arbiter_sidecar.types import GIB, EndReason, Process
from tests.runtime.conftest import Drive
from tests.runtime.driving import Driven, Outside, wish
from tests.runtime.fakes import until

P42, P43 = Process(42, 420), Process(43, 430)
MEASURED = Outside(devices={}, measured={"gpu0": 24 * GIB}, pids=(42, 43))
AT_ONCE = EnforcerTimes(patience_s=0.0, kill_grace_s=0.0)


async def taken(driven: Driven, *processes: Process, reason: EndReason = EndReason.PREEMPTED) -> Lease:
    """A lease that has just been taken; its bytes are still there."""
    lease = await driven.take(wish(4.0, *processes))
    driven.arbiter.books.end(lease, reason, driven.runtime.clock.now())
    driven.runtime.confirm(())
    return lease


async def test_holder_is_ended_gently_and_then_not(drive: Drive) -> None:
    driven = await drive(MEASURED)
    driven.runtime.feed(Enforcer(driven.runtime, AT_ONCE))
    await taken(driven, P42)
    await until(lambda: len(driven.watch.signals) == 2)
    assert driven.watch.signals == [(42, signal.SIGTERM), (42, signal.SIGKILL)]


async def test_holder_that_gave_back_by_itself_is_left_alone(drive: Drive) -> None:
    driven = await drive(MEASURED)
    enforcer = Enforcer(driven.runtime, AT_ONCE)
    driven.runtime.feed(enforcer)
    await taken(driven, P42, reason=EndReason.RELEASED)
    await taken(driven, P43, reason=EndReason.EXPIRED)
    for _ in range(20):
        await asyncio.sleep(0)
    assert driven.watch.signals == []
    enforcer.close()


async def test_process_with_another_living_lease_is_left_alone(drive: Drive) -> None:
    driven = await drive(MEASURED)
    driven.runtime.feed(Enforcer(driven.runtime, AT_ONCE))
    await driven.take(wish(2.0, P42))
    await taken(driven, P42, P43)
    await until(lambda: len(driven.watch.signals) == 2)
    assert {pid for pid, _ in driven.watch.signals} == {43}


async def test_nobody_is_hunted_after_the_end(drive: Drive) -> None:
    driven = await drive(MEASURED)
    enforcer = Enforcer(driven.runtime, EnforcerTimes(patience_s=0.001))
    driven.runtime.feed(enforcer)
    await taken(driven, P42)
    enforcer.close()
    await asyncio.sleep(0.01)
    assert driven.watch.signals == []
