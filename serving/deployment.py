"""Replicas of the service, as Ray Serve runs them."""

from pathlib import Path
from typing import Any

from serving.ray_environment import prepare

prepare()

import ray
import ray.serve._private.replica
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from starlette.applications import Starlette

from serving import autoscaling
from serving.http.ingress import LEAVING_SECONDS
from serving.replica import Replica
from serving.settings import Settings
from serving.state import private

NAME = "dragoman"


@serve.deployment(name=NAME)
@serve.ingress()
class Dragoman:
    """One replica, in a process of its own; Serve starts another when that ends."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        _keep_to_loopback()
        typed = Settings(**settings)
        self.replica = Replica(typed, typed.state or private(_session() / NAME))
        await self.replica.start()

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.replica.app

    def check_health(self) -> None:
        """Asked by Serve every second; raises when the replica is of no use any more."""
        self.replica.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.Policy` goes by."""
        return {autoscaling.LOAD: self.replica.registry.engine_load}

    async def __del__(self) -> None:
        """Called by Serve when the replica is to go: what has come is still answered."""
        if replica := getattr(self, "replica", None):
            await replica.close()


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
    # A replica has another working folder than this process.
    absolute = {"bundle": str(settings.bundle.resolve()), "state": settings.state and str(settings.state.resolve())}
    return deployment.bind(settings.model_dump(mode="json") | absolute)


def _session() -> Path:
    """Where Ray keeps this node's files; they are gone when the machine, or the container, starts anew."""
    return Path(ray.get_runtime_context().worker.node.get_session_dir_path())


def _keep_to_loopback() -> None:
    """Where Ray keeps to loopback, let what Serve opens in a replica, so that others can call it, do so too."""
    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    replica = ray.serve._private.replica
    opened = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: opened(server, address.replace("[::]", "127.0.0.1"))
