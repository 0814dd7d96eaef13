"""What an application is told of a request (ASGI 3, HTTP connection scope)."""

from typing import Any

from serving.errors import ServiceError
from serving.http.parser import Head

REFUSAL = "dragoman.refusal"
"""In a scope: the ServiceError with which a request is to be answered, since it cannot be read."""
UNREAD = Head("1.1", "GET", "/", b"/", b"", [], keep_alive=False, expects_continue=False)
"""Of a request that cannot be read."""
Address = tuple[Any, ...]
"""Host and port."""


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
    }
