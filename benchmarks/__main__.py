"""``python -m benchmarks``: measures, prints a table, and keeps it under ``benchmarks/results``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import rows
from benchmarks.cases import balance_cost, calls, core_cost, kv_cost, reclaim, worker_death

CASES = {
    "core": core_cost.rows_,
    "balance": balance_cost.rows_,
    "kv": kv_cost.rows_,
    "calls": calls.rows_,
    "death": worker_death.rows_,
    "reclaim": reclaim.rows_,
}


def main() -> int:
    """Runs the cases; 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under a minute")
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="only these")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table is kept")
    parsed = parser.parse_args()
    facts = rows.machine()
    found: list[rows.Row] = []
    for name in parsed.case or CASES:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        found += CASES[name](parsed.quick)
    print(rows.table(found, facts))
    if parsed.case is None:
        rows.write(parsed.out, found, facts)
    return 1 if any(row.met is False for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
