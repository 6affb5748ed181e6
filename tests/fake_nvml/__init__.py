"""A fake NVIDIA driver that the real binding loads, and the words to move its cards.

library = fake_nvml.build(directory)
fake_nvml.load(library)                     # in this process, or LD_LIBRARY_PATH=directory in another
card = FakeCard("GPU-1", total_bytes=24 * GIB)
card.compute[os.getpid()] = 2 * GIB
driver = FakeDriver(tmp_path / "nvml", card)
monkeypatch.setenv(STATE_VARIABLE, str(driver.path))
card.used_bytes = 3 * GIB
driver.write()                              # what the next call to the driver sees
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

#: Names the state file to the library; without it the library behaves like an absent driver.
STATE_VARIABLE = "FAKE_NVML_STATE"
LIBRARY_NAME = "libnvidia-ml.so.1"

#: Codes of the driver that tests use.
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, GPU_IS_LOST, UNKNOWN = 3, 4, 6, 15, 999

CUDA_LIBRARY_NAME = "libcuda.so.1"
#: Names the directory in which the fake CUDA driver writes down what each process takes.
LEDGER_VARIABLE = "FAKE_CUDA_LEDGER"


def build(directory: Path) -> Path:
    """Compiles the NVIDIA driver's library into ``directory`` with gcc, and returns its path."""
    return _compile("fake_nvml.c", directory / LIBRARY_NAME)


def build_cuda(directory: Path) -> Path:
    """Compiles the CUDA driver's library into ``directory`` with gcc, and returns its path."""
    return _compile("fake_cuda.c", directory / CUDA_LIBRARY_NAME)


def _compile(source: str, library: Path) -> Path:
    command = ["gcc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    subprocess.run([*command, "-o", str(library), str(Path(__file__).with_name(source))], check=True, timeout=60)
    return library


def load(library: Path) -> None:
    """Loads the library into this process; whatever asks for its soname from then on gets this one."""
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


@dataclass(kw_only=True)
class FakeCard:
    """One card, or one slice of a card.

    Attributes:
        uuid: Its UUID.
        total_bytes: Size; ``None`` is not reported.
        used_bytes: Use without the reserve; ``None``: the sum of the processes.
        reserved_bytes: The driver's own part.
        name: Product name.
        compute: Bytes of each process id that computes; ``None`` is N/A.
        graphics: Likewise for graphics.
        ledger: A directory with one file for each process, named by its pid and holding its bytes.
        errors: Code with which each call fails.
        hangs_ms: Milliseconds that each call takes first.
        slices: MIG slices; ``None``: the card is not sliced.
    """

    uuid: str
    total_bytes: int | None
    used_bytes: int | None = None
    reserved_bytes: int = 0
    name: str = "Fake Card"
    compute: dict[int, int | None] = field(default_factory=dict)
    graphics: dict[int, int | None] = field(default_factory=dict)
    ledger: Path | None = None
    errors: dict[str, int] = field(default_factory=dict)
    hangs_ms: dict[str, int] = field(default_factory=dict)
    slices: list[FakeCard] | None = None

    def lines(self, word: str = "gpu") -> list[str]:
        """The card in the words of the state file."""
        sizes = {**self.compute, **{pid: size for pid, size in self.graphics.items() if pid not in self.compute}}
        used = sum(size or 0 for size in sizes.values()) if self.used_bytes is None else self.used_bytes
        total = "na" if self.total_bytes is None else self.total_bytes
        lines = [f"{word} {self.uuid} {total} {used} {self.reserved_bytes} {self.name}"]
        for kind, processes in (("compute", self.compute), ("graphics", self.graphics)):
            lines += [f"process {kind} {pid} {'na' if size is None else size}" for pid, size in processes.items()]
        lines += [f"error {call} {code}" for call, code in self.errors.items()]
        lines += [f"hang {call} {span}" for call, span in self.hangs_ms.items()]
        lines += [f"ledger {self.ledger}"] if self.ledger else []
        lines += ["mig"] if self.slices is not None else []
        return lines + [line for part in self.slices or [] for line in part.lines("slice")]


class FakeDriver:
    """The state file of all cards; writes it at once and whenever told."""

    def __init__(self, path: Path, *cards: FakeCard) -> None:
        self.path = path
        self.cards = list(cards)
        self.errors: dict[str, int] = {}
        self.hangs_ms: dict[str, int] = {}
        self.write()

    def write(self) -> None:
        """Makes the cards as they are now what the next call to the driver sees, all in one step."""
        lines = ["driver 550.54.15"]
        lines += [f"error {call} {code}" for call, code in self.errors.items()]
        lines += [f"hang {call} {span}" for call, span in self.hangs_ms.items()]
        lines += [line for card in self.cards for line in card.lines()]
        draft = self.path.with_name(self.path.name + ".draft")
        draft.write_text("\n".join(lines) + "\n")
        os.replace(draft, self.path)
