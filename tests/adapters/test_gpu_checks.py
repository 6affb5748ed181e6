"""The checks for a real card, checked themselves against drivers that are compiled for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arbiter_sidecar.types import GIB
from tests import fake_nvml
from tests.fake_nvml import FakeCard, FakeDriver
from tests.gpu import checks, server_checks

#: Checks that need a driver which tells processes apart.
OF_PROCESSES = len(checks.PROCESS_CHECKS) + len(server_checks.SERVER_CHECKS)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Where the fake CUDA driver writes down what processes take."""
    folder = tmp_path / "ledger"
    folder.mkdir()
    return folder


@pytest.fixture
def run(nvml_library: Path, repository: Path, ledger: Path, tmp_path: Path) -> Run:
    """Runs the checks as their command does, on a card or on none."""
    fake_nvml.build_cuda(nvml_library.parent)

    def start(*cards: FakeCard) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": str(nvml_library.parent),
            fake_nvml.LEDGER_VARIABLE: str(ledger),
        }
        if cards:
            environ[fake_nvml.STATE_VARIABLE] = str(FakeDriver(tmp_path / "nvml", *cards).path)
        return subprocess.run(
            [sys.executable, "-m", "tests.gpu"],
            env=environ,
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    return start


@pytest.mark.slow
def test_checks_pass_when_the_driver_keeps_its_books(run: Run, ledger: Path) -> None:
    result = run(FakeCard(uuid="GPU-1", total_bytes=24 * GIB, ledger=ledger))
    count = len(checks.DEVICE_CHECKS) + OF_PROCESSES
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[0] == ("Fake Card (GPU-1), driver 550.54.15, 24576 MiB, attribution PER_PROCESS")
    assert result.stdout.count("\nok ") == count
    assert result.stdout.splitlines()[-1] == f"{count} passed, 0 failed"


def test_checks_fail_when_memory_is_not_measured(run: Run) -> None:
    result = run(FakeCard(uuid="GPU-1", total_bytes=24 * GIB, used_bytes=0))
    assert result.returncode == 1
    assert "FAILED  memory is attributed to its process: a process with a context holds nothing" in result.stdout
    assert "ok      sample is cheap" in result.stdout
    assert f"not run: {len(server_checks.SERVER_CHECKS)} checks with a server" in result.stdout


def test_checks_with_a_server_fail_when_the_card_is_too_small_for_them(run: Run, ledger: Path) -> None:
    result = run(FakeCard(uuid="GPU-1", total_bytes=4 * GIB, ledger=ledger))
    assert result.returncode == 1
    said = "FAILED  server measures what a holder takes: 4608 MiB of the card are needed beside what is in use"
    assert said in result.stdout
    assert result.stdout.endswith(f"{len(server_checks.SERVER_CHECKS)} failed\n")


def test_checks_of_processes_are_not_run_when_the_driver_lists_none(run: Run, ledger: Path) -> None:
    errors = {"compute": fake_nvml.NOT_SUPPORTED, "graphics": fake_nvml.NOT_SUPPORTED}
    result = run(FakeCard(uuid="GPU-1", total_bytes=24 * GIB, ledger=ledger, errors=errors))
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"not run: {OF_PROCESSES} checks of single processes" in result.stdout
    assert result.stdout.endswith("2 passed, 0 failed\n")


def test_checks_say_that_they_were_not_run_when_there_is_no_driver(run: Run) -> None:
    result = run()
    assert result.returncode == 0
    assert result.stdout == "not run: no NVIDIA driver (libnvidia-ml.so.1 not found)\n"
    assert result.stderr == ""
