"""The application: dialects, and what every request passes through."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from serving.api.dialect import Dialect, Operation, Service
from serving.api.middleware import Bodies, Counting, Failures, RequestIds
from serving.api.native import Native
from serving.api.statuses import refusal_of
from serving.errors import ServiceError

DIALECTS: Sequence[type[Dialect]] = (Native,)


def build(service: Service, dialects: Sequence[type[Dialect]] = DIALECTS) -> Starlette:
    """The application over ``service``; the first of the ``dialects`` answers what is nobody's."""
    spoken = [dialect(service) for dialect in dialects]
    routes = [route for dialect in spoken for route in dialect.routes]
    errors = Errors(spoken, routes)
    app = Starlette(
        routes=routes,
        # From the outside in.
        middleware=[
            Middleware(RequestIds),
            Middleware(Counting, metrics=service.metrics),
            Middleware(Bodies, limit=service.registry.settings.max_body),
            Middleware(Failures, refuse=errors.answer),
        ],
        exception_handlers=dict.fromkeys((ServiceError, HTTPException, ClientDisconnect), errors.handle),
    )
    # A redirect would lead to whatever host a request names.
    app.router.redirect_slashes = False
    return app


class Errors:
    """Has each error answered in the dialect in which the request was made."""

    def __init__(self, dialects: Sequence[Dialect], routes: Sequence[Operation]) -> None:
        self._dialects, self._routes = dialects, routes
        self._owners = {route.path: dialect for dialect in dialects for route in dialect.routes}

    async def handle(self, request: Request, error: Exception) -> Response:
        """The answer to a request whose handler raised ``error``, or that has none."""
        return self.answer(request.scope, error)

    def answer(self, scope: Scope, error: Exception) -> Response:
        """The answer to a request that ended in ``error``."""
        path, method = scope["path"], scope["method"]
        methods = {method for route in self._routes if route.path_regex.match(path) for method in route.methods or ()}
        return self._owner(scope).refuse(refusal_of(error, path, method, methods))

    def _owner(self, scope: Scope) -> Dialect:
        if route := scope.get("route"):
            return self._owners[route.path]
        claims = [dialect for dialect in self._dialects if scope["path"].startswith(dialect.prefix)]
        return max(claims, key=lambda dialect: len(dialect.prefix), default=self._dialects[0])
