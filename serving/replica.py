"""One replica, whatever runs its process: Ray Serve (`serving.deployment`) or nobody else (`serving.alone`)."""

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from serving.api import native
from serving.ingress import Ingress
from serving.metrics import Metrics
from serving.pipeline import Pipeline
from serving.settings import Settings

GARBAGE = 50_000
"""Objects more than before that are looked through for garbage: a crowded engine has many that are none."""
SWITCH_SECONDS = 0.0005
"""After which a thread that waits for Python's lock is given it."""
PARTING_SECONDS = 0.3
"""How long a replica whose engine has ended still answers that it has."""


class Replica:
    """A pipeline and its HTTP server, in a process that is theirs: it is set up for them, and ends with the engine."""

    def __init__(
        self, settings: Settings, state: Path, last_words: Callable[[BaseException], None] = lambda failure: None
    ) -> None:
        """Read the bundle and start the engine; BundleError when it cannot be served.

        ``state`` is the folder that it shares with the other replicas of this machine; OSError when it cannot be used.
        If the engine breaks later, ``last_words`` is called with what broke it, and this process ends with status 1.
        """
        self.metrics = Metrics(state)
        self.pipeline = Pipeline(settings, self.metrics.work())
        self.metrics.watch(self.pipeline.engine)
        self.routes = native.build(self.pipeline, self.metrics)
        self.ingress: Ingress | None = None
        self._last_words = last_words
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run every graph once, set up the process and, unless Serve's proxies do, listen; OSError when it cannot."""
        await self.pipeline.warm_up()
        # What is there by now stays: looking through it again and again for garbage would hold everything up.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)
        # The engine and the event loop share the interpreter with threads that read long texts.
        sys.setswitchinterval(SWITCH_SECONDS)
        self._loop = asyncio.get_running_loop()
        settings = self.pipeline.settings
        if settings.ingress == "direct":
            self.ingress = Ingress(self.routes, settings.host, settings.port)
            await self.ingress.begin()
        self._refreshing = self._loop.create_task(self.metrics.keep_fresh())
        self.pipeline.engine.when_broken = self._end

    def check_health(self) -> None:
        """RuntimeError when the engine is dead or stuck, or nobody listens."""
        self.pipeline.engine.check_health()
        if self.ingress and not self.ingress.alive:
            raise RuntimeError("the HTTP server has ended")

    async def close(self) -> None:
        """Answer what has come, and end the engine."""
        if self.ingress:
            await self.ingress.drain()
        self.pipeline.close()
        if self._refreshing:
            self._refreshing.cancel()
        self.metrics.close()

    def _end(self, failure: BaseException) -> None:
        """End this process, since its engine has; called by the engine's thread."""
        try:
            if self.ingress:
                self._loop.call_soon_threadsafe(self.ingress.refuse)
            time.sleep(PARTING_SECONDS)
            self._last_words(failure)
        finally:
            os._exit(1)
