"""What every start of the service begins with: the port that is kept, and the one line when it cannot be."""

import contextlib
import re
import socket
from collections.abc import Iterator

from serving.http.ingress import bound
from serving.settings import Settings


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


def no_replica(reason: str) -> StartError:
    """What is said when a replica fails at its start."""
    return StartError(f"no replica could start: {reason}")


def last_line(traceback: str) -> str:
    """Of an error as Python writes it, without the error's type."""
    *_, last = traceback.strip().splitlines()
    return re.sub(r"^([\w.]+: | +- )", "", last)
