"""Starts what is measured: each server is a process of its own on a Unix socket in a temporary directory."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

#: Seconds a server may take to answer; it takes a fifth of one.
START_TIMEOUT_S = 20.0


@contextlib.contextmanager
def _running(command: Sequence[str], socket: Path) -> Iterator[str]:
    target = f"unix:{socket}"
    with (socket.parent / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with grpc.insecure_channel(target) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=START_TIMEOUT_S)
            except grpc.FutureTimeoutError as error:
                said = (socket.parent / "server.log").read_text(errors="replace")
                raise RuntimeError(f"{' '.join(command)} does not answer; it said: {said}") from error
        yield target
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def arbiter(*flags: str) -> Iterator[str]:
    """The address of a fresh arbiter with a static device of 64 GiB unless flags say otherwise."""
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory) / "arbiter.sock"
        chosen = flags or ("--devices", "static", "--devices-static", "card=64GiB", "--lease-lock-delay", "0s")
        command = [sys.executable, "-m", "arbiter_sidecar", "serve", "--socket", str(socket)]
        command += ["--state-dir", f"{directory}/state", "--drain-timeout", "0s", "--log-level", "warning", *chosen]
        with _running(command, socket) as target:
            yield target


@contextlib.contextmanager
def echo() -> Iterator[str]:
    """The address of a bare echo server on the same stack: the ceiling of a unary call."""
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory) / "echo.sock"
        command = [sys.executable, "-m", "benchmarks.ceilings.echo", str(socket)]
        with _running(command, socket) as target:
            yield target
