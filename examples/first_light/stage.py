"""Plays the script: starts, kills and stops workers, watches what follows, and records it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import arbiter_client
from examples.first_light import phases, picture
from examples.first_light.journals import Follower
from examples.first_light.phases import Action, Phase
from examples.first_light.timeline import LLM, WORKERS, Observation, Timeline, Worker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from examples.first_light.meter import Meter
    from examples.first_light.processes import Child, Children
    from examples.first_light.screen import Screen

_TICK_S = 0.1
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to demonstrate.

    Attributes:
        engine: "llama" or "tiny".
        budget_bytes: What the arbiter may lease.
        folder: Where everything goes; exists.
    """

    engine: str
    budget_bytes: int
    folder: Path


class Abandoned(Exception):
    """The script cannot go on; the timeline has the reason."""


class Stage:
    """The running script."""

    __slots__ = (
        "_began",
        "_children",
        "_client",
        "_followers",
        "_meter",
        "_screen",
        "_settings",
        "_socket",
        "_timeline",
        "_watch",
        "_workers",
    )

    def __init__(
        self,
        settings: Settings,
        socket: str,
        children: Children,
        meter: Meter,
        client: arbiter_client.BlockingClient,
        watch: picture.EventWatch,
        timeline: Timeline,
        screen: Screen,
    ) -> None:
        self._settings = settings
        self._socket = socket
        self._children = children
        self._meter = meter
        self._client = client
        self._watch = watch
        self._timeline = timeline
        self._screen = screen
        self._began = time.monotonic()
        self._workers: dict[str, Child] = {}
        self._followers = {name: Follower(settings.folder / "logs" / f"{name}.log") for name in WORKERS}

    def play(self) -> None:
        """Plays every phase.

        Raises:
            Abandoned: One did not reach its goal.
        """
        for phase in phases.SCRIPT:
            self._screen.say(f"\n{self._at():6.1f} s  {phase.title}")
            self._act(phase)
            self._await(phase)
            self._timeline.completed.append(phase.name)

    def _at(self) -> float:
        return time.monotonic() - self._began

    def _act(self, phase: Phase) -> None:
        match phase.action:
            case Action.START:
                self._workers[phase.worker] = child = self._start(phase.worker)
                self._meter.follow(phase.worker, child.pid)
            case Action.KILL:
                self._children.kill(self._workers[phase.worker])
            case Action.STOP:
                self._children.ask_to_stop(self._workers[phase.worker])

    def _start(self, name: str) -> Child:
        address = ("--address", f"unix:{self._socket}", "--name", name)
        if name == LLM:
            out = ("--out", str(self._settings.folder / "answers"), "--engine", self._settings.engine)
            return self._children.start(name, "examples.llm_worker", *address, *out, "--priority", "high")
        images = ("--out", str(self._settings.folder / "images"))
        return self._children.start(name, "examples.diffusion_worker", *address, *images, "--priority", "normal")

    def _await(self, phase: Phase) -> None:
        """Watches until the phase has reached its goal and was shown long enough."""
        began = self._at()
        look_at = began
        reached = False
        while not reached or self._at() < began + phase.shown_s:
            if self._at() >= look_at:
                look_at += _LOOK_S
                seen = self._look(phase)
                # What was reached must still hold at the end, when the phase is judged.
                reached = phase.reached(seen)
                if not reached and self._at() > min(began + phase.limit_s, phases.TOTAL_LIMIT_S):
                    self._give_up(f"phase {phase.name} did not reach its goal in {self._at() - began:.0f} s")
            time.sleep(_TICK_S)
        self._check_polite_end(phase)

    def _look(self, phase: Phase) -> Observation:
        for child in self._children.ended_unexpectedly():
            failure = self._failure(child.name)
            self._give_up(f"{child.name} ended unexpectedly with exit code {child.exit_code}{failure}")
        try:
            now = picture.take(self._client)
        except arbiter_client.ArbiterClientError as error:
            self._give_up(f"the arbiter did not answer: {error.message}")
        own = self._meter.latest()
        seen = Observation(
            at=round(self._at(), 2),
            phase=phase.name,
            granted_bytes=now.granted_bytes,
            measured_bytes=now.measured_bytes,
            workers={name: self._worker(name, now, own) for name in WORKERS},
        )
        self._timeline.observations.append(seen)
        said = {name: follower.said.last for name, follower in self._followers.items()}
        self._screen.show(seen, said, self._watch.newest)
        return seen

    def _worker(self, name: str, now: picture.Picture, own: Mapping[str, int]) -> Worker:
        follower = self._followers[name]
        follower.read()
        said, child, lease = follower.said, self._workers.get(name), now.leases.get(name)
        return Worker(
            alive=child is not None and child.exit_code is None,
            quality=lease.quality if lease else None,
            granted_bytes=lease.granted_bytes if lease else 0,
            measured_bytes=lease.measured_bytes if lease else None,
            own_bytes=own.get(name, 0),
            full_bytes=said.full_bytes,
            rung=said.rung,
            obeyed_quality=said.obeyed_quality,
            made=said.made,
            made_at_rung=said.made_at_rung,
        )

    def _failure(self, name: str) -> str:
        follower = self._followers.get(name)
        if follower is None:
            return ""
        follower.read()
        return f" ({follower.said.failure})" if follower.said.failure else ""

    def _check_polite_end(self, phase: Phase) -> None:
        if phase.action is not Action.STOP:
            return
        code = self._workers[phase.worker].exit_code
        if code != 0:
            ended = "was still running" if code is None else f"ended with exit code {code}"
            self._timeline.troubles.append(f"{phase.worker} {ended} after it was asked to stop")

    def _give_up(self, reason: str) -> None:
        self._timeline.troubles.append(reason)
        raise Abandoned(reason)
