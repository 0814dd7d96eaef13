"""The application: dialects, and what every request passes through."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from serving.api.dialect import Dialect, Operation, Service
from serving.api.middleware import BodyLimit, ErrorHandling, RequestCounts, RequestIds
from serving.api.native import Native
from serving.api.statuses import refusal_of
from serving.errors import ServiceError
from serving.http.errors import MethodNotAllowed, NotFound

DIALECTS: Sequence[type[Dialect]] = (Native,)


def build(service: Service, dialects: Sequence[type[Dialect]] = DIALECTS) -> Starlette:
    """The application over ``service``; the first of the ``dialects`` answers what is nobody's."""
    settings = service.registry.settings
    spoken = [dialect(service) for dialect in dialects]
    routes = [route for dialect in spoken for route in dialect.routes]
    errors = Errors(spoken, routes)
    app = Starlette(
        routes=routes,
        # From the outside in.
        middleware=[
            Middleware(RequestIds, in_answers=settings.ingress == "direct"),
            Middleware(RequestCounts, metrics=service.metrics),
            Middleware(BodyLimit, limit=settings.max_body),
            Middleware(ErrorHandling, refuse=errors.answer),
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

    async def handle(self, request: Request, error: Exception) -> Response:
        """The answer to a request whose handler raised ``error``, or that has none."""
        return self.answer(request.scope, error)

    def answer(self, scope: Scope, error: Exception) -> Response:
        """The answer to a request that ended in ``error``."""
        return self._owner(scope).refuse(refusal_of(self._named(error, scope)))

    def _named(self, error: Exception, scope: Scope) -> Exception:
        """``error`` itself, or in place of one of Starlette's router an error that names the path."""
        path, status = scope["path"], error.status_code if isinstance(error, HTTPException) else None
        if status == 404:
            return NotFound(f"there is no {path}")
        if status == 405:
            matching = [route for route in self._routes if route.path_regex.match(path)]
            return MethodNotAllowed(path, scope["method"], {name for route in matching for name in route.methods or ()})
        return error

    def _owner(self, scope: Scope) -> Dialect:
        if isinstance(route := scope.get("route"), Operation) and route.dialect:
            return route.dialect
        claims = [dialect for dialect in self._dialects if scope["path"].startswith(dialect.prefix)]
        return max(claims, key=lambda dialect: len(dialect.prefix), default=self._dialects[0])
