"""What an application is told of a request (ASGI 3, HTTP connection scope)."""

from collections.abc import Callable
from typing import Any

from serving.errors import ServiceError
from serving.http.parser import Head

REFUSAL = "dragoman.refusal"
"""In a scope: the ServiceError with which a request is to be answered, since it cannot be read."""
DISCONNECT = "dragoman.disconnect"
"""In a scope: what tells that the client has gone (`Disconnect`), for less than a task that waits for word of it."""
UNREAD = Head("1.1", "UNREAD", "/", b"/", b"", [], keep_alive=False, expects_continue=False)
"""The head of a request that cannot be read."""
Address = tuple[Any, ...]
"""A host and a port."""


class Disconnect:
    """Calls whoever wants to know as soon as a client has gone."""

    def __init__(self) -> None:
        self.happened = False
        """Whether it has."""
        self._callback: Callable[[], object] | None = None

    def set_callback(self, callback: Callable[[], object] | None) -> None:
        """Have ``callback`` called when the client goes, at once if it has gone; None: nobody."""
        self._callback = callback
        if self.happened and callback:
            callback()

    def notify(self) -> None:
        """The client has gone: call."""
        self.happened = True
        if self._callback:
            self._callback()


def scope_of(head: Head, client: Address, server: Address, refusal: ServiceError | None = None) -> dict[str, Any]:
    """The scope of the request with ``head``."""
    return {
        "type": "http",
        # From 2.4 on, frameworks learn from `send` alone that a client has gone: too late for one that waits.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.version,
        "server": server,
        "client": client,
        "scheme": "http",
        "method": head.method,
        "root_path": "",
        "path": head.path,
        "raw_path": head.raw_path,
        "query_string": head.query,
        "headers": head.headers,
        "state": {},
        REFUSAL: refusal,
        DISCONNECT: Disconnect(),
    }
