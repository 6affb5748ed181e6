"""Two language models share the KV tokens of one device: budgets follow work, weight and priority.

    python -m examples.two_engines [--short] [--out DIR]

Exit code 0 when budgets followed work and tokens a second followed budgets, 1 when not, 2 on wrong usage, 130 after
Ctrl-C. Takes about 45 s, with --short about 25.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from examples.two_engines import stage, verdict
from examples.two_engines.report import report

if TYPE_CHECKING:
    from types import FrameType

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demonstration; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.two_engines", description=__doc__.split("\n\n")[0])
    parser.add_argument("--short", action="store_true", help="measure less in each phase")
    parser.add_argument("--out", type=Path, help="folder for everything (default: out/two-engines/TIME)")
    chosen = parser.parse_args(arguments)
    folder = (chosen.out or Path("out") / "two-engines" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings = stage.Settings(
        folder=folder, settle_s=1.5 if chosen.short else 2.0, measured_s=2.0 if chosen.short else 5.0
    )
    # SIGTERM stops the run the way Ctrl-C does: everything that was started is stopped first.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        timeline = stage.run(settings, _say)
    except KeyboardInterrupt:
        _say("\ninterrupted; nothing is left running")
        return _EXIT_INTERRUPTED
    except (RuntimeError, OSError) as error:
        _say(f"\nFAILED\n  - {error}")
        return _EXIT_FAILED
    problems = verdict.judge(timeline)
    _say(report(timeline, problems, folder))
    return _EXIT_FAILED if problems else 0


def _say(text: str) -> None:
    print(text, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
