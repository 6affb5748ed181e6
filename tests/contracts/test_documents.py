"""Links in the documents lead somewhere, and the check that says so notices when they do not."""

from __future__ import annotations

import subprocess
import sys
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
