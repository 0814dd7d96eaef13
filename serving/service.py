"""``dragoman serve``: the whole service on this machine, from the first check to the last process."""

import contextlib
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator

from export.bundle import Manifest, read_manifest
from serving import local_ray  # before Ray itself
from serving.deployment import NAME, application
from serving.ingress import LEAVING_SECONDS, bound
from serving.local_ray import CannotStart, Stop
from serving.runtime.devices import check_device
from serving.settings import Settings

from ray import serve  # isort: skip
from ray.exceptions import RayError  # isort: skip
from ray.serve.config import HTTPOptions, ProxyLocation  # isort: skip

STORE_BYTES = 100 << 20
"""Of Ray's shared memory, which nothing of this uses but Ray itself."""


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
        said = f"cannot listen on {settings.address}: {error.strerror}; choose another address with --host or --port"
        raise StartError(said) from None
    with contextlib.closing(held) if held else contextlib.nullcontext():
        yield


def run(settings: Settings, starting: Callable[[Manifest], None], ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, on a Ray of our own; a second signal ends at once.

    Calls ``starting`` when the settings and the bundle are found good, ``ready`` once requests are answered. Raises
    StartError, BundleError.
    """
    # All that can be known to be wrong is said before Ray starts, which takes seconds.
    with holding(settings):
        manifest = read_manifest(settings.bundle)
        check_device(settings.bundle, manifest, settings.device, settings.whole_gpus)
        starting(manifest)
        stop = Stop()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        cpus, gpus = settings.max_replicas * settings.cpus, settings.whole_gpus
        try:
            with local_ray.running(stop, num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE_BYTES):
                _serve(settings, stop, ready)
        except CannotStart as error:
            raise StartError(str(error)) from None


def _serve(settings: Settings, stop: Stop, ready: Callable[[], None]) -> None:
    try:
        stop.interrupts = True
        if stop.asked:
            return
        direct = settings.ingress == "direct"
        serve.start(
            proxy_location=ProxyLocation.Disabled if direct else ProxyLocation.EveryNode,
            http_options=HTTPOptions(host=settings.host, port=settings.port, request_timeout_s=settings.timeout + 30),
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(application(settings.model_dump()), name=NAME, route_prefix="/")
    except KeyboardInterrupt:
        return
    except (RuntimeError, OSError, RayError) as error:
        raise StartError(f"no replica could start: {_reason() or error}") from None
    finally:
        stop.interrupts = False
    ready()
    stop.wait()
    # Waits for the requests under way, and for ever if Ray has ended.
    deleting = threading.Thread(target=lambda: serve.delete(NAME), daemon=True)
    deleting.start()
    deleting.join(settings.timeout + LEAVING_SECONDS + 10)


def _reason() -> str | None:
    """What the replicas themselves failed with, if Serve knows: the last line of the traceback that it keeps."""
    with contextlib.suppress(Exception):
        for application in serve.status().applications.values():
            for deployment in application.deployments.values():
                if lines := deployment.message.strip().splitlines():
                    return re.sub(r"^([\w.]+: | +- )", "", lines[-1])
    return None
