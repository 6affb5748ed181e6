"""The files of the checkout, without what was built or installed into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_BUILT = frozenset(
    {
        ".build",
        ".git",
        ".hypothesis",
        ".import_linter_cache",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".venv",
        "__pycache__",
        "build",
        "dist",
        "out",
    }
)
_GENERATED = ROOT / "clients/python/src/arbiter"


def files() -> Iterator[Path]:
    """Every file that belongs to the repository."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if name not in _BUILT and not name.endswith(".egg-info"))
        for name in sorted(names):
            if name != ".git" and not name.startswith(".coverage") and not name.endswith(".pyc"):
                yield Path(folder, name)


def written_python() -> Iterator[Path]:
    """Every Python file that people write."""
    for path in files():
        if path.suffix == ".py" and not path.is_relative_to(_GENERATED):
            yield path
