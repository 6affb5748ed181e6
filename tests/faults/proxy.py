"""A proxy for Unix sockets that spoils the connections which go through it, on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

#: A guard against hanging, in seconds.
GUARD_S = 30.0
#: Bytes that are passed on at once.
CHUNK_BYTES = 65536

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Link:
    """One connection through the proxy.

    Attributes:
        left_by_client: Set when the client has closed its end, or has said its last word.
        left_by_server: Likewise for the server.
    """

    def __init__(self, proxy: Proxy, client: Ends, server: Ends) -> None:
        self.left_by_client = threading.Event()
        self.left_by_server = threading.Event()
        self._proxy = proxy
        self._client = client
        self._server = server

    async def carry(self) -> None:
        """Passes on what comes, both ways, until both have said their last word."""
        try:
            await asyncio.gather(
                self._pump(self._client[0], self._server[1], self.left_by_client, upward=True),
                self._pump(self._server[0], self._client[1], self.left_by_server, upward=False),
            )
        finally:
            self.cut()

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, left: threading.Event, *, upward: bool
    ) -> None:
        # An end that is reset is an end.
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(CHUNK_BYTES):
                passed = await self._proxy.spoil(chunk, upward=upward)
                if passed:
                    target.write(passed)
                    await target.drain()
        left.set()
        await self._proxy.allow_end()
        with contextlib.suppress(ConnectionError, OSError):
            target.write_eof()

    def half_close(self) -> None:
        """Tells the server that the client has nothing more to say; the way back stays open. On the proxy's thread."""
        self._server[1].write_eof()

    def cut(self) -> None:
        """Closes both ends without a word. On the proxy's thread."""
        for _, writer in (self._client, self._server):
            writer.transport.abort()


class Proxy:
    """Passes connections on to a server, as well as it is told to.

    Attributes:
        socket: Where clients connect.
        links: The connections so far, oldest first.
    """

    def __init__(self, socket: Path, server: Path) -> None:
        self.socket = socket
        self.links: list[Link] = []
        self._server = server
        self._delay_s = 0.0
        self._to_drop = 0
        self._silent = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """The gRPC target of the proxy."""
        return f"unix:{self.socket}"

    def start(self) -> None:
        """Takes connections from now on."""
        self._thread.start()
        listening = asyncio.start_unix_server(self._accept, self.socket)
        self._listener = asyncio.run_coroutine_threadsafe(listening, self._loop).result(GUARD_S)

    def stop(self) -> None:
        """Ends every connection."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(GUARD_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GUARD_S)
        self._loop.close()

    async def _end(self) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link = Link(self, (reader, writer), await asyncio.open_unix_connection(self._server))
        self.links.append(link)
        # Cancelled when the proxy stops; whoever connected then notices by itself.
        with contextlib.suppress(asyncio.CancelledError):
            await link.carry()

    async def spoil(self, chunk: bytes, *, upward: bool) -> bytes:
        """What becomes of some bytes on their way."""
        if self._delay_s and upward:
            await asyncio.sleep(self._delay_s)
        if self._silent:
            return b""
        if upward and self._to_drop:
            lost = min(self._to_drop, len(chunk))
            self._to_drop -= lost
            return chunk[lost:]
        return chunk

    async def allow_end(self) -> None:
        """Returns when the end of one side may be told to the other: never, while nothing is passed on."""
        if self._silent:
            await asyncio.Event().wait()

    # What can go wrong ------------------------------------------------------------------------------------------------

    def delay(self, seconds: float) -> None:
        """What clients say arrives so much later; their order among themselves stays."""
        self._delay_s = seconds

    def drop(self, count: int) -> None:
        """The next bytes of a client get lost, and nobody is told."""
        self._to_drop = count

    def silence(self, *, on: bool = True) -> None:
        """Nothing is passed on any more, while all ends stay open."""
        self._silent = on

    def half_close(self) -> None:
        """The servers hear that the clients have nothing more to say."""
        self._each(Link.half_close)

    def cut(self) -> None:
        """Every connection breaks."""
        self._each(Link.cut)

    def _each(self, act: Callable[[Link], None]) -> None:
        done = threading.Event()

        def run() -> None:
            for link in self.links:
                if not link.left_by_client.is_set() and not link.left_by_server.is_set():
                    act(link)
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(GUARD_S)


@contextlib.contextmanager
def proxied(server: Path) -> Iterator[Proxy]:
    """A proxy beside the socket of a server until the block ends."""
    proxy = Proxy(server.with_name("proxy.sock"), server)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
