"""A worker that answers prompts with a small language model and is as large as the arbiter lets it be.

    python -m examples.llm_worker --out DIR [--address ADDRESS] [--memory 600MiB] [--engine llama|tiny]

Writes every prompt and answer to DIR/answers.txt. Exit code 0 when asked to stop, 1 on failure, 2 on wrong usage, 3
when the lease is lost.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from examples import memory, options, worker_loop
from examples.journal import Journal
from examples.stop import Stop

if TYPE_CHECKING:
    from examples.engines.engine import Engine
    from examples.rungs import SizedRung

#: Below this the conversations are so short that the arbiter had better make somebody else smaller.
MIN_QUALITY = 0.4


class Answering:
    """Answers a rotating list of prompts. See `Workload` for the methods.

    Args:
        engine: The model.
        path: The text file that answers are appended to.
        journal: Is told about every answer.
    """

    __slots__ = ("_answered", "_engine", "_journal", "_path", "_prompts", "_quality", "_rung")

    def __init__(self, engine: Engine, path: Path, journal: Journal) -> None:
        self._engine = engine
        self._path = path
        self._journal = journal
        self._prompts = itertools.cycle(engine.prompts)
        self._answered = 0
        self._rung = ""
        self._quality = 0.0

    @property
    def rungs(self) -> Sequence[SizedRung]:
        """The engine's sizes."""
        return self._engine.rungs

    def resize(self, rung: SizedRung, quality: float) -> None:
        """See `Workload.resize`."""
        self._engine.resize(rung)
        self._rung, self._quality = rung.name, quality

    def work(self, interrupted: Callable[[], bool]) -> None:
        """Answers as many prompts as the engine has conversations; about a second, and not interrupted."""
        asked = list(itertools.islice(self._prompts, self._engine.conversations))
        answers = self._engine.answer(asked)
        with self._path.open("a", encoding="utf-8") as file:
            for prompt, answer in zip(asked, answers, strict=True):
                file.write(f"[quality {self._quality:.2f}, {self._rung}] {prompt}\n    {' '.join(answer.split())}\n")
        self._answered += len(answers)
        self._journal.say("made", count=self._answered, rung=self._rung, quality=self._quality)

    def close(self) -> None:
        """See `Workload.close`."""
        self._engine.close()


def make_engine(name: str) -> Engine:
    """The engine called "llama" or "tiny".

    Raises:
        ImportError: It is not installed.
    """
    # Each is imported only when it is used: the other one's libraries would be memory that the worker has to lease.
    if name == "tiny":
        options.one_thread_for_algebra()
        from examples.engines.tiny_lm import TinyLm

        return TinyLm()
    from examples.engines.llama_cpp import LlamaCpp

    return LlamaCpp()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the worker until it is told to stop; returns its exit code."""
    memory.use_one_arena()
    parser = argparse.ArgumentParser(prog="python -m examples.llm_worker", description=__doc__.split("\n\n")[0])
    options.add(parser, name="llm-server", priority="high")
    parser.add_argument("--engine", choices=["llama", "tiny"], default="llama", help="which model (default: llama)")
    chosen = parser.parse_args(arguments)
    journal = Journal(sys.stdout, chosen.name)
    stop = Stop()
    stop.install()
    try:
        engine = make_engine(chosen.engine)
    except ImportError as error:
        journal.say("failed", detail=f"{error}; or use --engine tiny")
        return worker_loop.EXIT_FAILED
    chosen.out.mkdir(parents=True, exist_ok=True)
    workload = Answering(engine, chosen.out / "answers.txt", journal)
    return worker_loop.run(workload, options.terms(chosen, "llm", MIN_QUALITY), journal, stop)


if __name__ == "__main__":
    sys.exit(main())
