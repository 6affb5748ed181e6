"""What the README and other pages tell a reader to type, and what they say is printed then."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.contracts import checkout

#: What the README's paths begin with.
TYPED = "/tmp/arbiter"


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a transcript and what it prints."""

    command: str
    output: str

    @property
    def words(self) -> list[str]:
        """The command as a shell would split it."""
        return shlex.split(self.command)

    @property
    def program(self) -> str:
        """Name of the program, without its folder."""
        return Path(self.words[0]).name


def blocks(language: str, *, page: str = "README.md") -> list[str]:
    """The fenced blocks of this language, in order."""
    text = (checkout.ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def transcript(*, page: str = "README.md") -> list[Step]:
    """Every command of the page with what it prints, in order."""
    found = []
    for block in blocks("console", page=page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            match = re.match(r"((?:.*\\\n)*.*)\n?", part)
            assert match is not None
            found.append(Step(match.group(1).replace("\\\n", " "), part[match.end() :].strip()))
    return found


def steps(*programs: str) -> list[Step]:
    """The README's commands of these programs with what they print, in order."""
    return [step for step in transcript() if step.program in programs]


def serving() -> Step:
    """The command that starts the arbiter of all that follows."""
    (step,) = [step for step in steps("arbiter-sidecar") if "serve" in step.words]
    return step


def moved(text: str, folder: Path) -> str:
    """The same with the README's paths below the folder."""
    return text.replace(TYPED, str(folder / "arbiter"))
