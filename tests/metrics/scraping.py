"""A scraper: speaks HTTP over a socket of its own and reads what it gets with the library's parsers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_parser

from arbiter_sidecar.metrics import Endpoint, Reader
from tests.rpc.served import Served, Setting
from tests.runtime.fakes import GUARD_S

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

#: The library does not say what its parsers take and return.
Parse = Callable[[str], "Iterable[Family]"]
PARSE_PLAIN: Parse = parser.text_string_to_metric_families
PARSE_OPEN: Parse = open_parser.text_string_to_metric_families

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; q=0.6, text/plain; version=0.0.4; q=0.5, */*; q=0.1"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: The status line's number.
        headers: By lower-case name.
        body: Everything behind them.
    """

    status: int
    headers: Mapping[str, str]
    body: str


class Numbers:
    """The numbers of one scrape."""

    def __init__(self, families: Iterable[Family]) -> None:
        self.families = {family.name: family for family in families}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float | None:
        """A value; ``None`` where there is none."""
        return self.samples.get((name, tuple(sorted(labels.items()))))

    def all(self, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Every value of this name with at least these labels."""
        return {
            found: value
            for (sample, found), value in self.samples.items()
            if sample == name and labels.items() <= dict(found).items()
        }

    def sum(self, name: str, **labels: str) -> float:
        """Their sum."""
        return sum(self.all(name, **labels).values())


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to an endpoint."""
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


async def ask(address: str, raw: bytes) -> Answer:
    """Sends bytes and reads what comes until the other side has nothing more to say."""
    async with asyncio.timeout(GUARD_S):
        reader, writer = await connect(address)
        writer.write(raw)
        answer = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode("ascii").split("\r\n")
    named = (header.partition(": ") for header in headers)
    found = {name.lower(): value for name, _, value in named}
    assert int(found["content-length"]) == len(body)
    return Answer(int(status.split(" ")[1]), found, body.decode())


async def get(address: str, path: str = "/metrics", *, accept: str = "*/*") -> Answer:
    """What a path answers."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
    return await ask(address, request.encode("latin-1"))


def numbers(answer: Answer) -> Numbers:
    """The numbers of an answer, whichever format it has; both parsers complain about what breaks their rules."""
    assert answer.status == 200
    openly = answer.headers["content-type"].startswith("application/openmetrics-text")
    return Numbers(PARSE_OPEN(answer.body) if openly else PARSE_PLAIN(answer.body))


class Scraped(Served):
    """A server, and its metrics on a Unix socket."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        super().__init__(setting, folder / "arbiter.sock")
        self.reader = Reader(self.runtime, self.server)
        self.endpoint = Endpoint(self.reader)
        self.address = f"unix:{folder}/metrics.sock"

    async def start(self) -> None:
        """Serves."""
        await super().start()
        await self.endpoint.listen(self.address)

    async def stop(self) -> None:
        """Goes away."""
        await self.endpoint.close()
        await super().stop()

    async def scrape(self, accept: str = OPEN_METRICS) -> Numbers:
        """The numbers of now."""
        return numbers(await get(self.address, accept=accept))
