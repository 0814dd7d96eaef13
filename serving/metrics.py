"""The service's figures in the text format of Prometheus: counters of all replicas together, gauges of each."""

import asyncio
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from serving import totals
from serving.engine.engine import Engine
from serving.engine.work import Work
from serving.totals import Counter, Gauge, Totals
from serving.totals_file import Number, Reading

__all__ = ["CONTENT_TYPE", "Metrics"]

GAUGES = {
    "rows": "Hypotheses that can be decoded at one time",
    "rows_in_use": "Hypotheses being decoded",
    "queue_tokens": "Tokens that may wait",
    "waiting_tokens": "Tokens of sentences not encoded yet",
}
"""Attributes of an engine."""
COUNTERS = {
    "source_tokens": "Source tokens encoded",
    "padded_tokens": "Positions of the encoder's attention, padding included",
    "steps": "Decoding steps",
    "decoded_rows": "Rows of all steps: over steps, of a step on average",
}
REQUESTS = ("route", "method", "status")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
OTHER = "other"
"""In place of a method that nobody defined: strangers may invent as many as they like."""
REFRESH_SECONDS = 0.25
"""How old another replica's gauges may be; counters are never old."""


class Metrics:
    """One replica's figures, written where all that share its state folder read them."""

    def __init__(self, folder: Path) -> None:
        """Begin to count in the state ``folder``; OSError when it cannot be used."""
        self._folder, self._totals = folder, Totals(folder)
        self._gauges: dict[str, Gauge] = {}
        self._requests: dict[tuple[str, str, int], Counter] = {}
        self._engines: list[Engine] = []

    def work(self) -> Work:
        """What an engine is to count its work in."""
        return _SharedWork(self._totals)

    def watch(self, engines: Iterable[Engine]) -> None:
        """Show the gauges of ``engines``, their sums."""
        self._engines = list(engines)

    def count_request(self, route: str, method: str, status: int) -> None:
        """Count an answer with ``status``; ``route`` is one of the service's own, or a word for all others."""
        method = method if method in METHODS else OTHER
        key = route, method, status
        if key not in self._requests:
            self._requests[key] = self._totals.counter("requests", route=route, method=method, status=str(status))
        self._requests[key].add()

    def refresh(self) -> None:
        """Write the gauges as they are now; before the first time, others see none of this replica."""
        for name in GAUGES:
            if name not in self._gauges:
                labels = {"host": socket.gethostname(), "process": str(os.getpid())}
                self._gauges[name] = self._totals.gauge(name, **labels)
            self._gauges[name].set(sum(getattr(engine, name) for engine in self._engines))

    async def keep_fresh(self) -> None:
        """Refresh for other replicas' answers, until cancelled; from now on this one is seen."""
        while True:
            self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    def exposition(self) -> bytes:
        """What all replicas have done, and what each that lives is doing."""
        self.refresh()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Figures(totals.read(self._folder)))
        return generate_latest(registry)

    def close(self) -> None:
        """Be counted among the replicas that are gone."""
        self._totals.close()


class _SharedWork(Work):
    """Work that others see at once."""

    def __init__(self, own: Totals) -> None:
        super().__init__()
        self._source, self._padded, self._steps, self._rows = map(own.counter, COUNTERS)

    def encoded(self, tokens: int, positions: int) -> None:
        super().encoded(tokens, positions)
        self._source.add(tokens)
        self._padded.add(positions)

    def stepped(self, rows: int) -> None:
        super().stepped(rows)
        self._steps.add()
        self._rows.add(rows)


class _Figures(Collector):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> list[Metric]:
        families: list[Metric] = [
            _family(GaugeMetricFamily, name, description, ("host", "process"), self._reading.gauges)
            for name, description in GAUGES.items()
        ]
        families += [
            _family(CounterMetricFamily, name, description, (), self._reading.counters)
            for name, description in COUNTERS.items()
        ]
        return [
            *families,
            _family(CounterMetricFamily, "requests", "Requests answered", REQUESTS, self._reading.counters),
        ]


def _family(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    description: str,
    labels: Sequence[str],
    reading: Mapping[Number, float],
) -> Metric:
    """All series of ``name``; those with other ``labels``, which another version has counted, are left out."""
    family = kind(f"dragoman_{name}", description, labels=labels)
    for number, value in sorted(reading.items()):
        values = dict(number.labels)
        if number.name == name and set(values) == set(labels):
            family.add_metric([values[label] for label in labels], value)
    return family
