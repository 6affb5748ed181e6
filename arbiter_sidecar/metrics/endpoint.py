"""``GET /metrics`` over HTTP/1.1: one request a connection, bounded in number, size and time."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from http import HTTPStatus
from pathlib import Path

import structlog

from arbiter_sidecar.metrics import picture
from arbiter_sidecar.metrics.reading import Reader
from arbiter_sidecar.rpc.server import MAX_SOCKET_PATH, ListenError

PATH = "/metrics"
#: What a configured address begins with that names a Unix socket.
UNIX = "unix:"
#: Connections at once; one scraper needs one, and each may hold a text of some megabytes.
MAX_CONNECTIONS = 16
#: Largest request line with all headers.
MAX_REQUEST_BYTES = 8 * 1024
#: From accepting a connection to its end, whatever happens, in seconds. Scrapers give up after ten.
REQUEST_S = 10.0

_log = structlog.get_logger("arbiter.metrics")


class _Refused(Exception):
    """The request is answered with this status and nothing else."""

    def __init__(self, status: HTTPStatus, *headers: str) -> None:
        super().__init__(status.phrase)
        self.status = status
        self.headers = headers


class Endpoint:
    """Serves the metrics of one arbiter. Reading happens on the loop, the text is made in a thread."""

    def __init__(self, reader: Reader, *, request_s: float = REQUEST_S) -> None:
        self._reader = reader
        self._request_s = request_s
        self._reading = asyncio.Lock()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._socket: Path | None = None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def listen(self, address: str) -> str:
        """Serves on ``HOST:PORT`` or ``unix:PATH``; returns the address, with the port that port 0 became.

        Raises:
            ListenError: The address is taken or cannot be bound.
        """
        if address.startswith(UNIX):
            path = Path(address.removeprefix(UNIX))
            try:
                self._server = await asyncio.start_unix_server(self._accept, sock=_bound(path), limit=MAX_REQUEST_BYTES)
            except OSError as error:
                raise ListenError(f"cannot serve metrics on {path}: {error}") from error
            self._socket = path
            return address
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.start_server(
                self._accept, host.strip("[]"), int(port), limit=MAX_REQUEST_BYTES
            )
        except OSError as error:
            raise ListenError(f"cannot serve metrics on {address}: {error}") from error
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Ends what is open and lets go of the address."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= 2 * MAX_CONNECTIONS:
            # So many are told already that there are too many.
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer, crowded=len(self._connections) >= MAX_CONNECTIONS))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, crowded: bool) -> None:
        try:
            async with asyncio.timeout(self._request_s):
                writer.write(await self._answer(reader, crowded=crowded))
                await writer.drain()
                writer.write_eof()
                # The other side closes when it has everything; it is not cut off before.
                while await reader.read(MAX_REQUEST_BYTES):
                    pass
        except (TimeoutError, OSError) as error:
            # Too slow, or gone: nobody is left to be told.
            _log.debug("scrape_abandoned", error=repr(error))
        except Exception as error:
            _log.error("scrape_failed", error=repr(error), exc_info=error)
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, *, crowded: bool) -> bytes:
        try:
            if crowded:
                raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "Retry-After: 1")
            accept = await _accepted(reader)
        except _Refused as refused:
            body = f"{refused.status.phrase}\n".encode()
            return _head(refused.status, "text/plain; charset=utf-8", len(body), *refused.headers) + body
        async with self._reading:
            seen = await self._reader.read()
        body, content_type = await asyncio.to_thread(picture.text, seen, accept)
        return _head(HTTPStatus.OK, content_type, len(body)) + body


async def _accepted(reader: asyncio.StreamReader) -> str:
    """Reads a request for the metrics; returns which formats it accepts. Raises _Refused."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from None
    except asyncio.IncompleteReadError:
        raise _Refused(HTTPStatus.BAD_REQUEST) from None
    line, *headers = raw.decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Refused(HTTPStatus.BAD_REQUEST)
    if words[1].partition("?")[0] != PATH:
        raise _Refused(HTTPStatus.NOT_FOUND)
    if words[0] != "GET":
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET")
    named = (header.partition(":") for header in headers)
    return ",".join(value for name, _, value in named if name.lower() == "accept")


def _head(status: HTTPStatus, content_type: str, length: int, *more: str) -> bytes:
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        "Connection: close",
        *more,
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _bound(path: Path) -> socket.socket:
    """A Unix socket at a path that nobody serves, for the owner and the group only. Raises ListenError, OSError."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ListenError(f"{path} is longer than the {MAX_SOCKET_PATH} bytes a Unix socket may have")
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise ListenError(f"{path} exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX) as guest:
        guest.setblocking(False)
        try:
            guest.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)
        except BlockingIOError:
            raise ListenError(f"{path} is served by somebody else; choose another path") from None
        else:
            raise ListenError(f"{path} is served by somebody else; choose another path")
    made = socket.socket(socket.AF_UNIX)
    # The mode must be right from the first moment, so it comes from the mask and not from a change afterwards.
    before = os.umask(0o117)
    try:
        made.bind(os.fspath(path))
    except OSError:
        made.close()
        raise
    finally:
        os.umask(before)
    return made
