"""Sets the stage, has the script played on it, and clears it away whatever happens."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import arbiter_client
from examples.first_light import picture
from examples.first_light.meter import Meter
from examples.first_light.processes import Children, wait_for_line
from examples.first_light.screen import Screen
from examples.first_light.stage import Abandoned, Settings, Stage
from examples.first_light.timeline import Timeline

_SERVER_LIMIT_S = 20.0


def run(settings: Settings, screen: Screen) -> Timeline:
    """Runs the whole script and stops every process, also when it is interrupted.

    Raises:
        RuntimeError: The arbiter did not start.
        OSError: A process could not be started or a file could not be written.
        KeyboardInterrupt: Ctrl-C; everything is stopped by then.
    """
    timeline = Timeline(budget_bytes=settings.budget_bytes)
    logs = settings.folder / "logs"
    for folder in (logs, settings.folder / "answers", settings.folder / "images"):
        folder.mkdir(parents=True, exist_ok=True)
    children = Children(logs)
    meter = Meter()
    # Paths of Unix sockets may be at most 107 bytes long, so this one does not live in the output folder.
    with tempfile.TemporaryDirectory(prefix="first-light-") as private:
        socket = str(Path(private) / "arbiter.sock")
        try:
            _start_arbiter(children, settings, socket)
            meter.start()
            with arbiter_client.connect_blocking(f"unix:{socket}") as client:
                watch = picture.EventWatch(client)
                watch.start()
                stage = Stage(settings, socket, children, meter, client, watch, timeline, screen)
                try:
                    with contextlib.suppress(Abandoned):
                        stage.play()
                finally:
                    watch.stop()
                timeline.events = watch.counts
        finally:
            with _deaf():
                timeline.troubles += children.stop_all()
            meter.stop()
            if meter.failure:
                timeline.troubles.append(meter.failure)
            timeline.peak_bytes, timeline.samples = meter.peak_bytes, meter.samples
            _write(timeline, settings.folder / "timeline.jsonl")
    return timeline


def _start_arbiter(children: Children, settings: Settings, socket: str) -> None:
    arbiter = children.start(
        "arbiter",
        "arbiter_sidecar",
        "serve",
        *("--socket", socket),
        *("--devices", "host"),
        *("--host-budget", str(settings.budget_bytes)),
        *("--state-dir", str(settings.folder / "state")),
    )
    wait_for_line(arbiter, '"event": "serving"', _SERVER_LIMIT_S)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Inside, neither Ctrl-C nor SIGTERM interrupts: stopping what was started takes seconds and must be finished."""
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, reaction in former.items():
            signal.signal(number, reaction)


def _write(timeline: Timeline, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for seen in timeline.observations:
            file.write(json.dumps(asdict(seen)) + "\n")
