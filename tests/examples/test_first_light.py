"""The whole demonstration with the small model against the real arbiter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import memory
from examples.first_light.timeline import MIB, slack_bytes
from tests.examples import png_reader

#: A guard against hanging: the demonstration ends by itself in less than two minutes.
PATIENCE_S = 115.0
BUDGET_MIB = 620


def start(repository: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "examples.first_light", *arguments],
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_first_light_light_mode(repository: Path, tmp_path: Path) -> None:
    demonstration = start(repository, "--light", "--out", str(tmp_path), "--budget", f"{BUDGET_MIB}MiB", CI="true")
    try:
        output, _ = demonstration.communicate(timeout=PATIENCE_S)
    except BaseException:
        demonstration.terminate()
        raise

    assert demonstration.returncode == 0, output
    assert "OK: both workers shrank and grew back" in output
    seen = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    for moment in seen:
        held = sum(worker["own_bytes"] for worker in moment["workers"].values())
        assert held <= BUDGET_MIB * MIB + slack_bytes(BUDGET_MIB * MIB)
    assert "[quality 1.00," in (tmp_path / "answers" / "answers.txt").read_text()
    # At a reduced quality the pictures are smaller, in pixels.
    first_of = {path.name.split("-")[1]: path for path in sorted((tmp_path / "images").glob("*.png"), reverse=True)}
    assert png_reader.decode(first_of["q1.00"].read_bytes()).shape == (640, 640, 3)
    assert png_reader.decode(first_of[min(first_of)].read_bytes()).shape < (500, 500, 3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_running_when_interrupted(repository: Path, tmp_path: Path, number: signal.Signals) -> None:
    demonstration = start(repository, "--light", "--out", str(tmp_path))
    answers = tmp_path / "answers" / "answers.txt"
    deadline = time.monotonic() + PATIENCE_S / 2
    while not answers.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    family = memory.tree(demonstration.pid)
    demonstration.send_signal(number)
    output, _ = demonstration.communicate(timeout=PATIENCE_S / 2)

    assert demonstration.returncode == 130, output
    assert "nothing is left running" in output
    # The demonstration itself, the arbiter and the language model.
    assert len(family) == 3
    assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.slow
def test_failure_names_the_reason_when_the_budget_cannot_hold_a_worker(repository: Path, tmp_path: Path) -> None:
    demonstration = start(repository, "--light", "--out", str(tmp_path), "--budget", "64MiB")
    output, _ = demonstration.communicate(timeout=PATIENCE_S)

    assert demonstration.returncode == 1, output
    assert "FAILED" in output
    assert "ExceedsCapacity" in output


def test_wrong_usage_is_refused_when_the_budget_is_no_size(repository: Path) -> None:
    demonstration = start(repository, "--budget", "lots")
    output, _ = demonstration.communicate(timeout=PATIENCE_S)

    assert demonstration.returncode == 2
    assert "512MiB" in output
