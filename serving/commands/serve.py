"""``dragoman serve``."""

from typing import Annotated

import typer

from serving.commands.console import errors, fail, with_settings
from serving.settings import Settings


@with_settings
def serve(
    settings: Settings,
    no_ray: Annotated[
        bool,
        typer.Option("--no-ray", help="Serve one replica in this process, without Ray, which need not be installed."),
    ] = False,
) -> None:
    """Start the service and answer until it is told to stop."""
    from export.bundle import BundleError, Manifest
    from serving.service import run
    from serving.start import StartError

    url = f"http://{settings.address}"
    example = """-d '{"text": "The file could not be opened."}'"""

    def starting(manifest: Manifest) -> None:
        fewest, most = settings.replicas, settings.max_replicas
        replicas = f"{fewest} to {most} replicas" if most > fewest else _count(fewest, "replica")
        cores = _count(settings.cpus, "core")
        gpus = f" on {_count(settings.whole_gpus, 'GPU')}" if settings.gpus else ""
        print(f"starting {manifest.name} ({manifest.precision}): {replicas} of {cores}{gpus}", flush=True)

    def ready() -> None:
        print(f"ready on {url}; try\n\n  curl {url}/v1/translate {example}\n", flush=True)

    def last_words(failure: BaseException) -> None:
        why = " ".join(f"{type(failure).__name__}: {failure}".split())
        errors.print(
            f"the engine has ended, and the service with it ({why}): start it again", markup=False, soft_wrap=True
        )

    try:
        run(settings, not no_ray, starting, ready, last_words)
    except (BundleError, StartError) as error:
        fail(str(error))
    print("stopped", flush=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
