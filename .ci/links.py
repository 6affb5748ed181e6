"""Names every link in the Markdown files that leads nowhere: a file that is not there, a heading that is not there.

Only links inside the repository are followed. Usage: python .ci/links.py [ROOT]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_NOT_OURS = frozenset({".venv", ".build", ".git", "out", "build", "dist", ".pytest_cache"})


def documents(root: Path) -> list[Path]:
    """The Markdown files of the repository, sorted."""
    found = root.rglob("*.md")
    return sorted(path for path in found if not _NOT_OURS & set(path.relative_to(root).parts))


def anchors(document: Path) -> set[str]:
    """What GitHub lets a link to the document's headings end in; fenced text has no headings."""
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    seen: dict[str, int] = {}
    names: set[str] = set()
    for heading in _HEADING.findall(text):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = seen.get(plain, 0)
        seen[plain] = count + 1
        names.add(plain if count == 0 else f"{plain}-{count}")
    return names


def broken(root: Path) -> Iterator[str]:
    """One sentence for each link that leads nowhere."""
    for document in documents(root):
        text = _CODE.sub("", _FENCE.sub("", document.read_text(encoding="utf-8")))
        for link in _LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            where = f"{document.relative_to(root)}: {link}"
            if not target.is_relative_to(root.resolve()) and path:
                yield f"{where} leads out of the repository"
            elif not target.exists():
                yield f"{where} is not there"
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                yield f"{where} has no such heading"


def main() -> int:
    """0 when every link leads somewhere."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    problems = list(broken(root))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
