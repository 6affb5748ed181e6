"""One server for each socket and state directory, and a number that grows with every start.

grpcio replaces a Unix socket that somebody else still serves without a word, so the locks are taken before the socket
is touched.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

#: Names in the state directory.
LOCK_NAME = "lock"
EPOCH_NAME = "epoch"
#: The fences of an epoch begin at 2³² times its number and must stay within 63 bits.
MAX_EPOCH = (1 << 31) - 1
#: Longer files are not worth reading as a number.
MAX_EPOCH_BYTES = 32


class InstanceTakenError(OSError):
    """Another server holds the lock; the message names the file and the process."""


class InstanceLocks:
    """Holds lock files for as long as the process lives; the kernel lets go of them however it ends."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def take(self, path: Path) -> None:
        """Takes the lock file at ``path`` and writes our process id into it.

        Raises:
            InstanceTakenError: Somebody else holds it.
            OSError: It cannot be made.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise InstanceTakenError(f"{path} is held by process {holder}") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        self._held.append(descriptor)

    def release(self) -> None:
        """Lets go of every lock. The files stay: removing them would let two servers lock different files."""
        while self._held:
            os.close(self._held.pop())


def next_epoch(state_dir: Path) -> int:
    """Adds one to the epoch in the state directory, durably, and returns it.

    Raises:
        OSError: It cannot be read or written, or it holds something else than a number.
    """
    path = state_dir / EPOCH_NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raw = b"0"
    if not raw.strip().isdigit() or len(raw) > MAX_EPOCH_BYTES or int(raw) >= MAX_EPOCH:
        raise OSError(
            f"{path} does not hold an epoch; restore it with a number larger than any before and below {MAX_EPOCH}"
        )
    epoch = int(raw) + 1
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="ascii") as file:
        file.write(f"{epoch}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return epoch
