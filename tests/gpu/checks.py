"""The checks: each returns a line about what it measured, or raises ``AssertionError`` when it is not as promised."""

from __future__ import annotations

import statistics
import time

from arbiter_sidecar.types import MIB
from tests.gpu.bench import Bench

#: Large against the granularity of the driver (2 MiB) and small enough for any card.
_BLOCK = 512 * MIB
#: What may come and go beside the blocks: pools and page tables of a context.
_SLACK = 64 * MIB
_SAMPLES = 200


def check_device_total_follows_an_allocation(bench: Bench) -> str:
    """Memory that a process takes appears in the use of the whole card."""
    with bench.worker() as worker:
        before = bench.used()
        worker.tell(f"take {_BLOCK}")
        grown = bench.used() - before
        assert _BLOCK - _SLACK <= grown <= _BLOCK + _SLACK, f"{_BLOCK} bytes taken, {grown} measured"
        return f"{_BLOCK // MIB} MiB taken, {grown // MIB} MiB measured"


def check_memory_is_attributed_to_its_process(bench: Bench) -> str:
    """Memory that a holder takes is measured as the holder's."""
    with bench.worker() as worker:
        context = bench.held(worker.process)
        assert context > 0, "a process with a context holds nothing"
        worker.tell(f"take {_BLOCK}")
        grown = bench.held(worker.process) - context
        assert _BLOCK <= grown <= _BLOCK + _SLACK, f"{_BLOCK} bytes taken, {grown} attributed"
        return f"{_BLOCK // MIB} MiB taken, {grown // MIB} MiB attributed; a context alone is {context // MIB} MiB"


def check_children_count_for_their_holder(bench: Bench) -> str:
    """Memory of a child process is measured as the holder's above it."""
    with bench.worker() as worker:
        alone = bench.held(worker.process)
        worker.tell(f"child {_BLOCK}")
        grown = bench.held(worker.process) - alone
        assert grown >= _BLOCK, f"a child took {_BLOCK} bytes, {grown} were attributed to its parent"
        return f"a child with {_BLOCK // MIB} MiB adds {grown // MIB} MiB"


def check_stranger_is_foreign(bench: Bench) -> str:
    """Memory of a process that holds nothing is foreign, and the holder's stays the same."""
    with bench.worker() as holder, bench.worker() as stranger:
        before = bench.sample(holder.process)
        stranger.tell(f"take {_BLOCK}")
        after = bench.sample(holder.process)
        assert before.foreign_bytes is not None, "foreign memory is unknown"
        assert after.foreign_bytes is not None, "foreign memory is unknown"
        grown = after.foreign_bytes - before.foreign_bytes
        assert _BLOCK - _SLACK <= grown <= _BLOCK + _SLACK, f"a stranger took {_BLOCK} bytes, foreign grew by {grown}"
        assert after.held_bytes == before.held_bytes, "the holder's memory changed"
        return f"foreign grew by {grown // MIB} MiB"


def check_shrinking_holder_is_seen(bench: Bench) -> str:
    """Memory that a holder gives back is measured as gone."""
    with bench.worker() as worker:
        worker.tell(f"take {_BLOCK}")
        worker.tell(f"take {_BLOCK}")
        full = bench.held(worker.process)
        assert full >= 2 * _BLOCK, f"{2 * _BLOCK} bytes taken, {full} attributed"
        worker.tell("give-back")
        lag = bench.lag("shrinking", lambda: bench.held(worker.process) <= full - _BLOCK + _SLACK)
        return f"{_BLOCK // MIB} MiB given back, seen after {lag * 1000:.1f} ms"


def check_killed_holder_holds_nothing(bench: Bench) -> str:
    """Memory of a holder that was killed with SIGKILL is measured as gone, from it and from the card."""
    empty = bench.used()
    with bench.worker() as worker:
        worker.tell(f"take {_BLOCK}")
        full = bench.held(worker.process)
        assert full >= _BLOCK, f"{_BLOCK} bytes taken, {full} attributed"
        begin = time.monotonic()
        worker.kill()
        bench.lag("killed holder's bytes", lambda: bench.held(worker.process) == 0)
        held_lag = time.monotonic() - begin
        bench.lag("the card's bytes", lambda: bench.used() <= empty + _SLACK)
        used_lag = time.monotonic() - begin
        return f"gone from the holder after {held_lag * 1000:.1f} ms, from the card after {used_lag * 1000:.1f} ms"


def check_sample_is_cheap(bench: Bench) -> str:
    """One sample with one holder costs far less than the interval between samples."""
    with bench.worker() as worker:
        spans: list[float] = []
        for _ in range(_SAMPLES):
            begin = time.perf_counter()
            bench.sample(worker.process)
            spans.append(time.perf_counter() - begin)
        median, worst = statistics.median(spans), statistics.quantiles(spans, n=100)[98]
        # Ten times the tenth of a second between samples while memory is being reclaimed.
        assert worst < 1.0, f"p99 of a sample is {worst:.3f} s"
        return f"median {median * 1e6:.0f} µs, p99 {worst * 1e6:.0f} µs over {_SAMPLES} samples"


#: Hold on every card.
DEVICE_CHECKS = (check_device_total_follows_an_allocation, check_sample_is_cheap)
#: Hold where the driver tells processes apart.
PROCESS_CHECKS = (
    check_memory_is_attributed_to_its_process,
    check_children_count_for_their_holder,
    check_stranger_is_foreign,
    check_shrinking_holder_is_seen,
    check_killed_holder_holds_nothing,
)
