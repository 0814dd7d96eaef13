"""Ray Serve: the only file that imports Ray."""

import contextlib
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

from export.bundle import Manifest, read_manifest
from serving.api import native
from serving.pipeline import Pipeline
from serving.runtime import check_device
from serving.settings import Settings

NAME = "dragoman"


@serve.deployment(name=NAME)
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
        graceful_shutdown_timeout_s=min(settings.timeout, 45),
    )
    return deployment.bind(settings.model_dump(mode="json") | {"bundle": str(settings.bundle.resolve())})


class StartError(RuntimeError):
    """The service cannot start; the message says why."""


def check_port(host: str, port: int) -> None:
    """StartError when ``port`` cannot be listened on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from None


def run(settings: Settings, starting: Callable[[Manifest], None], ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, on a Ray of our own.

    Calls ``starting`` when the settings and the bundle are found good, ``ready`` once requests are answered. Raises
    StartError, BundleError.
    """
    # All that can be known to be wrong is said before Ray starts, which takes seconds.
    check_port(settings.host, settings.port)
    manifest = read_manifest(settings.bundle)
    check_device(settings.bundle, manifest, settings.device)
    starting(manifest)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stopped, answering = threading.Event(), False

    def stop(*_: object) -> None:
        stopped.set()
        if not answering:
            raise KeyboardInterrupt

    try:
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
            signal.signal(received, stop)
        options = HTTPOptions(host=settings.host, port=settings.port, request_timeout_s=settings.timeout + 30)
        serve.start(http_options=options, logging_config={"log_level": "WARNING", "enable_access_log": False})
        serve.run(application(settings.model_dump()), name=NAME, route_prefix="/")
        answering = True
        ready()
        stopped.wait()
        # Waits for the requests under way; the rest of Serve goes down with Ray.
        with contextlib.suppress(TimeoutError):
            serve.delete(NAME)
    except (KeyboardInterrupt, SystemExit):
        # Stopped while starting; SystemExit is what Ray makes of SIGTERM until our handler stands.
        pass
    except RuntimeError as error:
        raise StartError(f"no replica could start: {error}") from None
    finally:
        ray.shutdown()
