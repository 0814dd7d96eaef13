"""Ray Serve: the only file that imports Ray."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.applications import Starlette

from serving.api import native
from serving.pipeline import Pipeline
from serving.settings import Settings


@serve.deployment(name="dragoman")
@serve.ingress()
class Dragoman:
    """One replica: a process that holds a pipeline and answers HTTP itself."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        self.pipeline = Pipeline(Settings(**settings))
        await self.pipeline.warm_up()

    def __serve_build_asgi_app__(self) -> Starlette:
        return native.build(self.pipeline)

    def check_health(self) -> None:
        """Asked by Serve every ten seconds; raises when the engine is dead or stuck."""
        self.pipeline.engine.check_health()

    async def __del__(self) -> None:
        if pipeline := getattr(self, "pipeline", None):
            pipeline.close()


def application(arguments: dict[str, Any]) -> serve.Application:
    """The Serve application; ``arguments`` are names and values of `Settings`. Serve config files import this."""
    settings = Settings(**arguments)
    deployment = Dragoman.options(  # type: ignore[attr-defined]
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        # The engine admits, refuses and times out; Serve's own limits stand above it so that the answers are ours.
        max_ongoing_requests=10_000,
        max_queued_requests=-1,
        health_check_period_s=10,
        graceful_shutdown_timeout_s=settings.timeout,
    )
    return deployment.bind(settings.model_dump(mode="json") | {"bundle": str(settings.bundle.resolve())})


class PortTaken(OSError):
    """Something else listens on the port."""


def check_port(host: str, port: int) -> None:
    """PortTaken when ``port`` cannot be listened on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from None


def run(settings: Settings, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, on a Ray of our own; calls ``ready`` once requests are answered.

    Raises PortTaken, BundleError.
    """
    check_port(settings.host, settings.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stopped = threading.Event()
    ray.init(
        address="local",
        num_cpus=settings.replicas * settings.cpus,
        num_gpus=settings.gpus * settings.replicas or None,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    for received in (signal.SIGINT, signal.SIGTERM):
        signal.signal(received, lambda *_: stopped.set())
    try:
        options = HTTPOptions(host=settings.host, port=settings.port, request_timeout_s=settings.timeout + 30)
        serve.start(http_options=options, logging_config={"log_level": "WARNING", "enable_access_log": False})
        serve.run(application(settings.model_dump()), name="dragoman", route_prefix="/")
        ready()
        stopped.wait()
    finally:
        # Waits for the requests under way; the rest of Serve goes down with Ray.
        serve.delete("dragoman")
        ray.shutdown()
