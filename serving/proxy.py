"""What Ray Serve's HTTP proxies do besides, where they stand in front of replicas (``--ingress serve``)."""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.request_id import KNOWN_ID

PRIVATE = frozenset((b"x-request-timeout-seconds", b"x-request-disconnect-disabled"))
"""Headers with which any client could have Serve end its request early or never, and go on when it has left."""


def middlewares() -> list[Middleware]:
    """Asked by each proxy at its start (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH)."""
    return [Middleware(WithoutPrivateHeaders)]


class WithoutPrivateHeaders:
    """Takes from requests the headers that only Serve's own proxies may send, and ids at which Serve would fail."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on (ASGI)."""
        if scope["type"] == "http":
            headers = [(name.lower(), value) for name, value in scope["headers"]]
            scope = {**scope, "headers": [header for header in headers if _kept(*header)]}
        await self.app(scope, receive, send)


def _kept(name: bytes, value: bytes) -> bool:
    return name not in PRIVATE and not (name == b"x-request-id" and not KNOWN_ID.fullmatch(value))
