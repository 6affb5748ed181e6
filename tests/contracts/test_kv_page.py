"""The server's part of the page about KV budgets happens as it is printed, and its table is what the code computes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arbiter_sidecar.ledger.kv import derived_tokens
from arbiter_sidecar.policy import kv_budget
from arbiter_sidecar.policy.kv_budget import Engine
from arbiter_sidecar.types import GIB, LeaseId
from examples.two_engines import phases
from tests import running
from tests.contracts import checkout, readme

_PAGE = "docs/kv.md"
_GUARD_S = 60
#: Before this its leases are too young to be asked for tokens.
_HELD_S = 1.0
_ENGINE = re.compile(r"(\d+)(?: (floor|demand|cap) (\d+))?( idle)?( suspect)?")
_ID = re.compile(r"\b[0-9a-f]{24}\b")


def _text() -> str:
    return (checkout.ROOT / _PAGE).read_text(encoding="utf-8")


def _rows() -> list[list[str]]:
    body = _text().partition("\n| engines | tokens |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]


def _engine(place: int, described: str) -> Engine:
    match = _ENGINE.fullmatch(described)
    assert match is not None, described
    weight, bound, amount, idle, suspect = match.groups()
    engine = Engine(lease_id=LeaseId(f"{place}"), weight=int(weight), active=idle is None, healthy=suspect is None)
    if bound is not None:
        setattr(engine, bound, int(amount))
    return engine


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row[0])
def test_worked_numbers_are_what_is_computed(row: list[str]) -> None:
    described, total, cap, budgets = row
    engines = [_engine(place, each) for place, each in enumerate(described.split(", "))]
    computed = kv_budget.allocate(engines, int(total), engine_cap_permille=round(float(cap) * 1000))
    assert ", ".join(map(str, computed)) == budgets


def test_tokens_without_a_setting_are_what_the_page_says() -> None:
    assert f"24 GiB give {derived_tokens(24 * GIB):,} tokens".replace(",", " ") in _text()
    assert f"the least is {derived_tokens(0)}" in _text()


def _program(with_text: str) -> str:
    (found,) = [block for block in readme.blocks("python", page=_PAGE) if with_text in block]
    return found


@contextmanager
def _engines(steps: list[readme.Step], folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """The engines of the page one after the other, until the block ends."""
    file = folder / "arbiter-engine.py"
    file.write_text(readme.moved(_program("sys.argv[1], int(sys.argv[2])"), folder), encoding="utf-8")
    started: list[subprocess.Popen[str]] = []
    try:
        for step in steps:
            command = [sys.executable, str(file), *step.words[2:]]
            process = subprocess.Popen(command, cwd=checkout.ROOT, stdout=subprocess.PIPE, text=True)
            started.append(process)
            # Whoever comes second finds that the first has everything.
            assert _line(process) in _printed()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _printed() -> list[str]:
    """What the engines of the page print."""
    (lines,) = [block.splitlines() for block in readme.blocks("text", page=_PAGE) if block.startswith("chat:")]
    return lines


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def _run(words: list[str]) -> str:
    command = [sys.executable, "-m", "arbiter_client.cli", *words]
    result = subprocess.run(command, cwd=checkout.ROOT, capture_output=True, text=True, timeout=_GUARD_S, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_transcript_happens_as_it_is_printed(tmp_path: Path) -> None:
    steps = readme.transcript(page=_PAGE)
    serving, engines, looks = steps[0], steps[1:3], steps[3:]
    assert [step.words[1] for step in looks] == ["engines", "preempt", "preempt", "engines"]
    command = [sys.executable, "-m", "arbiter_sidecar", *serving.words[1:], "--drain-timeout", "0s"]
    first, *_, last = _printed()
    with running.started([readme.moved(word, tmp_path) for word in command]), _engines(engines, tmp_path) as started:
        chat, batch = started
        assert (_line(chat), _line(batch)) == tuple(_printed()[2:])
        assert first.startswith("chat: budget 4096")
        assert last == "batch: budget 3072, 48 requests run"
        time.sleep(_HELD_S)
        learnt: dict[str, str] = {}
        for step in looks:
            words = [readme.moved(word, tmp_path) for word in step.words[1:]]
            deadline = time.monotonic() + _GUARD_S
            while (real := _run([learnt.get(word, word) for word in words])).split() != [
                learnt.get(word, word) for word in step.output.split()
            ]:
                # The engines of the first look are those of all others; reports may still be on their way.
                if not learnt:
                    learnt = dict(zip(_ID.findall(step.output), _ID.findall(real), strict=True))
                assert step.words[1] == "engines", real
                assert time.monotonic() < deadline, real
                time.sleep(0.1)


def test_reserving_program_of_the_page_answers_everything(tmp_path: Path) -> None:
    program = tmp_path / "central.py"
    program.write_text(readme.moved(_program("async def answer"), tmp_path), encoding="utf-8")
    serving = readme.transcript(page=_PAGE)[0]
    command = [sys.executable, "-m", "arbiter_sidecar", *serving.words[1:], "--drain-timeout", "0s"]
    with running.started([readme.moved(word, tmp_path) for word in command]):
        result = subprocess.run(
            [sys.executable, program], cwd=checkout.ROOT, capture_output=True, text=True, timeout=_GUARD_S, check=False
        )
    assert (result.stdout, result.stderr) == ("20 answers\n", "")


def test_run_of_the_page_is_one_of_the_script_that_is_there() -> None:
    (shown,) = [block for block in readme.blocks("text", page=_PAGE) if block.startswith("phase")]
    rows = [line.split() for line in shown.splitlines()[1 : 1 + len(phases.SCRIPT)]]
    assert [row[0] for row in rows] == [phase.name for phase in phases.SCRIPT]
    for row, phase in zip(rows, phases.SCRIPT, strict=True):
        assert [int(row[1]), int(row[5])] == [phase.budgets["chat"], phase.budgets.get("batch", 0)]
