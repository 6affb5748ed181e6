"""The live table, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping

from examples.first_light.timeline import MIB, WORKERS, Observation, Worker

_BAR_WIDTH = 40


def table(seen: Observation, *, budget_bytes: int, said: Mapping[str, str], newest: str) -> list[str]:
    """Everything at one moment for a terminal; always the same number of lines.

    Args:
        seen: The moment.
        budget_bytes: Capacity of the device.
        said: The newest event of each worker.
        newest: The newest event of the arbiter.
    """
    held = sum(worker.own_bytes for worker in seen.workers.values())
    lines = [
        f"  {seen.at:6.1f} s   host memory: granted {_mib(seen.granted_bytes)}   measured {_mib(seen.measured_bytes)}"
        f"   capacity {_mib(budget_bytes)}",
        f"  [{_bar(held, budget_bytes)}] {held / budget_bytes:4.0%} held by the workers",
        f"  {'worker':<16} {'quality':>7} {'granted':>10} {'measured':>10}  {'rung':<18} {'made':>5}  last event",
    ]
    lines += [_row(name, seen.worker(name), said.get(name, "")) for name in WORKERS]
    lines.append(f"  arbiter: {newest}")
    return lines


def compact(seen: Observation, *, budget_bytes: int) -> str:
    """The same moment in one line, for logs."""
    held = sum(worker.own_bytes for worker in seen.workers.values())
    parts = [f"{seen.at:6.1f} s  {seen.phase:<8}  held {held / MIB:4.0f} of {budget_bytes / MIB:.0f} MiB"]
    for name in WORKERS:
        worker = seen.worker(name)
        quality = "  - " if worker.quality is None else f"{worker.quality:.2f}"
        parts.append(f"{name} q {quality} {worker.own_bytes / MIB:4.0f} MiB made {worker.made}")
    return "  |  ".join(parts)


def _row(name: str, worker: Worker, said: str) -> str:
    quality = "-" if worker.quality is None else f"{worker.quality:.2f}"
    state = said if worker.alive else "not running"
    return (
        f"  {name:<16} {quality:>7} {_mib(worker.granted_bytes):>10} {_mib(worker.measured_bytes):>10}"
        f"  {worker.rung:<18} {worker.made:>5}  {state}"
    )


def _bar(held: int, budget: int) -> str:
    filled = min(_BAR_WIDTH, round(_BAR_WIDTH * held / budget))
    return "#" * filled + "." * (_BAR_WIDTH - filled)


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / MIB:.0f} MiB"
