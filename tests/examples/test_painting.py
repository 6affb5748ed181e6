"""The image worker's files show the size and the quality they were made at."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from examples.imaging.painting import Painting
from examples.journal import Journal
from tests.examples import png_reader

if TYPE_CHECKING:
    from pathlib import Path


def test_images_decode_and_name_their_rung_when_made(tmp_path: Path) -> None:
    out = io.StringIO()
    painting = Painting(tmp_path, Journal(out, "painter"), seed=1)
    painting.resize(painting.rungs[-1], 0.35)
    painting.work(lambda: False)
    painting.resize(painting.rungs[-2], 0.41)
    painting.work(lambda: False)
    painting.close()

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00001-q0.35-160px-8steps.png", "00002-q0.41-192px-9steps.png"]
    small, large = (png_reader.decode((tmp_path / name).read_bytes()) for name in names)
    assert small.shape == (160, 160, 3)
    assert large.shape == (192, 192, 3)
    assert [json.loads(line)["count"] for line in out.getvalue().splitlines()] == [1, 2]


def test_numbering_continues_when_the_folder_has_images(tmp_path: Path) -> None:
    (tmp_path / "00041-q1.00-640px-16steps.png").touch()
    painting = Painting(tmp_path, Journal(io.StringIO(), "painter"), seed=1)
    painting.resize(painting.rungs[-1], 0.3)
    painting.work(lambda: False)

    assert (tmp_path / "00042-q0.30-160px-8steps.png").exists()


def test_nothing_is_written_when_interrupted(tmp_path: Path) -> None:
    out = io.StringIO()
    painting = Painting(tmp_path, Journal(out, "painter"), seed=1)
    painting.resize(painting.rungs[-1], 0.3)
    painting.work(lambda: True)

    assert list(tmp_path.iterdir()) == []
    assert out.getvalue() == ""


def test_work_refuses_when_never_resized(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="resize"):
        Painting(tmp_path, Journal(io.StringIO(), "painter")).work(lambda: False)


def test_sizes_steps_and_batches_fall_together_when_going_down_the_ladder(tmp_path: Path) -> None:
    rungs = Painting(tmp_path, Journal(io.StringIO(), "painter")).rungs

    for key in ("resolution", "batch", "steps"):
        values = [int(rung.settings[key]) for rung in rungs]
        assert values == sorted(values, reverse=True)
    sizes = [rung.memory_bytes for rung in rungs]
    assert sizes == sorted(set(sizes), reverse=True)
