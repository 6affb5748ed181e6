"""The seam between the LLM worker and whatever answers its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from examples.rungs import SizedRung


class Engine(Protocol):
    """A language model whose memory can be made larger and smaller while the process lives."""

    @property
    def name(self) -> str:
        """Name for people."""

    @property
    def prompts(self) -> Sequence[str]:
        """Prompts this model can make something of, at least one."""

    @property
    def rungs(self) -> Sequence[SizedRung]:
        """Every size it can run at, largest first; sizes include the whole process."""

    @property
    def conversations(self) -> int:
        """Prompts it answers at the same time at its present size, at least 1."""

    def resize(self, rung: SizedRung) -> None:
        """Runs at `rung` from now on; frees the memory of the former size before it takes any for the new one.

        Raises:
            RuntimeError: The engine could not be loaded at this size.
        """

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """One answer for each of at most `conversations` prompts.

        Raises:
            RuntimeError: The engine failed, or `resize` has not been called.
        """

    def close(self) -> None:
        """Frees everything."""
