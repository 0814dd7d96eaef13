"""A replica's own way in: no proxy between a client and the engine."""

import asyncio
import socket

from starlette.types import ASGIApp

from serving.http.connection import Connection
from serving.http.state import Limits, ServerState

BACKLOG = 2048
"""Connections that wait to be accepted."""
LEAVING_SECONDS = 2.0
"""How long a server that is to go waits for clients to use a connection once more and be told that it closes."""
LOOK_SECONDS = 0.05


def bound(host: str, port: int, *options: int) -> socket.socket:
    """A socket bound to an address with ``options`` such as ``SO_REUSEPORT``; OSError when it cannot be."""
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        for option in options:
            opened.setsockopt(socket.SOL_SOCKET, option, 1)
        opened.bind((host, port))
    except OSError:
        opened.close()
        raise
    return opened


class Ingress:
    """An HTTP server on an address that all replicas of a machine listen on, each with a socket of its own.

    The kernel gives every new connection to one of them (``SO_REUSEPORT``; Linux shares connections out evenly, other
    systems may not). A replica that dies takes its connections along; new ones go to the others.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, limits: Limits) -> None:
        """Take the address; OSError when another service has it."""
        self._state = ServerState(app, limits)
        self._socket = bound(host, port, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
        self._server: asyncio.Server | None = None

    @property
    def alive(self) -> bool:
        """Whether it takes connections, or still answers those that it has."""
        return self._server is not None and (self._server.is_serving() or self._state.leaving_since is not None)

    async def begin(self) -> None:
        """Take connections."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self._state), sock=self._socket, backlog=BACKLOG)

    def refuse(self) -> None:
        """Take no new connections from now on; those there are, are asked to close."""
        self._leave()
        if self._server:
            self._server.close()
        self._socket.close()

    async def drain(self) -> None:
        """Take no new connections, answer every request that has come, close."""
        self._leave()
        # Connections that wait to be accepted would be lost with the socket they came to.
        await asyncio.sleep(0.01)
        self.refuse()
        # A connection that is closed while its client sends would cost a request: clients are asked to close it.
        deadline = asyncio.get_running_loop().time() + LEAVING_SECONDS
        await asyncio.sleep(LOOK_SECONDS)  # the last of them are not known at once
        while self._state.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
        while self._state.connections or self._state.tasks:
            for connection in list(self._state.connections):
                connection.close_when_idle()
            await asyncio.sleep(LOOK_SECONDS)
        self._server = None

    def _leave(self) -> None:
        if self._state.leaving_since is None:
            self._state.leaving_since = asyncio.get_running_loop().time()
