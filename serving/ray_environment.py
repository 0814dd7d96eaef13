"""What Ray's processes are told through the environment, which Ray reads when it is imported.

For where Ray is started before this is called, the variables of `prepare` stand in deploy/ray.env and deploy/Dockerfile
too, and the two of `prepare_local` in deploy/loopback.env.
"""

import os


def prepare() -> None:
    """Tell Ray; call this before it is imported."""
    # Nothing is reported to anybody, whatever the environment says.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray gives workers what no other process wants (niceness 15): a replica would wait for whatever else runs.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ten rounds a second of looking after a few replicas cost a twentieth of a core.
    os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
    # Clients cannot switch Serve's time-outs off.
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serving.proxy.middlewares")
    # Memory that is freed goes back: glibc would keep some for every thread, and what large blocks have taken once as
    # room that small ones then hold on to.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1048576")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "16777216")


def prepare_local() -> None:
    """Tell a Ray that is to keep to this machine, besides."""
    prepare()
    # Ray then takes this machine for one that can be in no cluster, and every address for 127.0.0.1.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_enable_metrics_collection"] = "0"  # noqa: SIM112
    # With neither, Ray asks for a token, and takes no constant one: `serving.local_ray` makes it.
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)
