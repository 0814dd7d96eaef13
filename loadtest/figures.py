"""A service's own figures, as its ``/metrics`` says them in the text format of Prometheus."""

import time
import urllib.request
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 60.0
"""Seconds in which every replica is reached."""


def figures(url: str, replicas: int = 1) -> dict[str, float]:
    """By name without what stands before its first underscore, such as ``rows_in_use``; sums over all ``replicas``.

    One of them answers each connection, so they are asked until all have. OSError when they do not.
    """
    found: dict[frozenset[tuple[str, str]], dict[str, float]] = {}
    deadline = time.monotonic() + PATIENCE
    while len(found) < replicas:
        if time.monotonic() > deadline:
            raise OSError(f"{url}: {len(found)} of {replicas} replicas answer")
        with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        if not families:
            break
        for sample in (sample for family in families for sample in family.samples):
            own = found.setdefault(frozenset(sample.labels.items()), {})
            own[sample.name.partition("_")[2]] = sample.value
    total: dict[str, float] = defaultdict(float)
    for own in found.values():
        for name, value in own.items():
            total[name] += value
    return dict(total)
