"""The README's transcript with grpcurl happens as it is printed, with the real grpcurl and a real arbiter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import running
from tests.contracts import readme

_GRPCURL = Path(sys.executable).with_name("grpcurl")
_GUARD_S = 60
#: What differs from run to run; the others must be as printed.
_VARYING = frozenset({"create_time", "expire_time", "fence", "handle", "lease_id", "revision", "waited"})
#: What later commands repeat from earlier answers.
_REPEATED = ("lease_id", "fence")

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def _messages(text: str) -> Iterator[Json]:
    """The JSON values that stand one after the other in the text."""
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value
        while position < len(text) and text[position].isspace():
            position += 1


def _same(printed: Json, real: Json, learnt: dict[str, str], where: str = "") -> None:
    """Compares what the README prints with what was printed, and learns the values that vary."""
    if isinstance(printed, dict):
        assert isinstance(real, dict), where
        assert list(printed) == list(real), where
        for key, value in printed.items():
            if key not in _VARYING:
                _same(value, real[key], learnt, f"{where}.{key}")
            elif key in _REPEATED:
                learnt[f'"{value}"'] = f'"{real[key]}"'
    elif isinstance(printed, list):
        assert isinstance(real, list), where
        assert len(printed) == len(real), where
        for position, (left, right) in enumerate(zip(printed, real, strict=True)):
            _same(left, right, learnt, f"{where}[{position}]")
    else:
        assert printed == real, where


def _compare(step: readme.Step, real: str, learnt: dict[str, str]) -> None:
    if not step.output.startswith("{"):
        assert real.strip() == step.output
        return
    printed, happened = list(_messages(step.output)), list(_messages(real.strip()))
    assert len(printed) == len(happened), real
    for left, right in zip(printed, happened, strict=True):
        _same(left, right, learnt, step.command)


def _first_message(stream: subprocess.Popen[str]) -> str:
    """Reads up to the end of the first message; grpcurl prints its last brace alone on a line."""
    assert stream.stdout is not None
    lines = []
    for line in stream.stdout:
        lines.append(line)
        if line == "}\n":
            break
    return "".join(lines)


@pytest.mark.slow
def test_readme_transcript_happens(tmp_path: Path) -> None:
    learnt: dict[str, str] = {}

    def ready(step: readme.Step) -> list[str]:
        words = [readme.moved(word, tmp_path) for word in step.words]
        for printed, real in learnt.items():
            words = [word.replace(printed, real) for word in words]
        return words

    steps = readme.steps("grpcurl")
    assert {"list", "describe"} <= {word for step in steps for word in step.words}
    asked = {step.words[-1].rpartition("/")[2] for step in steps}
    assert {"Allocate", "StreamQuality", "Release"} <= asked
    streams: list[tuple[readme.Step, subprocess.Popen[str], str]] = []
    with running.started([sys.executable, "-m", "arbiter_sidecar", *ready(readme.serving())[1:]]):
        try:
            for step in steps:
                command = [str(_GRPCURL), *ready(step)[1:]]
                if step.words[-1].endswith("/StreamQuality"):
                    stream = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                    streams.append((step, stream, _first_message(stream)))
                    continue
                result = subprocess.run(command, capture_output=True, text=True, timeout=_GUARD_S, check=False)
                assert result.returncode == 0, result.stderr
                _compare(step, result.stdout, learnt)
            for step, stream, first in streams:
                assert stream.stdout is not None
                rest = stream.stdout.read()
                assert stream.wait(_GUARD_S) == 0
                _compare(step, first + rest, learnt)
        finally:
            for _, stream, _ in streams:
                if stream.poll() is None:
                    stream.kill()
                stream.communicate()
