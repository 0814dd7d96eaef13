"""A service's own figures, as its ``/metrics`` says them in the text format of Prometheus."""

import urllib.request
from collections import defaultdict
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PATIENCE = 60.0
"""Seconds in which a service answers."""


def figures(url: str) -> dict[str, float]:
    """By name without what stands before its first underscore, such as ``rows_in_use``; all series of a name added up.

    OSError when it does not answer.
    """
    total: dict[str, float] = defaultdict(float)
    for sample in _samples(url):
        total[sample.name.partition("_")[2]] += sample.value
    return dict(total)


def processes(url: str) -> set[int]:
    """The processes of the service, as the labels of its figures name them; OSError when it does not answer."""
    return {int(sample.labels["process"]) for sample in _samples(url) if "process" in sample.labels}


def _samples(url: str) -> Iterator[Sample]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            yield from family.samples
