"""To which lease the memory of a process is put down when several name the same process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arbiter_sidecar.types import Process


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease that may account for the memory of some processes.

    Attributes:
        processes: Processes it names.
        charged_bytes: Bytes that the books expect of it.
    """

    processes: tuple[Process, ...]
    charged_bytes: int


def attribute(claims: Sequence[Claim], held_bytes: Mapping[Process, int | None]) -> list[int | None]:
    """The bytes of each claim, in order; ``None`` where a process could not be read or none is named.

    Claims come in the order in which they are to be filled: living leases before ended ones, older before newer. What
    only one claim names is that claim's. A process that several name then fills each up to what is still expected of
    it; what is left over goes to the last that is asked. No byte is lost or counted twice.
    """
    named: dict[Process, list[int]] = {}
    for index, claim in enumerate(claims):
        for process in claim.processes:
            named.setdefault(process, []).append(index)
    found = [0] * len(claims)
    unknown: set[int] = set()
    for process, sharers in sorted(named.items(), key=lambda item: len(item[1]) > 1):
        held = held_bytes.get(process)
        if held is None:
            unknown.update(sharers)
            continue
        for index in sharers[:-1]:
            part = min(held, max(0, claims[index].charged_bytes - found[index]))
            found[index] += part
            held -= part
        found[sharers[-1]] += held
    return [None if index in unknown or not claim.processes else found[index] for index, claim in enumerate(claims)]
