"""A service's own figures, as its ``/metrics`` says them in the text format of Prometheus."""

import urllib.request
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families


def figures(url: str, times: int = 1) -> dict[str, float]:
    """By name without what stands before its first underscore, such as ``rows_in_use``; the sums over processes.

    Of several replicas one answers: asked many ``times``, all of them do.
    """
    found: dict[tuple[str, str], float] = {}
    for _ in range(times):
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        for sample in (sample for family in families for sample in family.samples):
            found[sample.name.partition("_")[2], sample.labels.get("process", "")] = sample.value
    total: dict[str, float] = defaultdict(float)
    for (name, _), value in found.items():
        total[name] += value
    return dict(total)
