"""Resizes a workload up and down in a process of its own and prints what it really holds, as JSON.

python -m tests.examples.resize_probe image|tiny FOLDER
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from examples import diffusion_worker, llm_worker, memory, options
from examples.journal import Journal

if TYPE_CHECKING:
    from examples.holding import Workload

#: Rungs to visit, counted from the largest; twice each, so that what one visit leaves behind shows in the next.
_VISITS = (0, -1, 6, 0, -1)


def main() -> None:
    """Prints one object for each visit: the rung, its stated size and the measured one."""
    memory.use_one_arena()
    options.one_thread_for_algebra()
    kind, folder = sys.argv[1], Path(sys.argv[2])
    journal = Journal(io.StringIO(), kind)
    workload: Workload
    if kind == "tiny":
        workload = llm_worker.Answering(llm_worker.make_engine("tiny"), folder / "answers.txt", journal)
    else:
        workload = diffusion_worker.make_workload(folder, journal, seed=1)
    for place in _VISITS:
        rung = workload.rungs[place]
        workload.resize(rung, 0.5)
        workload.work(lambda: False)
        used = memory.proportional_bytes()
        print(json.dumps({"rung": rung.name, "sized": rung.memory_bytes, "used": used}))
    workload.close()
    print(json.dumps({"rung": "closed", "sized": workload.rungs[-1].memory_bytes, "used": memory.proportional_bytes()}))


if __name__ == "__main__":
    main()
