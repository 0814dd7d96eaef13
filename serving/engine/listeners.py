"""Those who want a translation's tokens before it is done."""

import contextlib
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from typing import Protocol


class Listener(Protocol):
    """Whoever wants a translation's tokens before it is done; called in the event loop `loop`."""

    loop: AbstractEventLoop

    def on_token(self, token: int) -> None:
        """Take the next token that is final."""

    def on_error(self, error: Exception) -> None:
        """Take the exception that `on_token` has raised."""


def tell(heard: Mapping[AbstractEventLoop, Sequence[tuple[Listener, int]]]) -> None:
    """Give every listener its token, waking each event loop once."""

    def tell_all(news: Sequence[tuple[Listener, int]]) -> None:
        for listener, token in news:
            try:
                listener.on_token(token)
            except Exception as error:  # the others' tokens must not be lost with it
                listener.on_error(error)

    for loop, news in heard.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(tell_all, news)
