"""An engine's figures in the text format of Prometheus."""

import os
import socket
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from serving.engine import Engine

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
        for name, said, value in (
            ("rows", "Hypotheses that can be decoded at one time", engine.rows),
            ("rows_in_use", "Hypotheses being decoded", engine.rows_in_use),
            ("queue_tokens", "Tokens that may wait", engine.queue_tokens),
            ("waiting_tokens", "Tokens of sentences that have not been encoded yet", engine.waiting_tokens),
        ):
            gauge = GaugeMetricFamily(f"dragoman_{name}", said, labels=["host", "process"])
            gauge.add_metric(process, value)
            yield gauge
        for name, said, value in (
            ("source_tokens", "Source tokens encoded", work.source_tokens),
            ("padded_tokens", "Positions the encoder worked on for them, padding included", work.padded_tokens),
            ("steps", "Decoding steps", work.steps),
            ("decoded_rows", "Rows in all decoding steps: over the steps, the rows of a step on average", work.rows),
        ):
            counter = CounterMetricFamily(f"dragoman_{name}", said, labels=["host", "process"])
            counter.add_metric(process, value)
            yield counter
