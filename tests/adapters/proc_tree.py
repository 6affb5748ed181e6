"""Writes what a kernel would show under ``/proc`` into a folder, for what this kernel does not show."""

from __future__ import annotations

from pathlib import Path


class ProcTree:
    """A folder that reads like ``/proc``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)

    def process(self, pid: int | str, *, parent: int = 1, start_time: int = 1000, namespace_pids: str = "") -> Path:
        """Adds a process; ``namespace_pids`` are its ids from the outermost namespace inwards."""
        folder = self.root / str(pid)
        folder.mkdir()
        after_name = ["S", str(parent), *["0"] * 15, "1", "0", str(start_time)]
        (folder / "stat").write_text(f"{pid} (worker) {' '.join(after_name)} 0 0\n")
        (folder / "status").write_text(f"Name:\tworker\nNSpid:\t{namespace_pids or pid}\n")
        (folder / "fd").mkdir()
        (folder / "fdinfo").mkdir()
        return folder

    def meminfo(self, **sizes_kib: int) -> None:
        """Writes the machine's memory."""
        (self.root / "meminfo").write_text("".join(f"{name}: {size} kB\n" for name, size in sizes_kib.items()))

    def descriptor(self, pid: int | str, number: int, target: str, text: str = "") -> None:
        """Adds an open file to a process; ``text`` is what the driver says about it."""
        (self.root / str(pid) / "fd" / str(number)).symlink_to(target)
        (self.root / str(pid) / "fdinfo" / str(number)).write_text(text)

    def namespace(self, inode: int) -> None:
        """Says which process namespace the reader is in."""
        folder = self.root / "self" / "ns"
        folder.mkdir(parents=True)
        (folder / "pid").symlink_to(f"pid:[{inode}]")
