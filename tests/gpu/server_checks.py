"""Checks of a real arbiter on the card: each returns a line about what it measured, or raises ``AssertionError``.

What the arbiter says is compared with what the driver says when it is asked beside the arbiter.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from arbiter.v1 import lease_pb2
from arbiter_sidecar.types import GIB, MIB
from tests.gpu.bench import Bench
from tests.gpu.served import SHARED_BYTES, serving

#: What may come and go beside the blocks: pools and page tables of a context.
_SLACK = 64 * MIB
_STRANGER = 512 * MIB
#: A part of what is shared that leaves no room for a second one of its size.
_MOST = 3 * SHARED_BYTES // 4
_HALF = SHARED_BYTES // 2
_TAKEN = SHARED_BYTES // 8


def check_server_measures_what_a_holder_takes(bench: Bench) -> str:
    """The arbiter shows for a lease what the driver shows for its process, and that is within the lease."""
    with serving(bench) as served, served.tenant("holder", _MOST, _MOST) as tenant:
        shown, driver = served.measured("holder"), bench.held(tenant.process)
        assert abs(shown - driver) <= _SLACK, f"the arbiter shows {shown} bytes, the driver {driver}"
        assert tenant.held_bytes <= shown <= _MOST, f"{tenant.held_bytes} taken of {_MOST} leased, {shown} shown"
        return f"{tenant.held_bytes // MIB} MiB taken, {shown // MIB} MiB shown of {_MOST // MIB} MiB leased"


def check_server_shows_a_stranger_as_foreign(bench: Bench) -> str:
    """Memory of a process without a lease is foreign, and less can be leased by as much."""
    with serving(bench) as served, bench.worker() as stranger:
        bench.lag("the stranger's context", lambda: served.device().foreign_bytes >= bench.used() - _SLACK)
        before = served.device()
        stranger.tell(f"take {_STRANGER}")
        least = before.foreign_bytes + _STRANGER - _SLACK
        lag = bench.lag("foreign memory", lambda: served.device().foreign_bytes >= least)
        after = served.device()
        grown, lost = after.foreign_bytes - before.foreign_bytes, before.available_bytes - after.available_bytes
        assert grown <= _STRANGER + _SLACK, f"a stranger took {_STRANGER} bytes, foreign grew by {grown}"
        assert abs(grown - lost) <= _SLACK, f"foreign grew by {grown} bytes, {lost} fewer can be leased"
        return f"foreign grew by {grown // MIB} MiB, shown after {lag * 1000:.0f} ms"


def check_killed_holders_bytes_go_to_who_waits(bench: Bench) -> str:
    """A request that waits for the memory of a holder gets it when the holder was killed and its bytes are gone."""
    with (
        serving(bench) as served,
        ThreadPoolExecutor(1) as threads,
        served.tenant("holder", _MOST, _MOST) as tenant,
    ):
        waiting = threads.submit(served.ask, "next", _MOST)
        bench.lag("waiting", lambda: len(served.client.state().waiting) == 1)
        assert not waiting.done(), "the memory is taken"
        begun = time.monotonic()
        tenant.kill()
        lease = waiting.result()
        lag = time.monotonic() - begun
        assert bench.held(tenant.process) == 0, "granted before the bytes were gone"
        assert lease.memory_limit_bytes == _MOST, f"granted {lease.memory_limit_bytes} bytes instead of {_MOST}"
        lease.release()
        return f"{_MOST // MIB} MiB granted {lag * 1000:.0f} ms after the kill"


def check_worker_shrinks_for_a_newcomer_and_gives_when_preempted(bench: Bench) -> str:
    """A BACKGROUND worker gives blocks back for a HIGH newcomer, and more of them when that preempts."""
    with serving(bench) as served, served.tenant("background", _MOST, GIB) as tenant:
        full = bench.held(tenant.process)
        begun = time.monotonic()
        newcomer = served.ask("newcomer", _HALF)
        shrinking = time.monotonic() - begun
        limit, shrunk = served.lease("background").directive.memory_limit_bytes, bench.held(tenant.process)
        assert shrunk <= limit <= SHARED_BYTES - _HALF, f"{shrunk} bytes held, {limit} allowed"
        assert tenant.holds() < tenant.held_bytes, "it has given nothing back"
        begun = time.monotonic()
        taken = newcomer.preempt(memory=_TAKEN)
        giving = time.monotonic() - begun
        left = bench.held(tenant.process)
        assert taken.confirmed_bytes == _TAKEN, f"{taken.confirmed_bytes} of {_TAKEN} bytes were confirmed"
        outcomes = [each.outcome for each in taken.donations]
        assert outcomes == ["CONFIRMED"], f"the donations ended as {outcomes}"
        assert left <= limit - _TAKEN, f"{left} bytes are held by a donor that has {limit - _TAKEN} left"
        assert served.lease("background").state == lease_pb2.LEASE_STATE_ACTIVE, "the donor keeps its lease"
        bench.lag("the credit", lambda: newcomer.memory_limit_bytes == _HALF + _TAKEN)
        newcomer.release()
        return (
            f"{full // MIB} MiB shrunk to {shrunk // MIB} in {shrinking * 1000:.0f} ms, "
            f"to {left // MIB} in {giving * 1000:.0f} ms"
        )


def check_deaf_worker_is_revoked_and_credited_when_gone(bench: Bench) -> str:
    """Who ignores an order loses the lease at the deadline; who asked gets the bytes when they are measured gone."""
    with (
        serving(bench) as served,
        ThreadPoolExecutor(1) as threads,
        served.tenant("deaf", _MOST, _MOST, "deaf") as tenant,
    ):
        asking = served.ask("asking", _TAKEN)
        taking = threads.submit(asking.preempt, memory=_TAKEN, timeout=0.5)
        revoked = bench.lag("revoking", lambda: served.lease("deaf").end_reason == lease_pb2.END_REASON_PREEMPTED)
        # Long enough for some samples: nothing may be credited while the bytes are there.
        time.sleep(1.0)
        assert not taking.done(), "answered although the donor still holds its memory"
        assert asking.memory_limit_bytes == _TAKEN, "credited although the donor still holds its memory"
        assert served.device().draining_bytes >= tenant.held_bytes, "what is held by nobody's right is charged"
        assert bench.held(tenant.process) >= tenant.held_bytes, "the deaf worker has given something back"
        begun = time.monotonic()
        tenant.kill()
        taken = taking.result()
        lag = time.monotonic() - begun
        assert bench.held(tenant.process) == 0, "credited before the bytes were gone"
        # The whole lease went, and with it more than was asked for; only that much is credited.
        assert taken.confirmed_bytes >= _TAKEN, f"{taken.confirmed_bytes} of {_TAKEN} bytes were confirmed"
        outcomes = [each.outcome for each in taken.donations]
        assert outcomes == ["REVOKED"], f"the donations ended as {outcomes}"
        bench.lag("the credit", lambda: asking.memory_limit_bytes == 2 * _TAKEN)
        asking.release()
        return f"revoked after {revoked * 1000:.0f} ms, credited {lag * 1000:.0f} ms after its end"


#: All need a driver that tells processes apart.
SERVER_CHECKS = (
    check_server_measures_what_a_holder_takes,
    check_server_shows_a_stranger_as_foreign,
    check_killed_holders_bytes_go_to_who_waits,
    check_worker_shrinks_for_a_newcomer_and_gives_when_preempted,
    check_deaf_worker_is_revoked_and_credited_when_gone,
)
