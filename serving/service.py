"""``dragoman serve``: the whole service on this machine, from the first check to the last process."""

from collections.abc import Callable

from export.bundle import Manifest, read_manifest
from serving import alone, state
from serving.runtime.devices import check_device
from serving.settings import Settings
from serving.start import StartError, holding
from serving.stop import Stop


def run(
    settings: Settings,
    ray: bool,
    starting: Callable[[Manifest], None],
    ready: Callable[[], None],
    last_words: Callable[[BaseException], None],
) -> None:
    """Serve until SIGINT or SIGTERM, on a Ray of our own or, without ``ray``, in this process; a second signal ends at
    once.

    Calls ``starting`` when the settings and the bundle are found good, ``ready`` once requests are answered, and
    ``last_words`` before this process ends because its engine has broken: on Ray, another process is started instead.
    Raises StartError, BundleError.
    """
    if not ray:
        alone.check(settings)
    # All that can be known to be wrong is said before Ray or a replica starts, which takes seconds.
    with holding(settings):
        manifest = read_manifest(settings.bundle)
        check_device(settings.bundle, manifest, settings.device, settings.gpus, settings.whole_gpus)
        if settings.state:
            state.check(settings.state)
        stop = Stop()
        starting(manifest)
        if ray:
            try:
                from serving import ray_service  # only now: Ray may not be installed
            except ModuleNotFoundError as error:
                if error.name != "ray":
                    raise
                raise StartError("Ray is not installed: install it, or serve without it: --no-ray") from None
            ray_service.run(settings, stop, ready)
        else:
            alone.run(settings, stop, ready, last_words)
