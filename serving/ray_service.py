"""The service on a Ray of its own: replicas that Ray Serve starts, watches and ends."""

import contextlib
import logging
import math
import threading
from collections.abc import Callable

from serving import local_ray  # before Ray itself
from serving.deployment import NAME, application
from serving.http.ingress import LEAVING_SECONDS
from serving.settings import Settings
from serving.start import last_line, no_replica
from serving.stop import Stop

from ray import serve  # isort: skip
from ray.exceptions import RayError  # isort: skip
from ray.serve.config import HTTPOptions, ProxyLocation  # isort: skip

STORE_BYTES = 100 << 20
"""Of Ray's shared memory, which nothing of this uses but Ray itself."""


def run(settings: Settings, stop: Stop, ready: Callable[[], None]) -> None:
    """Serve until ``stop``; calls ``ready`` once requests are answered. Raises StartError."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    cpus, gpus = settings.max_replicas * settings.cpus, settings.whole_gpus
    with local_ray.running(stop, num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE_BYTES) as private:
        if private:
            state = settings.state or private / "state"
            _serve(settings.model_copy(update={"state": state}), stop, ready)


def _serve(settings: Settings, stop: Stop, ready: Callable[[], None]) -> None:
    try:
        stop.interrupts = True
        if stop.asked:
            return
        direct = settings.ingress == "direct"
        serve.start(
            proxy_location=ProxyLocation.Disabled if direct else ProxyLocation.EveryNode,
            http_options=HTTPOptions(
                host=settings.host,
                port=settings.port,
                request_timeout_s=settings.timeout + 30,
                keep_alive_timeout_s=math.ceil(settings.keep_alive),
            ),
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(application(settings.model_dump()), name=NAME, route_prefix="/")
    except KeyboardInterrupt:
        return
    except (RuntimeError, ValueError, OSError, RayError) as error:
        raise no_replica(_reason() or str(error)) from None
    finally:
        stop.interrupts = False
    ready()
    stop.wait()
    # Waits for the requests under way, and for ever if Ray has ended.
    deleting = threading.Thread(target=_delete, daemon=True)
    deleting.start()
    stop.wait_for(lambda: not deleting.is_alive(), settings.timeout + LEAVING_SECONDS + 10)


def _delete() -> None:
    with contextlib.suppress(Exception):  # after a minute Serve gives up waiting; whatever is left ends with Ray
        serve.delete(NAME)


def _reason() -> str | None:
    """What the replicas themselves failed with, if Serve knows: it keeps the traceback."""
    with contextlib.suppress(Exception):
        for application in serve.status().applications.values():
            for deployment in application.deployments.values():
                if deployment.message.strip():
                    return last_line(deployment.message)
    return None
