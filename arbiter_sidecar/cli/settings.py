"""Flags of the command line, and the configuration as people read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from arbiter_sidecar import config, config_values
from arbiter_sidecar.config import ConfigError, Loaded

if TYPE_CHECKING:
    import argparse

__all__ = ["ConfigError", "add_flags", "as_json", "as_table", "load"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each option, and one for the file."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; also ARBITER_CONFIG")
    for option in config.OPTIONS:
        parser.add_argument(
            option.flag,
            dest=f"option_{option.name}",
            metavar=option.metavar,
            help=f"{option.help}; also {option.variable}".replace("%", "%%"),
        )


def load(parsed: argparse.Namespace, environ: Mapping[str, str]) -> Loaded:
    """The configuration of a command line. Raises ConfigError."""
    given = {option.name: getattr(parsed, f"option_{option.name}") for option in config.OPTIONS}
    flags = {name: value for name, value in given.items() if value is not None}
    return config.load(flags, environ, parsed.config)


def as_table(loaded: Loaded) -> str:
    """Key, value and origin of every option, aligned."""
    rows = [(option.key, _shown(loaded, option.name), loaded.origins[option.name]) for option in config.OPTIONS]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows)


def as_json(loaded: Loaded) -> str:
    """The same as one JSON object."""
    entries = {
        option.key: {"value": _plain(getattr(loaded.config, option.name)), "origin": loaded.origins[option.name]}
        for option in config.OPTIONS
    }
    return json.dumps(entries, indent=2)


def _shown(loaded: Loaded, name: str) -> str:
    plain = _plain(getattr(loaded.config, name))
    return "-" if plain in (None, "", {}) else plain if isinstance(plain, str) else json.dumps(plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        names = {workload: name for name, workload in config_values.TYPE_NAMES.items()}
        return {names[key]: share for key, share in value.items()}
    if isinstance(value, tuple):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    return value.value if isinstance(value, Enum) else value
