"""Sizes a worker can run at, and the quality at which each of them is paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import arbiter_client

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedRung:
    """One size.

    Attributes:
        name: For people, unique in its ladder.
        memory_bytes: What the whole process needs at it, interpreter and libraries included.
        settings: What the worker sets to be that size.
    """

    name: str
    memory_bytes: int
    settings: Mapping[str, int | str] = field(default_factory=dict)


def up_to(rungs: Sequence[SizedRung], memory_bytes: int | None) -> list[SizedRung]:
    """The rungs that need no more than `memory_bytes`; all of them for None.

    Raises:
        ValueError: Not even the smallest one does.
    """
    kept = [rung for rung in rungs if memory_bytes is None or rung.memory_bytes <= memory_bytes]
    if not kept:
        smallest = min(rung.memory_bytes for rung in rungs)
        raise ValueError(f"cannot run in {memory_bytes} bytes: the smallest size needs {smallest} bytes")
    return kept


def paid_from(rung: SizedRung, rungs: Sequence[SizedRung], min_quality: float) -> float:
    """The lowest quality whose memory limit covers `rung`, in [min_quality,1].

    A lease of F bytes at quality 1 and M bytes at the minimum m is limited to M + (F - M)(q - m)/(1 - m) bytes at
    quality q: a straight line, which this function reads backwards.
    """
    full, least = rungs[0].memory_bytes, rungs[-1].memory_bytes
    if full == least:
        return min_quality
    return min_quality + (rung.memory_bytes - least) / (full - least) * (1 - min_quality)


def to_ladder(rungs: Sequence[SizedRung], min_quality: float) -> arbiter_client.Ladder[SizedRung]:
    """The ladder that picks the largest of `rungs` (largest first) that a directive pays for.

    Raises:
        ValueError: The rungs do not fall in size.
    """
    sizes = [rung.memory_bytes for rung in rungs]
    if not sizes or sorted(set(sizes), reverse=True) != sizes:
        raise ValueError("sizes must fall from rung to rung")
    return arbiter_client.Ladder(
        [
            arbiter_client.Rung(paid_from(rung, rungs, min_quality), rung.name, rung, memory_bytes=rung.memory_bytes)
            for rung in rungs
        ],
        floor=min_quality,
    )
