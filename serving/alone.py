"""One replica in this process: Ray is not imported."""

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from serving import state
from serving.http.ingress import LEAVING_SECONDS
from serving.replica import Replica
from serving.settings import Settings
from serving.start import StartError, last_line, no_replica
from serving.stop import Stop

END_SECONDS = 5.0
"""How long an event loop that has been told to end is waited for."""


def check(settings: Settings) -> None:
    """StartError when ``settings`` need Ray."""
    if settings.max_replicas > 1:
        reason = f"max_replicas is {settings.max_replicas}, and without Ray there is one replica: set it to 1"
    elif settings.ingress != "direct":
        reason = f"ingress is {settings.ingress}, and without Ray there are no proxies: set it to direct"
    else:
        return
    raise StartError(f"{reason}, or leave out --no-ray")


def run(settings: Settings, stop: Stop, ready: Callable[[], None], last_words: Callable[[BaseException], None]) -> None:
    """Serve until ``stop``, as `serving.ray_service.run` does; StartError when the replica cannot start.

    When the engine breaks, ``last_words`` is called with what broke it and this process ends with status 1.
    """
    with _state(settings, stop) as (folder, remove), event_loop() as loop:

        def remove_and_tell(failure: BaseException) -> None:
            remove()
            last_words(failure)

        try:
            replica = asyncio.run_coroutine_threadsafe(_started(settings, folder, remove_and_tell), loop).result()
        except Exception as error:  # whatever it is, the replica is not there
            raise no_replica(last_line("".join(traceback.format_exception_only(error)))) from None
        if not stop.asked:
            ready()
        stop.wait()
        # For ever if the engine hangs.
        closing = asyncio.run_coroutine_threadsafe(replica.close(), loop)
        stop.wait_for(closing.done, settings.timeout + LEAVING_SECONDS + 10)


@contextlib.contextmanager
def _state(settings: Settings, stop: Stop) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The state folder, and what removes it if it is a private one: in the end, or when everything ends at once."""
    if settings.state:
        yield settings.state, lambda: None
        return
    folder, stop.at_once = state.temporary()
    try:
        yield folder, stop.at_once
    finally:
        stop.at_once()


async def _started(settings: Settings, folder: Path, last_words: Callable[[BaseException], None]) -> Replica:
    replica = Replica(settings, folder, last_words)
    await replica.start()
    return replica


@contextlib.contextmanager
def event_loop(
    new: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread: the main one can take signals at any time, also while a bundle is read."""
    loop = new()
    thread = threading.Thread(target=loop.run_forever, name="event loop", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_SECONDS)
        if not thread.is_alive():
            loop.close()
