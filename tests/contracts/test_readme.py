"""The README's walk happens as it is printed: its worker shares real memory, its commands show it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arbiter_sidecar import config
from tests import running
from tests.contracts import checkout, readme

_GUARD_S = 60
_BIN = Path(sys.executable).parent


class Worker:
    """The README's program in a process of its own."""

    def __init__(self, folder: Path) -> None:
        (program,) = readme.blocks("python")
        path = folder / "worker.py"
        path.write_text(readme.moved(program, folder), encoding="utf-8")
        self.process = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def wait_for(self, line: str, *, after: int = 0) -> None:
        """Returns when it has printed this line, not counting the first ``after`` lines."""
        deadline = time.monotonic() + _GUARD_S
        while line not in self.lines[after:]:
            assert time.monotonic() < deadline, f"{line!r} is not among {self.lines}"
            assert self.process.poll() is None, f"ended after {self.lines}"
            time.sleep(0.05)

    def interrupt(self) -> int:
        """Presses Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(_GUARD_S)

    def close(self) -> None:
        """Leaves nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(_GUARD_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def _working(folder: Path) -> Iterator[Worker]:
    worker = Worker(folder)
    try:
        yield worker
    finally:
        worker.close()


@contextmanager
def _serving(folder: Path) -> Iterator[None]:
    words = [readme.moved(word, folder) for word in readme.serving().words[1:]]
    with running.started([sys.executable, "-m", "arbiter_sidecar", *words]):
        yield


def _run(words: list[str]) -> str:
    """What a command of ours prints; it must succeed."""
    command = [str(_BIN / words[0]), *words[1:]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_GUARD_S, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def _shape(text: str) -> list[str]:
    """Its words without what differs from run to run: names of leases, sizes, times, shares."""
    plain = re.sub(r"\b[0-9a-f]{24}\b", "ID", text)
    return re.sub(r"\d+(\.\d+)*(?=[ \n]|MiB|s\b|$)", "N", plain).split()


def _printed() -> list[str]:
    """The lines that the README's worker prints, according to it."""
    (lines,) = [block.splitlines() for block in readme.blocks("text") if block.startswith("quality")]
    return lines


@pytest.mark.slow
def test_two_workers_of_the_readme_share_when_started_as_printed(tmp_path: Path) -> None:
    alone, together = _printed()
    with _serving(tmp_path), _working(tmp_path) as first:
        first.wait_for(alone)
        with _working(tmp_path) as second:
            second.wait_for(together)
            first.wait_for(together)
            for step in readme.steps("arbiter", "arbiter-sidecar"):
                if step != readme.serving():
                    _wait_until_printed(step, tmp_path)
            assert second.interrupt() == 0
        assert second.lines == [together, "released"]
        first.wait_for(alone, after=2)
        assert first.interrupt() == 0
    assert first.lines[-1] == "released"


def _wait_until_printed(step: readme.Step, folder: Path) -> None:
    """Returns when the command prints what the README says; confirmations and samples may still be on their way."""
    words = [step.program, *(readme.moved(word, folder) for word in step.words[1:])]
    deadline = time.monotonic() + _GUARD_S
    while _shape(output := _run(words)) != _shape(step.output):
        assert time.monotonic() < deadline, output
        time.sleep(0.1)


@pytest.mark.slow
def test_worker_of_the_readme_ends_by_itself_when_the_arbiter_does(tmp_path: Path) -> None:
    with running.launched(running.serve_command(tmp_path)) as (server, _), _working(tmp_path) as worker:
        worker.wait_for(_printed()[0])
        server.terminate()
        assert server.wait(_GUARD_S) == 0
        assert worker.process.wait(_GUARD_S) == 0


def test_commands_of_the_readme_exist() -> None:
    text = (checkout.ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(arbiter(?:-sidecar)?) ([a-z-]+)", text))
    assert {word for program, word in named if program == "arbiter"} == {
        "state",
        "leases",
        "engines",
        "balance",
        "explain",
        "watch",
        "preempt",
    }
    assert {word for program, word in named if program == "arbiter-sidecar"} == {"check-config", "health", "serve"}
    for program, word in named:
        assert _run([program, word, "--help"]).startswith(f"usage: {program} {word}")


def test_file_of_the_readme_is_a_sound_configuration(tmp_path: Path) -> None:
    (content,) = readme.blocks("toml")
    file = tmp_path / "arbiter.toml"
    file.write_text(content, encoding="utf-8")
    loaded = config.load({}, {}, file)
    assert sorted(name for name, origin in loaded.origins.items() if origin != "default") == [
        "host_budget_bytes",
        "policy",
        "socket",
        "state_dir",
        "ttl_default_s",
    ]
