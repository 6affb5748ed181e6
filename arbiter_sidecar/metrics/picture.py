"""What was read at one scrape, and its text. Holds numbers only, so that the text can be made in any thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from arbiter_sidecar.metrics.catalogue import CATALOGUE, Metric

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

#: The format that newer scrapers ask for.
OPEN_METRICS = "application/openmetrics-text"

Labels = tuple[str, ...]
#: Upper bounds with what lies below each, as text and cumulated, and the sum of all values.
Histogram = tuple[Sequence[tuple[str, float]], float]


class Picture:
    """Values by metric and labels."""

    def __init__(self) -> None:
        self._values: dict[Metric, dict[Labels, float]] = {}
        self._histograms: dict[Metric, dict[Labels, Histogram]] = {}

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        """Sets a value; the labels stand in the order of the metric's."""
        self._values.setdefault(metric, {})[labels] = value

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Adds to a value, which begins at 0."""
        values = self._values.setdefault(metric, {})
        values[labels] = values.get(labels, 0.0) + value

    def drop(self, metric: Metric, *labels: str) -> None:
        """Takes a value out that does not mean anything, if there is one."""
        self._values.get(metric, {}).pop(labels, None)

    def distribution(self, metric: Metric, buckets: Sequence[tuple[str, float]], total: float, *labels: str) -> None:
        """Sets a histogram."""
        self._histograms.setdefault(metric, {})[labels] = (buckets, total)

    def collect(self) -> Iterator[Family]:
        """Every metric of the catalogue, those without a value too."""
        for metric in CATALOGUE:
            if metric.kind == "histogram":
                spread = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
                for labels, (buckets, total) in self._histograms.get(metric, {}).items():
                    spread.add_metric(labels, buckets, total)
                yield spread
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.meaning, labels=metric.labels)
            for labels, value in self._values.get(metric, {}).items():
                family.add_metric(labels, value)
            yield family


class _Together(Collector):
    """The picture, and what the kernel knows of this process."""

    def __init__(self, picture: Picture) -> None:
        self._parts: tuple[Collector | Picture, ...] = (picture, ProcessCollector(registry=None))

    def collect(self) -> Iterable[Family]:
        for part in self._parts:
            yield from part.collect()


def text(picture: Picture, accept: str) -> tuple[bytes, str]:
    """The text of a picture in the format that a scraper asks for, and what that format is called."""
    # Asked for in fixed words: nothing of a caller's header comes back in the answer.
    wanted = f"{OPEN_METRICS}; version=1.0.0" if OPEN_METRICS in accept.lower() else ""
    encode, content_type = exposition.choose_encoder(wanted)
    return encode(_Together(picture)), content_type
