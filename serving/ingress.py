"""A replica's own way in: no proxy between a client and the engine."""

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEAVING_SECONDS = 2.0
"""How long a server that is to go waits for clients to use a connection once more and be told that it closes."""


def bound(host: str, port: int, *options: int) -> socket.socket:
    """A socket bound to an address with ``options`` such as ``SO_REUSEPORT``; OSError when it cannot be."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        for option in options:
            found.setsockopt(socket.SOL_SOCKET, option, 1)
        found.bind((host, port))
    except OSError:
        found.close()
        raise
    return found


class Ingress:
    """An HTTP server on an address that all replicas of a machine listen on, each with a socket of its own.

    The kernel gives every new connection to one of them (``SO_REUSEPORT``; Linux shares connections out evenly, other
    systems may not). A replica that dies takes its connections along; new ones go to the others.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        """Listen; OSError when another service does."""
        self._app, self._leaving = app, False
        self._socket = bound(host, port, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([self._socket]))

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return not self._serving.done()

    async def begin(self) -> None:
        """Return when it takes connections; RuntimeError when it has ended instead."""
        await self._begun()
        if not self.alive:
            raise RuntimeError("the HTTP server has ended") from self._serving.exception()

    def refuse(self) -> None:
        """Take no new connections from now on; those there are, are asked to close."""
        self._leaving = True
        for listening in self._server.servers if self._server.started else []:
            listening.close()

    async def drain(self) -> None:
        """Take no new connections, answer every request that has come, close."""
        self._leaving = True
        await self._begun()
        # Connections that wait to be accepted would be lost with the socket they came to.
        await asyncio.sleep(0.01)
        self.refuse()
        # A connection that is closed while its client sends would cost a request: clients are asked to close it.
        deadline = asyncio.get_running_loop().time() + LEAVING_SECONDS
        await asyncio.sleep(0.05)  # the last of them are not known to the server at once
        while self._server.server_state.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        self._server.should_exit = True
        await self._serving

    async def _begun(self) -> None:
        while not self._server.started and self.alive:
            await asyncio.sleep(0.01)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def parting(message: Message) -> None:
            if message["type"] == "http.response.start" and self._leaving:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, parting)
