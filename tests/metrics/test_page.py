"""The page of metrics says what is served, name by name."""

from __future__ import annotations

import re

from prometheus_client.process_collector import ProcessCollector

from arbiter_sidecar.metrics.catalogue import CATALOGUE
from tests.contracts import checkout
from tests.metrics.scraping import OPEN_METRICS, Scraped, get, numbers

_ROW = re.compile(r"^\| `(\w+)` \| (gauge|counter|histogram) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def _page() -> str:
    return (checkout.ROOT / "docs/metrics.md").read_text(encoding="utf-8")


def _rows() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Type, labels and meaning by name, in the order of the page."""
    rows = _ROW.findall(_page())
    found = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in rows}
    assert len(found) == len(rows)
    return found


def _process() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """What the library says about a process."""
    families = ProcessCollector(registry=None).collect()
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: (family.type, (), family.documentation)
        for family in families
    }


def test_page_says_what_the_catalogue_says() -> None:
    rows = _rows()
    ours = {metric.name: (metric.kind, metric.labels, metric.meaning) for metric in CATALOGUE}
    assert {name: row for name, row in rows.items() if not name.startswith("process_")} == ours
    assert [name for name in rows if name in ours] == list(ours)
    assert {name: row for name, row in rows.items() if name.startswith("process_")} == _process()


async def test_page_says_what_is_served(scraped: Scraped) -> None:
    served = numbers(await get(scraped.address, accept=OPEN_METRICS)).families
    named = {family.name + "_total" if family.type == "counter" else family.name: family for family in served.values()}
    rows = _rows()
    assert set(named) == set(rows)
    for name, family in named.items():
        kind, labels, meaning = rows[name]
        assert (family.type, family.documentation) == (kind, meaning)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels), name


def test_queries_of_the_page_name_metrics_and_labels_that_are_there() -> None:
    questions = _page().partition("## Questions and their queries")[2].partition("## Every metric")[0]
    rows = _rows()
    used = re.findall(r"\b((?:arbiter|grpc_server)_\w+)(?:\{(\w+)=)?", questions)
    assert len(used) > 10
    for name, label in used:
        assert name in rows
        assert label in {"", *rows[name][1]}
