"""Ray Serve: the only file that imports Ray."""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

# The same stand in deploy/ray.env and deploy/Dockerfile, for where Ray is started before this is read.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray gives workers what no other process wants (niceness 15): a replica would wait for whatever else runs.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ten rounds a second of looking after a few replicas cost a twentieth of a core.
os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
# Memory that is freed goes back: glibc would keep some for every thread, and what large blocks have taken once (the
# moving of a cache) as room that small ones then hold on to.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1048576")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "16777216")

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions, ProxyLocation
from starlette.applications import Starlette

from export.bundle import Manifest, read_manifest
from serving import autoscaling
from serving.api import native
from serving.ingress import LEAVING_SECONDS, Ingress, bound
from serving.pipeline import Pipeline
from serving.runtime import check_device
from serving.settings import Settings

NAME = "dragoman"
GARBAGE = 50_000
"""Objects more than before that are looked through for garbage: a crowded engine has many that are none."""
SWITCH_SECONDS = 0.0005
"""After which a thread that waits for Python's lock is given it."""


@serve.deployment(name=NAME)
@serve.ingress()
class Dragoman:
    """One replica: a process that holds a pipeline and answers HTTP itself."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        chosen = Settings(**settings)
        self.pipeline = Pipeline(chosen)
        await self.pipeline.warm_up()
        self.routes = native.build(self.pipeline)
        # What is there by now stays: looking through it again and again for garbage would hold everything up.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)
        # The engine and the event loop share the interpreter with threads that read long texts.
        sys.setswitchinterval(SWITCH_SECONDS)
        self.ingress = Ingress(self.routes, chosen.host, chosen.port) if chosen.ingress == "direct" else None

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.routes

    def check_health(self) -> None:
        """Asked by Serve every ten seconds; raises when the engine is dead or stuck, or nobody listens."""
        self.pipeline.engine.check_health()
        if self.ingress and not self.ingress.alive:
            raise RuntimeError("the HTTP server has ended")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.Policy` goes by."""
        return {autoscaling.LOAD: self.pipeline.engine.load}

    async def __del__(self) -> None:
        """Called by Serve when the replica is to go: what has come is still answered."""
        if ingress := getattr(self, "ingress", None):
            await ingress.drain()
        if pipeline := getattr(self, "pipeline", None):
            pipeline.close()


def application(arguments: dict[str, Any]) -> serve.Application:
    """The Serve application; ``arguments`` are names and values of `Settings`. Serve config files import this."""
    settings = Settings(**arguments)
    scale = {"num_replicas": settings.replicas}
    if settings.max_replicas > settings.replicas:
        policy = AutoscalingPolicy(policy_function=autoscaling.Policy, policy_kwargs={"target": settings.target_load})
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.replicas,
                max_replicas=settings.max_replicas,
                policy=policy,
                look_back_period_s=settings.scale_up_seconds,
                upscale_delay_s=settings.scale_up_seconds,
                downscale_delay_s=settings.scale_down_seconds,
            )
        }
    deployment = Dragoman.options(  # type: ignore[attr-defined]
        **scale,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        # The engine admits, refuses and times out; Serve's own limits stand above it so that the answers are ours.
        max_ongoing_requests=10_000,
        max_queued_requests=-1,
        health_check_period_s=10,
        # What has come is answered before a replica ends; under Serve's proxies, Serve itself waits for it.
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.timeout + LEAVING_SECONDS + 5,
    )
    return deployment.bind(settings.model_dump(mode="json") | {"bundle": str(settings.bundle.resolve())})


class StartError(RuntimeError):
    """The service cannot start; the message says why."""


@contextlib.contextmanager
def holding(settings: Settings) -> Iterator[None]:
    """Keep the port from other services, also before anybody listens; StartError when another has it."""
    try:
        bound(settings.host, settings.port, socket.SO_REUSEADDR).close()
        # Replicas may share it with each other and with this; whoever does not say so may not.
        held = bound(settings.host, settings.port, socket.SO_REUSEPORT) if settings.ingress == "direct" else None
    except OSError as error:
        said = f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another with --port"
        raise StartError(said) from None
    with contextlib.closing(held) if held else contextlib.nullcontext():
        yield


def run(settings: Settings, starting: Callable[[Manifest], None], ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, on a Ray of our own.

    Calls ``starting`` when the settings and the bundle are found good, ``ready`` once requests are answered. Raises
    StartError, BundleError.
    """
    # All that can be known to be wrong is said before Ray starts, which takes seconds.
    with holding(settings):
        manifest = read_manifest(settings.bundle)
        check_device(settings.bundle, manifest, settings.device)
        starting(manifest)
        _serve(settings, ready)


def _serve(settings: Settings, ready: Callable[[], None]) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stopped, answering = threading.Event(), False

    def stop(*_: object) -> None:
        stopped.set()
        if not answering:
            raise KeyboardInterrupt

    try:
        ray.init(
            address="local",
            num_cpus=settings.max_replicas * settings.cpus,
            num_gpus=settings.gpus * settings.max_replicas or None,
            object_store_memory=100 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        for received in (signal.SIGINT, signal.SIGTERM):
            signal.signal(received, stop)
        direct = settings.ingress == "direct"
        serve.start(
            proxy_location=ProxyLocation.Disabled if direct else ProxyLocation.EveryNode,
            http_options=HTTPOptions(host=settings.host, port=settings.port, request_timeout_s=settings.timeout + 30),
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
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
