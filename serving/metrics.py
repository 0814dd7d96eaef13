"""An engine's figures in the text format of Prometheus."""

import os
import socket
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from serving.engine.engine import Engine

__all__ = ["CONTENT_TYPE", "exposition"]


def exposition(engine: Engine) -> bytes:
    """What ``engine`` has done and is doing, now.

    Every figure carries the process it comes from: with several replicas, whoever asks the service reaches one of them.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(engine))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine, work, process = self._engine, self._engine.work, [socket.gethostname(), str(os.getpid())]
        for kind, name, said, value in (
            (GaugeMetricFamily, "rows", "Hypotheses that can be decoded at one time", engine.rows),
            (GaugeMetricFamily, "rows_in_use", "Hypotheses being decoded", engine.rows_in_use),
            (GaugeMetricFamily, "queue_tokens", "Tokens that may wait", engine.queue_tokens),
            (GaugeMetricFamily, "waiting_tokens", "Tokens of sentences not encoded yet", engine.waiting_tokens),
            (CounterMetricFamily, "source_tokens", "Source tokens encoded", work.source_tokens),
            (
                CounterMetricFamily,
                "padded_tokens",
                "Positions of the encoder's attention, padding included",
                work.padded_tokens,
            ),
            (CounterMetricFamily, "steps", "Decoding steps", work.steps),
            (CounterMetricFamily, "decoded_rows", "Rows of all steps: over steps, of a step on average", work.rows),
        ):
            family = kind(f"dragoman_{name}", said, labels=["host", "process"])
            family.add_metric(process, value)
            yield family
