"""The memory of a workload really moves when it is resized, and stays within the size it states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


def resize(kind: str, repository: Path, folder: Path) -> list[dict[str, int]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.examples.resize_probe", kind, str(folder)],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "tiny"])
def test_measured_memory_follows_the_rung_when_a_workload_is_resized(
    kind: str, repository: Path, tmp_path: Path
) -> None:
    top, bottom, middle, top_again, bottom_again, closed = resize(kind, repository, tmp_path)

    for visit in (top, bottom, middle, top_again, bottom_again, closed):
        assert visit["used"] <= visit["sized"], visit
    assert top["used"] - bottom["used"] > 200 * MIB
    assert bottom["used"] < middle["used"] < top["used"]
    # The stated size is honest in the other direction as well: not much more is leased than is used.
    assert top["sized"] - top["used"] < 64 * MIB
    # What a visit to the top leaves behind at the bottom is small change.
    assert abs(bottom_again["used"] - bottom["used"]) < 16 * MIB
    assert top_again["used"] > bottom["used"] + 200 * MIB
