"""Wakes those who watch something whose present state they read themselves."""

from __future__ import annotations

import asyncio


class News:
    """A bell: whoever listens is woken, and looks for itself what has changed."""

    def __init__(self) -> None:
        self._listeners: dict[asyncio.Event, None] = {}
        self.closed = False

    def listen(self) -> asyncio.Event:
        """An event that is set whenever there is news; it is set already, since everything is new at first."""
        listener = asyncio.Event()
        listener.set()
        self._listeners[listener] = None
        return listener

    def forget(self, listener: asyncio.Event) -> None:
        """The listener has gone."""
        self._listeners.pop(listener, None)

    def ring(self) -> None:
        """There is news."""
        for listener in self._listeners:
            listener.set()

    def close(self) -> None:
        """There will be no more; whoever listens should look a last time."""
        self.closed = True
        self.ring()
