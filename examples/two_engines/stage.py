"""Starts the arbiter and the engines, plays the script, watches, and clears everything away."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import arbiter_client
from examples.first_light.processes import Children, undisturbed, wait_for_line
from examples.two_engines import phases
from examples.two_engines.clients import Load
from examples.two_engines.phases import Action, Phase
from examples.two_engines.timeline import BATCH, CHAT, ENGINES, Measured, Observation, Seen, Timeline

_START_LIMIT_S = 30.0
#: What must follow follows in a few seconds; a machine that is very busy has more.
_FOLLOW_LIMIT_S = 20.0
_LOOK_EVERY_S = 0.1
_PRIORITIES = {CHAT: "high", BATCH: "normal"}
#: Of requests: those of batch may make room for those of chat.
_URGENCY = {CHAT: "high", BATCH: "low"}


class Abandoned(RuntimeError):
    """The run cannot go on; why is in the timeline's troubles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the run goes.

    Attributes:
        folder: Where everything goes.
        settle_s: Seconds from when budgets are right until measuring begins; an answer takes about two.
        measured_s: Seconds for which tokens are counted in each phase.
        drain_s: How long an engine may keep more than its budget.
    """

    folder: Path
    settle_s: float
    measured_s: float
    drain_s: float = 5.0


def run(settings: Settings, say: Callable[[str], None]) -> Timeline:
    """Runs the whole script and stops every process, also when it is interrupted.

    Raises:
        RuntimeError: The arbiter or an engine did not start.
        OSError: A process could not be started or a file could not be written.
        KeyboardInterrupt: Ctrl-C; everything is stopped by then.
    """
    timeline = Timeline(total_tokens=phases.TOTAL_TOKENS, drain_s=settings.drain_s)
    children = Children(settings.folder)
    # Paths of Unix sockets may be at most 107 bytes long, so this one does not live in the output folder.
    with tempfile.TemporaryDirectory(prefix="two-engines-") as private:
        address = f"unix:{private}/arbiter.sock"
        stage: Stage | None = None
        try:
            _start_arbiter(children, settings, Path(private))
            with arbiter_client.connect_blocking(address) as client:
                stage = Stage(settings, address, children, client, timeline, say)
                stage.play()
        except Abandoned as error:
            timeline.troubles.append(str(error))
        finally:
            with undisturbed():
                if stage is not None:
                    stage.close()
                timeline.troubles += children.stop_all()
                _write(timeline, settings.folder / "timeline.jsonl")
    return timeline


def _start_arbiter(children: Children, settings: Settings, private: Path) -> None:
    arbiter = children.start(
        "arbiter",
        "arbiter_sidecar",
        "serve",
        *("--socket", str(private / "arbiter.sock"), "--state-dir", str(private / "state")),
        *("--devices", "host", "--host-budget", "1GiB", "--drain-timeout", "0s"),
        *("--kv-tokens", str(phases.TOTAL_TOKENS), "--kv-drain", f"{settings.drain_s}s"),
    )
    wait_for_line(arbiter, '"event": "serving"', _START_LIMIT_S)


class Stage:
    """A run in progress."""

    def __init__(
        self,
        settings: Settings,
        address: str,
        children: Children,
        client: arbiter_client.BlockingClient,
        timeline: Timeline,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._address = address
        self._children = children
        self._client = client
        self._timeline = timeline
        self._say = say
        self._loads: dict[str, Load] = {}
        self._began = time.monotonic()
        self._phase = ""

    def play(self) -> None:
        """Plays the script.

        Raises:
            RuntimeError: An engine did not start, ended by itself, or what must follow did not.
        """
        for phase in phases.SCRIPT:
            self._phase = phase.name
            self._say(f"\n{time.monotonic() - self._began:5.1f} s  {phase.title}")
            self._act(phase)
            begun = time.monotonic()
            self._follow(phase)
            followed_s = time.monotonic() - begun
            self._watch(self._settings.settle_s)
            self._timeline.measured.append(self._measure(phase, followed_s))

    def close(self) -> None:
        """Ends what the engines are asked, and takes in what they said last."""
        for name, load in self._loads.items():
            self._timeline.over_s[name] = load.over_s
            self._timeline.dropped += load.dropped
            load.child.may_end = True
            load.close()

    def _act(self, phase: Phase) -> None:
        match phase.action:
            case Action.START:
                for number, name in enumerate(ENGINES, 1):
                    self._loads[name] = self._start(name, number)
                for load in self._loads.values():
                    load.wait_leased(_START_LIMIT_S)
                    load.clients(phases.CLIENTS)
            case Action.STILL:
                self._loads[BATCH].clients(0)
            case Action.WORK:
                self._loads[BATCH].clients(phases.CLIENTS)
            case Action.PREEMPT:
                self._loads[CHAT].preempt(phases.LOAN_TOKENS)
            case Action.KILL:
                self._children.kill(self._loads[BATCH].child)

    def _start(self, name: str, seed: int) -> Load:
        child = self._children.start(
            name,
            "examples.two_engines.engine",
            *("--name", name, "--address", self._address, "--seed", str(seed)),
            *("--weight", str(phases.WEIGHTS[name]), "--priority", _PRIORITIES[name]),
            *("--pool-tokens", str(phases.TOTAL_TOKENS)),
            piped=True,
        )
        return Load(child, _URGENCY[name])

    def _follow(self, phase: Phase) -> None:
        deadline = time.monotonic() + _FOLLOW_LIMIT_S
        while not self._reached(phase, self._look()):
            if time.monotonic() > deadline:
                raise Abandoned(f"phase {phase.name}: budgets did not follow within {_FOLLOW_LIMIT_S:.0f} s")
            time.sleep(_LOOK_EVERY_S)

    def _reached(self, phase: Phase, seen: Observation) -> bool:
        if phase.action is Action.PREEMPT:
            self._timeline.confirmed_tokens = self._loads[CHAT].confirmed
            if self._timeline.confirmed_tokens is None:
                return False
        budgets = {name: engine.budget for name, engine in seen.engines.items()}
        return budgets == phase.budgets and all(each.resident <= each.budget for each in seen.engines.values())

    def _watch(self, seconds: float) -> Observation:
        until = time.monotonic() + seconds
        while True:
            seen = self._look()
            if time.monotonic() >= until:
                return seen
            time.sleep(_LOOK_EVERY_S)

    def _measure(self, phase: Phase, followed_s: float) -> Measured:
        before = self._look()
        after = self._watch(self._settings.measured_s)
        measured = Measured(
            phase=phase.name,
            followed_s=followed_s,
            budgets={name: after.engines[name].budget if name in after.engines else 0 for name in ENGINES},
            rates={name: _rate(before.engines.get(name), after.engines.get(name)) for name in ENGINES},
        )
        for name in ENGINES:
            self._say(
                f"         {name:<6} budget {measured.budgets[name]:5} tokens   {measured.rates[name]:6.0f} tokens/s"
            )
        return measured

    def _look(self) -> Observation:
        for child in self._children.ended_unexpectedly():
            failure = self._loads[child.name].failure if child.name in self._loads else ""
            raise Abandoned(f"{child.name} ended with exit code {child.exit_code} {failure}".strip())
        shown = {engine.holder: engine for engine in self._client.state().kv_engines}
        engines = {}
        for name, load in self._loads.items():
            if (engine := shown.get(name)) is not None:
                engines[name] = Seen(
                    budget=engine.budget_tokens,
                    resident=load.resident,
                    made=load.made,
                    at=load.at,
                    running=load.running,
                    donated=engine.donated_tokens,
                    borrowed=engine.borrowed_tokens,
                )
        seen = Observation(at=time.monotonic() - self._began, phase=self._phase, engines=engines)
        self._timeline.observations.append(seen)
        return seen


def _rate(before: Seen | None, after: Seen | None) -> float:
    """Tokens a second by the engine's own clock; 0 for one that was not there."""
    if before is None or after is None or after.at <= before.at:
        return 0.0
    return (after.made - before.made) / (after.at - before.at)


def _write(timeline: Timeline, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for seen in timeline.observations:
            file.write(json.dumps(asdict(seen)) + "\n")
