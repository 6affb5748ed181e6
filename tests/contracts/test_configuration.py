"""The configuration page says what the options are, and its examples do what they say."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from arbiter_sidecar import config
from tests.contracts import checkout, readme

_SCRIPT = checkout.ROOT / ".ci/configuration.py"
_PAGE = "docs/configuration.md"
_GUARD_S = 60


def _write(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_SCRIPT), *words],
        cwd=checkout.ROOT,
        capture_output=True,
        text=True,
        timeout=_GUARD_S,
        check=False,
    )


def test_table_is_what_the_options_say() -> None:
    result = _write("--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_table_is_written_anew_when_it_is_stale(tmp_path: Path) -> None:
    real = (checkout.ROOT / _PAGE).read_text(encoding="utf-8")
    page = tmp_path / "configuration.md"
    page.write_text(real.replace("| `queue.aging` |", "| `queue.ageing` |"), encoding="utf-8")
    assert _write("--check", str(page)).returncode == 1
    assert _write(str(page)).returncode == 0
    assert page.read_text(encoding="utf-8") == real


@pytest.mark.parametrize("option", config.OPTIONS, ids=lambda option: option.key)
def test_default_of_the_table_is_accepted(option: config.Option) -> None:
    value = getattr(config.Config(), option.name)
    shown: str = runpy.run_path(str(_SCRIPT))["shown"](option.name, value)
    if shown == "–":
        assert value in (None, "", ())
    else:
        assert option.parse(shown.strip("`")) == value


def _example(folder: Path) -> Path:
    (content,) = readme.blocks("toml", page=_PAGE)
    file = folder / "arbiter.toml"
    file.write_text(content, encoding="utf-8")
    return file


def test_example_file_is_sound(tmp_path: Path) -> None:
    loaded = config.load({}, {}, _example(tmp_path))
    assert sum(origin != "default" for origin in loaded.origins.values()) == 12


@pytest.mark.parametrize("step", readme.transcript(page=_PAGE), ids=lambda step: step.command)
def test_command_of_the_page_prints_what_it_says(tmp_path: Path, step: readme.Step) -> None:
    _example(tmp_path)
    words = shlex.split(step.command)
    variables = dict(word.split("=", 1) for word in words if re.match(r"ARBITER_[A-Z_]+=", word))
    assert words[len(variables)] == "arbiter-sidecar"
    result = subprocess.run(
        [str(Path(sys.executable).with_name("arbiter-sidecar")), *words[len(variables) + 1 :]],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        timeout=_GUARD_S,
        check=False,
    )
    expected = [line for line in step.output.splitlines() if line != "…"]
    printed = (result.stdout + result.stderr).splitlines()
    assert [line for line in printed if line in expected] == expected
    assert "…" in step.output or printed == expected
