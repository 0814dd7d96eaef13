"""One replica, whatever runs its process: Ray Serve (`serving.deployment`) or nobody else (`serving.alone`)."""

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from serving.api.app import build
from serving.api.dialect import Service
from serving.http.ingress import Ingress
from serving.http.state import Limits
from serving.metrics import Metrics
from serving.registry import Registry
from serving.settings import Settings

GARBAGE = 50_000
"""Objects more than before that are looked through for garbage: a crowded engine has many that are none."""
SWITCH_SECONDS = 0.0005
"""After which a thread that waits for Python's lock is given it."""
PARTING_SECONDS = 0.3
"""How long a replica whose engine has ended still answers that it has."""


class Replica:
    """Models and their HTTP server, in a process that is theirs: it is set up for them, and ends with any engine."""

    def __init__(
        self, settings: Settings, state: Path, last_words: Callable[[BaseException], None] = lambda failure: None
    ) -> None:
        """Read the bundles and start the engines; BundleError when one cannot be served.

        ``state`` is the folder that it shares with the other replicas of this machine; OSError when it cannot be used.
        If an engine breaks later, ``last_words`` is called with what broke it, and this process ends with status 1.
        """
        self.metrics = Metrics(state)
        self.registry = Registry.load(settings, work=self.metrics.work)
        self.metrics.watch(pipeline.engine for pipeline in self.registry.pipelines)
        self.app = build(Service(self.registry, self.metrics))
        self.ingress: Ingress | None = None
        self._last_words = last_words
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run every graph once, set up the process and, unless Serve's proxies do, listen; OSError when it cannot."""
        await self.registry.warm_up()
        # What is there by now stays: looking through it again and again for garbage would hold everything up.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)
        # The engine and the event loop share the interpreter with threads that read long texts.
        sys.setswitchinterval(SWITCH_SECONDS)
        self._loop = asyncio.get_running_loop()
        settings = self.registry.settings
        if settings.ingress == "direct":
            self.ingress = Ingress(self.app, settings.host, settings.port, Limits.of(settings))
            await self.ingress.begin()
        self._refreshing = self._loop.create_task(self.metrics.keep_fresh())
        self.registry.when_broken = self._end

    def check_health(self) -> None:
        """RuntimeError when an engine is dead or stuck, or nobody listens."""
        self.registry.check_alive()
        if self.ingress and not self.ingress.alive:
            raise RuntimeError("the HTTP server has ended")

    async def close(self) -> None:
        """Answer what has come, and end the engines."""
        self.registry.leave()
        if self.ingress:
            await self.ingress.drain()
        self.registry.close()
        if self._refreshing:
            self._refreshing.cancel()
        self.metrics.close()

    def _end(self, failure: BaseException) -> None:
        """End this process, since an engine has ended; called by that engine's thread."""
        try:
            if self.ingress:
                self._loop.call_soon_threadsafe(self.ingress.refuse)
            time.sleep(PARTING_SECONDS)
            self._last_words(failure)
        finally:
            os._exit(1)
