"""Floors hold, and the check that says so notices when they do not."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts import checkout

_LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
_CORE = ("words", "policy", "ledger", "arbiter")


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(_LINT_IMPORTS), "--no-logo", "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout.ROOT / "clients/python/src")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_floors_hold() -> None:
    result = _lint(checkout.ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("stray.py", "", "stray"),
        ("policy/clockwise.py", "import time", "time"),
        ("policy/nosy.py", "from arbiter_sidecar.policy import quality", "quality"),
        ("ledger/upward.py", "from arbiter_sidecar.adapters import clock", "adapters"),
        ("policy/wired.py", "from arbiter.v1 import lease_pb2", "import arbiter:"),
    ],
)
def test_floors_are_missed_when_broken(tmp_path: Path, module: str, line: str, complaint: str) -> None:
    shutil.copytree(checkout.ROOT / "arbiter_sidecar", tmp_path / "arbiter_sidecar")
    shutil.copy(checkout.ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "arbiter_sidecar" / module).write_text(f'"""Out of place."""\n{line}\n', encoding="utf-8")
    result = _lint(tmp_path)
    assert result.returncode != 0
    assert complaint in result.stdout


def test_core_tests_need_no_event_loop() -> None:
    found = []
    for path in checkout.written_python():
        where = path.relative_to(checkout.ROOT)
        if where.parts[0] != "tests" or where.parts[1] not in _CORE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef) or (
                isinstance(node, ast.Import) and any(alias.name == "asyncio" for alias in node.names)
            ):
                found.append(f"{where}:{node.lineno}")
    assert not found
