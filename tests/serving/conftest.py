"""The API over a pipeline in this process: starts in moments, and shows its engine to the tests."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.types import ASGIApp

from serving.alone import event_loop
from serving.api.app import DIALECTS, build
from serving.api.dialect import Dialect, Service
from serving.http.ingress import Ingress
from serving.http.state import Limits
from serving.metrics import Metrics
from serving.registry import Registry
from serving.settings import Settings
from tests.service import free_port


class Api:
    """A registry of one model and the address at which it answers."""

    def __init__(self, registry: Registry, port: int) -> None:
        self.registry, self.port = registry, port
        [self.pipeline] = registry.pipelines
        self.url = f"http://127.0.0.1:{port}"
        self.steps = 0
        """Decoding steps since `slow_down`."""

    @property
    def running(self) -> int:
        """Sentences that hold rows of the engine."""
        return len(self.pipeline.engine._scheduler.running)

    def slow_down(self, seconds: float) -> None:
        """Let every decoding step take so much longer."""
        batch = self.pipeline.engine._batch
        step = batch.step

        def slow(*arguments: Any) -> Any:
            time.sleep(seconds)
            self.steps += 1
            return step(*arguments)

        batch.step = slow  # type: ignore[method-assign]


@contextmanager
def answering(bundle: Path, dialects: Sequence[type[Dialect]] = DIALECTS, **settings: Any) -> Iterator[Api]:
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Metrics(Path(folder))) as metrics:
        registry, port = Registry.load(Settings(bundle=bundle, cpus=1, **settings), work=metrics.work), free_port()
        metrics.watch(pipeline.engine for pipeline in registry.pipelines)
        asyncio.run(registry.warm_up())
        app = build(Service(registry, metrics), dialects)
        with listening(app, port, Limits.of(registry.settings)):
            yield Api(registry, port)
        registry.close()


LIMITS = Limits(request_seconds=60, idle_seconds=100)


@contextmanager
def listening(
    app: ASGIApp,
    port: int,
    limits: Limits = LIMITS,
    new: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> Iterator[Ingress]:
    """``app`` behind the service's own HTTP server, in an event loop of its own."""

    async def begun() -> Ingress:
        ingress = Ingress(app, "127.0.0.1", port, limits)
        await ingress.begin()
        return ingress

    with event_loop(new) as loop:
        ingress = asyncio.run_coroutine_threadsafe(begun(), loop).result()
        try:
            yield ingress
        finally:
            asyncio.run_coroutine_threadsafe(ingress.drain(), loop).result()


def wait_until(met: Callable[[], bool], seconds: float = 30) -> None:
    """Return as soon as ``met``; fails when that takes more than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def api(tiny_bundle: Path) -> Iterator[Api]:
    with answering(tiny_bundle) as found:
        yield found


@pytest.fixture
def slow_api(tiny_bundle: Path) -> Iterator[Api]:
    """With one row, and 20 steps a second at most."""
    with answering(tiny_bundle, rows=1, timeout=20, stream_interval=0) as found:
        found.slow_down(0.05)
        yield found
