"""The page about balancing happens as it is printed, and its table is what the code computes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import Shard, ShardState
from tests import running
from tests.contracts import checkout, readme

_PAGE = "docs/balance.md"
_GUARD_S = 60
_SHARD = re.compile(r"(\d+) × ([\d.]+)(?: of (\d+))?( failed)?")


def _rows() -> list[list[str]]:
    page = (checkout.ROOT / _PAGE).read_text(encoding="utf-8")
    body = page.partition("\n| shards |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]


def _shards(described: str) -> list[Shard]:
    return [
        Shard(
            name=f"s{place}",
            position=place,
            layers=int(layers),
            cost_us=float(cost),
            max_layers=int(most) if most else None,
            state=ShardState.FAILED if failed else ShardState.LIVE,
        )
        for place, (layers, cost, most, failed) in enumerate(_SHARD.findall(described))
    ]


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row[0])
def test_worked_numbers_are_what_is_computed(row: list[str]) -> None:
    described, becomes, stages, throughput, latency = row
    shards = _shards(described)
    found = balance.evaluate(shards, now=0.0)
    if becomes.startswith("balanced"):
        assert isinstance(found, balance.Balanced)
        assert found.imbalance == pytest.approx(float(becomes.split()[1]))
        return
    assert isinstance(found, balance.Rebalance)
    assert ", ".join(str(span.layers) for span in found.assignment) == becomes
    if stages:
        before = max(shard.layers * (shard.cost_us or 0.0) for shard in shards)
        assert f"{before:g} to {found.bottleneck_us:g}" == stages
        assert found.throughput_gain == pytest.approx(float(throughput), abs=5e-4)
        assert found.latency_gain == pytest.approx(float(latency), abs=5e-4)
    else:
        assert found.cause is balance.Cause.FAILURE


def _plain(text: str) -> list[str]:
    """What is said, without what is measured and how wide that makes columns."""
    text = re.sub("; evaluated a moment ago, again in .*", "", text)
    text = re.sub(r"\d[\d.]*(?:us|ms)|(?<=[×÷])[\d.]+", "#", text)
    return [" ".join(line.split()) for line in text.splitlines()]


@contextmanager
def _working(steps: list[readme.Step], folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """The workers of the page, each of which begins when the one before has its layers; until the block ends."""
    (program,) = readme.blocks("python", page=_PAGE)
    file = folder / "arbiter-shard.py"
    file.write_text(readme.moved(program, folder), encoding="utf-8")
    workers: list[subprocess.Popen[str]] = []
    try:
        for step in steps:
            command = [sys.executable, str(file), *step.words[2:]]
            workers.append(subprocess.Popen(command, cwd=checkout.ROOT, stdout=subprocess.PIPE, text=True))
            assert "layers" in _line(workers[-1])
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


@pytest.mark.slow
def test_transcript_happens_as_it_is_printed(tmp_path: Path) -> None:
    steps = readme.transcript(page=_PAGE)
    serving, workers, looks = steps[0], steps[1:3], steps[3:]
    command = [sys.executable, "-m", "arbiter_sidecar", *serving.words[1:], "--drain-timeout", "0s"]
    with running.started([readme.moved(word, tmp_path) for word in command]), _working(workers, tmp_path) as started:
        for step in looks:
            words = [readme.moved(word, tmp_path) for word in step.words[1:]]
            deadline = time.monotonic() + _GUARD_S
            while _plain(real := _run(words)) != _plain(step.output):
                assert time.monotonic() < deadline, real
                assert step is looks[0], real
                time.sleep(0.2)
        assert [_line(worker) for worker in started] == ["fast: layers 0 to 12\n", "slow: layers 13 to 15\n"]


def _run(words: list[str]) -> str:
    command = [sys.executable, "-m", "arbiter_client.cli", *words]
    result = subprocess.run(command, cwd=checkout.ROOT, capture_output=True, text=True, timeout=_GUARD_S, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
