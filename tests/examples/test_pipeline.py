"""The pipeline of real processes, in short; and every way in which it can fail is found."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.pipeline import layers, verdict

GOOD = verdict.Result(
    before=12.0,
    after=19.0,
    predicted=1.6,
    suggested={"a": (0, 5), "b": (5, 7), "c": (7, 12)},
    served={"a": (0, 5), "b": (5, 7), "c": (7, 12)},
    wrong=0,
    items=120,
)
#: A guard against hanging: it ends by itself in less than ten seconds.
PATIENCE_S = 100.0


def test_good_run_is_let_pass() -> None:
    assert verdict.judge(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"after": 16.0}, "throughput rose by 1.33, 1.60 was predicted: more than 15% apart"),
        ({"after": 22.5}, "throughput rose by 1.88"),
        ({"wrong": 3}, "3 of 120 results differ"),
        ({"served": {"a": (0, 4), "b": (4, 8), "c": (8, 12)}}, "suggested was"),
        ({"after": 12.0, "predicted": 1.0}, "no gain was predicted: 1.00"),
    ],
)
def test_failure_is_found(changes: dict[str, Any], complaint: str) -> None:
    (problem,) = verdict.judge(dataclasses.replace(GOOD, **changes))
    assert complaint in problem


def test_layers_in_parts_say_what_the_whole_model_says() -> None:
    parts = layers.forward(layers.prompt(7), 0, 5, rest_s=0.0)
    parts = layers.forward(parts, 5, 7, times=2, rest_s=0.0)
    parts = layers.forward(parts, 7, layers.LAYERS, rest_s=0.0)
    assert np.allclose(parts, layers.reference(7))
    skipped = layers.forward(layers.forward(layers.prompt(7), 0, 5, rest_s=0.0), 6, layers.LAYERS, rest_s=0.0)
    assert not np.allclose(skipped, layers.reference(7))


@pytest.mark.slow
def test_throughput_rises_as_predicted_when_advice_is_followed(repository: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, "-m", "examples.pipeline", "--items", "24", "--out", str(tmp_path)],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every shard has confirmed: a 0-4 b 5-6 c 7-11" in result.stdout
    assert "all 48 results are those of the whole model" in result.stdout


def test_wrong_usage_is_refused_when_too_little_is_measured(repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "examples.pipeline", "--items", "3"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 2
    assert "--items must be 20 at least" in result.stderr
