"""Every line on standard error is one JSON object, whoever writes it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.running import GUARD_S, ROOT


def logged(level: str, program: str) -> list[dict[str, Any]]:
    """What a program leaves on standard error; the log is set up and ``log`` is a logger of the arbiter."""
    begin = f"import asyncio, logging, structlog\nfrom arbiter_sidecar.cli import logs\nlogs.set_up({level!r})\n"
    ran = subprocess.run(
        [sys.executable, "-c", f"{begin}log = structlog.get_logger('arbiter')\n{program}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        check=True,
    )
    assert ran.stdout == ""
    assert ran.stderr.isascii()
    return [json.loads(line) for line in ran.stderr.splitlines()]


def test_line_is_one_object_when_values_are_hostile() -> None:
    [line] = logged(
        "info", "log.info('lease_granted', holder='a\\nb\\x1b[2J\\u202e🦄\"', note=None, size=3, names=['x'])"
    )
    assert (line["event"], line["level"], line["size"], line["names"]) == ("lease_granted", "info", 3, ["x"])
    assert line["holder"] == 'a\nb\x1b[2J\u202e🦄"'
    assert line["timestamp"].endswith("Z")


def test_long_values_are_cut_and_tracebacks_are_not() -> None:
    program = "try:\n    raise ValueError('y' * 1000)\nexcept ValueError:\n    log.exception('failed', text='x' * 1000)"
    [line] = logged("info", program)
    assert len(line["text"]) == 256
    assert line["text"].endswith("...")
    assert "y" * 1000 in line["exception"]
    assert "Traceback" in line["exception"]


@pytest.mark.parametrize(
    ("level", "kept"),
    [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)],
)
def test_lines_below_the_level_are_left_out(level: str, kept: int) -> None:
    program = "for name in ('error', 'warning', 'info', 'debug'): getattr(log, name)(name)"
    assert [line["event"] for line in logged(level, program)] == ["error", "warning", "info", "debug"][:kept]


def test_lines_of_others_look_the_same() -> None:
    program = (
        "async def main():\n"
        "    asyncio.get_running_loop().call_soon(lambda: 1 / 0)\n"
        "    await asyncio.sleep(0)\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
        "logging.getLogger('grpc').warning('two\\nlines %s', 'x')\n"
        "logging.getLogger('grpc').info('not this')\n"
    )
    found = logged("info", program)
    assert [(line["logger"], line["level"]) for line in found] == [("asyncio", "error"), ("grpc", "warning")]
    assert "ZeroDivisionError" in found[0]["exception"]
    assert found[1]["event"] == "two\nlines x"
