"""The same commands give the same effects: nothing depends on time, chance, or the order of a hash."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from arbiter_sidecar import errors
from arbiter_sidecar.types import Priority, ReportOutcome, WorkloadType
from tests.arbiter.desk import LINEAR, Desk, describe, wish

STEPS = 400


def play(seed: int) -> list[str]:
    """Four hundred commands drawn from a seed, and all that came of them."""
    chance = random.Random(seed)
    desk = Desk(replace(LINEAR, pause_guard_s=4.0))
    desk.card(24)
    desk.box(12)
    lines: list[str] = []
    for _ in range(STEPS):
        lines += [describe(effect) for effect in desk.effects[len(lines) :]]
        leases = list(desk.books.leases)
        verb = chance.choice(("ask", "ask", "report", "report", "beat", "release", "exit", "sample", "at", "cancel"))
        if verb == "ask":
            ask(desk, chance)
        elif verb == "sample":
            held = {pid: chance.choice((0.0, 2.0, 6.0, None)) for pid in range(1, 5)}
            desk.sample(held, foreign=chance.choice((0.0, 1.0, 8.0)))
        elif verb == "at":
            desk.at(desk.now + chance.choice((0.1, 0.5, 1.0, 5.0)))
        elif verb == "exit":
            desk.exit(chance.randint(1, 9))
        elif verb == "cancel" and desk.books.undelivered:
            desk.cancel(chance.choice(list(desk.books.undelivered)))
        elif leases:
            lease = chance.choice(leases)
            if verb == "report":
                desk.report(lease, chance.choice(list(ReportOutcome)), achievable=chance.choice((None, 0.7, 0.9)))
            elif verb == "beat":
                desk.beat(*leases)
            else:
                desk.release(lease)
    return lines


def ask(desk: Desk, chance: random.Random) -> None:
    """One request, which may be refused at once."""
    request = wish(
        f"w{chance.randint(1, 3)}",
        chance.choice((1.0, 4.0, 9.0, 14.0)),
        workload=chance.choice(list(WorkloadType)),
        priority=chance.choice(list(Priority)),
        pids=chance.choice(((), (1,), (2, 3), (4,))),
        request_id=chance.choice(("", "r")),
        wait=chance.choice((0.0, 20.0)),
        device=chance.choice(("", "gpu", "box")),
    )
    try:
        ticket = desk.ask(request)
    except errors.ArbiterError:
        return
    if chance.random() < 0.5:
        desk.arbiter.delivered(ticket)


def digest() -> str:
    """Everything that three seeds bring about, in one word."""
    lines = [line for seed in range(3) for line in play(seed)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_effects_are_the_same_when_the_commands_are_repeated() -> None:
    first = play(7)
    assert len(first) > STEPS // 2
    assert first == play(7)
    assert first != play(8)


def test_effects_are_the_same_when_hashes_differ(repository: Path) -> None:
    # This process has a salt of its own, by chance as a rule.
    salt = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", "from tests.arbiter import test_replay; print(test_replay.digest())"],
        cwd=repository,
        env={**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == digest()
