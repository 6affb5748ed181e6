"""The clocks of the machine, and those that a file moves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from arbiter_sidecar.adapters import clock


def moved(path: Path, **offsets: float) -> None:
    """Replaces the file in one step."""
    draft = path.with_name("draft")
    draft.write_text(json.dumps(offsets))
    os.replace(draft, path)


def test_machine_has_not_slept_between_two_looks() -> None:
    machine = clock.MonotonicClock()
    before = machine.slept()
    assert before >= -0.001
    assert abs(machine.slept() - before) < 0.001


def test_each_clock_moves_alone_when_the_file_says_so(tmp_path: Path) -> None:
    path, machine = tmp_path / "clock", clock.MonotonicClock()
    moved(path)
    subject = clock.MovedClock(path)
    assert abs(subject.now() - machine.now()) < 60
    moved(path, wall=-86_400)
    assert abs(subject.wall() - machine.wall() + 86_400) < 60
    moved(path, boottime=3600, monotonic=1000)
    assert abs(subject.slept() - machine.slept() - 3600) < 1
    assert abs(subject.now() - machine.now() - 1000) < 60
    assert abs(subject.wall() - machine.wall()) < 60


def test_monotonic_time_stands_still_when_it_is_moved_back(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    moved(path, monotonic=1000)
    subject = clock.MovedClock(path)
    before = subject.now()
    moved(path)
    assert subject.now() == before


@pytest.mark.parametrize("text", ["", "[]", "{'wall': 1}", '{"walls": 1}', '{"wall": "soon"}', '{"wall": []}'])
def test_file_is_refused_when_it_does_not_say_by_how_much(tmp_path: Path, text: str) -> None:
    path = tmp_path / "clock"
    path.write_text(text)
    with pytest.raises(ValueError, match="moves no clock"):
        clock.MovedClock(path)


def test_clock_is_the_machine_s_when_the_environment_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(clock.TEST_CLOCK, raising=False)
    with capture_logs() as lines:
        assert isinstance(clock.chosen(), clock.MonotonicClock)
    assert not lines


def test_moved_clock_is_logged_when_the_environment_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clock"
    monkeypatch.setenv(clock.TEST_CLOCK, str(path))
    with pytest.raises(FileNotFoundError):
        clock.chosen()
    moved(path)
    with capture_logs() as lines:
        assert isinstance(clock.chosen(), clock.MovedClock)
    assert [(line["log_level"], line["path"]) for line in lines] == [("warning", str(path))]
