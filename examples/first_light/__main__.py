"""Two AI workers share a memory that is too small for both: they shrink when told to, and grow back.

    python -m examples.first_light [--light] [--out DIR] [--budget SIZE]

Exit code 0 when both workers shrank and grew back within the budget, 1 when not, 2 on wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from examples import options
from examples.first_light import demonstration, engine_choice, stage, verdict
from examples.first_light.report import report
from examples.first_light.screen import Screen
from examples.first_light.timeline import MIB

if TYPE_CHECKING:
    from types import FrameType

#: Budgets that hold either worker at full size with room to spare, and both only when they are smaller: the language
#: model wants about 550 MiB with llama.cpp and 335 MiB with the small one, the image generator 420 MiB.
_BUDGETS = {"llama": 800 * MIB, "tiny": 620 * MIB}
_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demonstration; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.first_light", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--light", action="store_true", help="use a small numpy language model, without a 200 MB engine"
    )
    parser.add_argument("--out", type=Path, help="folder for everything (default: out/first-light/TIME)")
    parser.add_argument("--budget", type=options.size, help="memory the arbiter may lease, such as 800MiB")
    chosen = parser.parse_args(arguments)
    missing = None if chosen.light else engine_choice.missing_engine()
    choice = engine_choice.choose(light=chosen.light, in_ci=engine_choice.in_ci(os.environ), missing=missing)
    if choice.notice:
        print(f"\n*** {choice.notice} ***\n", file=sys.stderr, flush=True)
    if not choice.engine:
        return _EXIT_FAILED
    folder = (chosen.out or Path("out") / "first-light" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings = stage.Settings(
        engine=choice.engine, budget_bytes=chosen.budget or _BUDGETS[choice.engine], folder=folder
    )
    return _run(settings)


def _run(settings: stage.Settings) -> int:
    # SIGTERM stops the run the way Ctrl-C does: everything that was started is stopped first.
    signal.signal(signal.SIGTERM, _interrupt)
    screen = Screen(sys.stdout, budget_bytes=settings.budget_bytes)
    screen.say(f"budget {settings.budget_bytes / MIB:.0f} MiB of host memory, everything goes to {settings.folder}")
    try:
        timeline = demonstration.run(settings, screen)
    except KeyboardInterrupt:
        screen.say("\ninterrupted; nothing is left running")
        return _EXIT_INTERRUPTED
    except (RuntimeError, OSError) as error:
        screen.say(f"\nFAILED\n  - {error}")
        return _EXIT_FAILED
    problems = verdict.judge(timeline)
    screen.say(report(timeline, problems, settings.folder))
    return _EXIT_FAILED if problems else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
