"""The script: what is done, what must follow from it, and how long that may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from examples.first_light.timeline import IMAGE, LLM, Observation


class Action(Enum):
    """What is done to a worker."""

    START = "start"
    KILL = "kill"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One step of the script.

    Attributes:
        name: Short, unique.
        title: For people.
        action: What is done at its beginning.
        worker: To whom.
        reached: Whether what must follow has followed.
        shown_s: Seconds it lasts at least, so that a person can see it.
        limit_s: Seconds it may last at most.
    """

    name: str
    title: str
    action: Action
    worker: str
    reached: Callable[[Observation], bool]
    shown_s: float
    limit_s: float


def _llm_is_full(seen: Observation) -> bool:
    return seen.worker(LLM).full


def _image_is_full(seen: Observation) -> bool:
    return seen.worker(IMAGE).full


def _both_are_reduced(seen: Observation) -> bool:
    return seen.worker(LLM).reduced and seen.worker(IMAGE).reduced


ALONE, TOGETHER, KILLED, AGAIN, PARTED = "alone", "together", "killed", "again", "parted"

#: Raising takes a dwell of 5 s and then up to nine steps of a second each, so a limit of 35 s leaves room for a slow
#: machine. Without any trouble the whole script takes about a minute.
SCRIPT = (
    Phase(
        name=ALONE,
        title="the language model starts alone, at full quality",
        action=Action.START,
        worker=LLM,
        reached=_llm_is_full,
        shown_s=6,
        limit_s=40,
    ),
    Phase(
        name=TOGETHER,
        title="the image generator arrives: there is not enough for both, so both shrink",
        action=Action.START,
        worker=IMAGE,
        reached=_both_are_reduced,
        shown_s=8,
        limit_s=30,
    ),
    Phase(
        name=KILLED,
        title="the image generator is killed with SIGKILL: the language model grows back",
        action=Action.KILL,
        worker=IMAGE,
        reached=_llm_is_full,
        shown_s=6,
        limit_s=35,
    ),
    Phase(
        name=AGAIN,
        title="the image generator is started again: both shrink again",
        action=Action.START,
        worker=IMAGE,
        reached=_both_are_reduced,
        shown_s=6,
        limit_s=30,
    ),
    Phase(
        name=PARTED,
        title="the language model is asked to stop: the image generator grows",
        action=Action.STOP,
        worker=LLM,
        reached=_image_is_full,
        shown_s=6,
        limit_s=40,
    ),
)

#: Seconds after which the whole run is given up, whatever its phases say.
TOTAL_LIMIT_S = 115.0
