"""What every worker does: lease, work, obey directives, and leave when asked or when the lease is lost.

One thread does it all. Work comes in units of at most about a second; between units, and inside them wherever the
workload looks, the newest directive is read from the lease (a plain attribute). Heartbeats are the client's business.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import arbiter_client
from examples import rungs
from examples.holding import Holding, Workload
from examples.stop import Stop, StopAsked

if TYPE_CHECKING:
    from examples.journal import Journal

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_LEASE_LOST = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What to ask the arbiter for.

    Attributes:
        name: Holder, for people.
        workload_type: "llm" or "image".
        priority: "background", "low", "normal", "high" or "critical".
        min_quality: The lowest useful quality in [0,1].
        memory_bytes: Never lease more than this; None: what the largest size needs.
        address: Where the arbiter listens; None: the usual place.
    """

    name: str
    workload_type: str
    priority: str
    min_quality: float
    memory_bytes: int | None
    address: str | None


def run(
    workload: Workload,
    terms: Terms,
    journal: Journal,
    stop: Stop,
    connect: Callable[[str | None], arbiter_client.BlockingClient] = arbiter_client.connect_blocking,
) -> int:
    """Leases memory for `workload` and works until `stop` is asked or the lease is lost.

    Args:
        workload: What to do with the memory.
        terms: What to ask for.
        journal: Is told what happens.
        stop: Ends the work when asked.
        connect: Makes the client from an address.

    Returns:
        The exit code: EXIT_DONE, EXIT_FAILED or EXIT_LEASE_LOST.
    """
    try:
        sizes = rungs.up_to(workload.rungs, terms.memory_bytes)
        full, least = sizes[0].memory_bytes, sizes[-1].memory_bytes
        journal.say("asking", memory_bytes=full, min_memory_bytes=least, min_quality=terms.min_quality)
        with stop.interrupting() as interruptible, connect(terms.address) as client:
            with client.lease(
                terms.name,
                memory=full,
                min_memory=least,
                min_quality=terms.min_quality,
                workload_type=terms.workload_type,
                priority=terms.priority,
                pids=[os.getpid()],
            ) as lease:
                interruptible.close()
                journal.say("leased", lease_id=lease.lease_id, device=lease.device_id)
                Holding(workload, rungs.to_ladder(sizes, terms.min_quality), lease, journal, stop).last()
            journal.say("released")
    except StopAsked:
        journal.say("stopped", detail="before the lease was granted")
    except arbiter_client.LeaseLost as error:
        journal.say("lease_lost", detail=error.message)
        return EXIT_LEASE_LOST
    except (arbiter_client.ArbiterClientError, ValueError, RuntimeError, OSError) as error:
        journal.say("failed", detail=f"{type(error).__name__}: {error}")
        return EXIT_FAILED
    return EXIT_DONE
