"""Replicas of the service, as Ray Serve runs them."""

import asyncio
import gc
import os
import sys
import time
from typing import Any

from serving.ray_environment import prepare

prepare()

import ray
import ray.serve._private.replica
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from starlette.applications import Starlette

from serving import autoscaling
from serving.api import native
from serving.ingress import LEAVING_SECONDS, Ingress
from serving.pipeline import Pipeline
from serving.settings import Settings

NAME = "dragoman"
GARBAGE = 50_000
"""Objects more than before that are looked through for garbage: a crowded engine has many that are none."""
SWITCH_SECONDS = 0.0005
"""After which a thread that waits for Python's lock is given it."""
PARTING_SECONDS = 0.3
"""How long a replica whose engine has ended still answers that it has."""


@serve.deployment(name=NAME)
@serve.ingress()
class Dragoman:
    """One replica: a process that holds a pipeline and answers HTTP itself."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        _keep_to_loopback()
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
        self._loop = asyncio.get_running_loop()
        self.pipeline.engine.when_broken = self._end

    def _end(self) -> None:
        """End this process, since its engine has; called by the engine's thread. Serve then starts another."""
        try:
            if self.ingress:
                self._loop.call_soon_threadsafe(self.ingress.refuse)
            time.sleep(PARTING_SECONDS)
        finally:
            os._exit(1)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.routes

    def check_health(self) -> None:
        """Asked by Serve every second; raises when the engine is dead or stuck, or nobody listens."""
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
        # It is also how Serve learns that a replica is gone.
        health_check_period_s=1,
        # What has come is answered before a replica ends; under Serve's proxies, Serve itself waits for it.
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.timeout + LEAVING_SECONDS + 5,
    )
    return deployment.bind(settings.model_dump(mode="json") | {"bundle": str(settings.bundle.resolve())})


def _keep_to_loopback() -> None:
    """Where Ray keeps to loopback, let what Serve opens in a replica, so that others can call it, do so too."""
    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    replica = ray.serve._private.replica
    opened = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: opened(server, address.replace("[::]", "127.0.0.1"))
