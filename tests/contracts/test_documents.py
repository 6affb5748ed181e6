"""Pages are true: links lead somewhere, rooms and dependencies are named."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.contracts import checkout


def _check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(checkout.ROOT / ".ci/links.py"), str(root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_links_lead_somewhere() -> None:
    result = _check(checkout.ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a](missing.md)", "missing.md is not there"),
        ("[a](there.md#nowhere)", "there.md#nowhere has no such heading"),
        ("[a](../outside.md)", "../outside.md leads out of the repository"),
        ("[a](there.md#a-heading---twice)", ""),
        ("[a](#own)\n\n## Own", ""),
        ("`[a](missing.md)`\n\n```\n[a](missing.md)\n```", ""),
        ("[a](https://example.org/missing)", ""),
    ],
)
def test_link_is_followed_when_it_is_ours(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "there.md").write_text("# A heading - twice\n", encoding="utf-8")
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    result = _check(tmp_path)
    assert result.returncode == (1 if complaint else 0)
    assert complaint in result.stdout


def test_architecture_names_every_room() -> None:
    page = (checkout.ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = [path for path in (checkout.ROOT / "arbiter_sidecar").iterdir() if not path.name.startswith("__")]
    assert not [path.stem for path in rooms if path.suffix in {"", ".py"} and f"`{path.stem}`" not in page]


def test_definitions_name_code_that_is_there() -> None:
    page = (checkout.ROOT / "docs/definitions.md").read_text(encoding="utf-8")
    paths = re.findall(r"`(arbiter_sidecar/[a-z_/.]+)`", page)
    assert paths
    assert not [path for path in paths if not (checkout.ROOT / path).exists()]


def test_decisions_name_every_dependency() -> None:
    page = (checkout.ROOT / "docs/decisions.md").read_text(encoding="utf-8")
    table = page.partition("## Dependencies")[2]
    for project in ("pyproject.toml", "clients/python/pyproject.toml"):
        document = tomllib.loads((checkout.ROOT / project).read_text(encoding="utf-8"))
        names = {re.split(r"[<>=]", line)[0] for line in document["project"]["dependencies"]}
        assert not {name for name in names - {"arbiter-sidecar-client"} if f"| {name} |" not in table}
