"""The script: who has work, what is done, and what must follow."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from examples.two_engines.timeline import BATCH, CHAT

#: What the engines share, in whole blocks of 16 tokens.
TOTAL_TOKENS = 4096
WEIGHTS = {CHAT: 1, BATCH: 3}
#: Twice as many conversations as the whole device has tokens for, so that an engine that has work wants everything even
#: in a moment in which many answers have just ended.
CLIENTS = 200
#: What the important engine takes from the other.
LOAN_TOKENS = 1024

BOTH, IDLE, WAKES, LENT, KILLED = "both", "idle", "wakes", "lent", "killed"


class Action(Enum):
    """What is done at the beginning of a phase."""

    START = "start"
    STILL = "still"
    WORK = "work"
    PREEMPT = "preempt"
    KILL = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One step of the script.

    Attributes:
        name: Short, unique.
        title: For people.
        action: What is done.
        budgets: What each engine must then have, in tokens; one that is missing is not running.
    """

    name: str
    title: str
    action: Action
    budgets: dict[str, int]


_QUARTER = TOTAL_TOKENS // 4

SCRIPT = (
    Phase(
        name=BOTH,
        title="both have work: they share by weight, 1 to 3",
        action=Action.START,
        budgets={CHAT: _QUARTER, BATCH: 3 * _QUARTER},
    ),
    Phase(
        name=IDLE,
        title="batch has no more work: chat has everything",
        action=Action.STILL,
        budgets={CHAT: TOTAL_TOKENS, BATCH: 0},
    ),
    Phase(
        name=WAKES,
        title="batch has work again: its share comes back",
        action=Action.WORK,
        budgets={CHAT: _QUARTER, BATCH: 3 * _QUARTER},
    ),
    Phase(
        name=LENT,
        title=f"chat is more important and takes {LOAN_TOKENS} tokens from batch",
        action=Action.PREEMPT,
        budgets={CHAT: _QUARTER + LOAN_TOKENS, BATCH: 3 * _QUARTER - LOAN_TOKENS},
    ),
    Phase(
        name=KILLED,
        title="batch is killed with SIGKILL: chat has everything",
        action=Action.KILL,
        budgets={CHAT: TOTAL_TOKENS},
    ),
)
