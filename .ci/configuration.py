"""Writes the table of settings in docs/configuration.md from the options that the server has.

Usage: python .ci/configuration.py [--check] [PAGE]. With --check nothing is written: exit code 1 says that it is stale.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from arbiter_sidecar import config, config_values

PAGE = Path(__file__).resolve().parent.parent / "docs/configuration.md"
BEGIN = "<!-- The table is written by .ci/configuration.py; make format does that. -->\n"
END = "<!-- End of the table. -->\n"
#: Defaults that depend on who starts the server and where.
_DEPENDING = {
    "socket": "`$XDG_RUNTIME_DIR/arbiter/arbiter.sock`; without that variable `/run/arbiter/arbiter.sock` for root, "
    "`/tmp/arbiter-<uid>/arbiter.sock` for others",
    "host_foreign": "`none` with a budget, else `machine`, or the control group that limits the arbiter",
    "state_dir": "`$XDG_STATE_HOME/arbiter-sidecar`; without that variable `/var/lib/arbiter-sidecar` for root, "
    "`~/.local/state/arbiter-sidecar` for others",
}


def shown(name: str, value: object) -> str:
    """A default as one would write it on the command line; a dash where there is none."""
    if value in (None, "", ()):
        return "–"
    return f"`{_written(name, value)}`"


def _written(name: str, value: object) -> str:
    if isinstance(value, Mapping):
        names = {workload: word for word, workload in config_values.TYPE_NAMES.items()}
        return ",".join(f"{names[workload]}={share:g}" for workload, share in value.items())
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}s" if name.endswith("_s") else f"{value:g}"
    return str(value)


def table() -> str:
    """One row for each option."""
    defaults = config.Config()
    rows = ["| key in the file | flag | variable | default | what it is |", "|---|---|---|---|---|"]
    for option in config.OPTIONS:
        default = _DEPENDING.get(option.name) or shown(option.name, getattr(defaults, option.name))
        flag = f"`{option.flag} {option.metavar}`"
        rows.append(f"| `{option.key}` | {flag} | `{option.variable}` | {default} | {option.help} |")
    return "\n".join(rows) + "\n"


def renewed(page: str) -> str:
    """The page with the table of today. Raises ValueError where its place is not marked."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError("the place of the table is not marked")
    return f"{head}{begin}\n{table()}\n{end}{tail}"


def main() -> int:
    """0 when the page is as it should be."""
    parser = argparse.ArgumentParser(description="Writes the table of settings.")
    parser.add_argument("--check", action="store_true", help="write nothing, only say whether it is stale")
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    parsed = parser.parse_args()
    page: Path = parsed.page
    before = page.read_text(encoding="utf-8")
    after = renewed(before)
    if parsed.check and after != before:
        print(f"{page.name} is not what the options say: run python .ci/configuration.py")
        return 1
    if after != before:
        page.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
