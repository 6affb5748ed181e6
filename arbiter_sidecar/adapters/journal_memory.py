"""A journal that keeps nothing, for where nothing shall survive."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from arbiter_sidecar.ports import JournalOperation, Recovered


class MemoryJournal:
    """Implements the journal port without a disk: everything is taken at once and forgotten.

    Args:
        epoch: The epoch of this run, above every earlier one; whoever makes it knows where that is kept.
    """

    def __init__(self, epoch: int = 1) -> None:
        self._epoch = epoch

    @property
    def healthy(self) -> bool:
        """Nothing can go wrong."""
        return True

    def open(self) -> Recovered:
        """Nothing is known from before."""
        return Recovered(epoch=self._epoch)

    def append(self, operations: Sequence[JournalOperation]) -> asyncio.Future[None]:
        """Takes operations and forgets them."""
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        taken.set_result(None)
        return taken

    async def close(self) -> None:
        """There is nothing to write."""
