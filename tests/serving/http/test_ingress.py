import asyncio
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.ingress import Ingress
from tests.service import free_port
from tests.serving.conftest import LIMITS
from tests.serving.http.raw import Echo, post, wire


class Answering:
    """An app that says its name; under /held it waits to be let go, and under /stream it does so amid its answer."""

    def __init__(self, name: str) -> None:
        self.name, self.held, self.go = name, 0, asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streamed = scope["path"] == "/stream"
        kind = b"text/event-stream" if streamed else b"text/plain"
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        if streamed:
            await send(start)
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        if scope["path"] in ("/held", "/stream"):
            self.held += 1
            await self.go.wait()
        if not streamed:
            await send(start)
        await send({"type": "http.response.body", "body": self.name.encode()})


class Client:
    """A connection of its own, with one request under way at a time."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def ask(self, path: str = "/") -> tuple[int, str, str | None]:
        self.connection.request("GET", path)
        answer = self.connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers["Connection"]


def ask(port: int, path: str = "/") -> tuple[int, str, str | None]:
    client = Client(port)
    try:
        return client.ask(path)
    finally:
        client.connection.close()


@asynccontextmanager
async def listening(port: int, *apps: ASGIApp) -> AsyncIterator[list[Ingress]]:
    made = [Ingress(app, "127.0.0.1", port, LIMITS) for app in apps]
    for each in made:
        await each.begin()
    try:
        yield made
    finally:
        for each in made:
            if each.alive:
                await each.drain()


async def met(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_two_share_a_port_and_the_one_that_stays_answers_while_and_after_the_other_goes() -> None:
    async def run() -> None:
        port, names = free_port(), Counter[str]()
        first, second = Answering("first"), Answering("second")
        async with listening(port, first, second) as (one, other):
            for _ in range(100):
                names[(await asyncio.to_thread(ask, port))[1]] += 1
            assert set(names) == {"first", "second"}
            going = asyncio.create_task(one.drain())
            await asyncio.sleep(0.05)
            while not going.done():
                assert (await asyncio.to_thread(ask, port)) == (200, "second", None)
            assert (one.alive, other.alive) == (False, True)
            for _ in range(30):
                assert (await asyncio.to_thread(ask, port)) == (200, "second", None)

    asyncio.run(run())


def test_every_request_under_way_is_answered_and_told_that_the_connection_closes() -> None:
    async def run() -> None:
        port, app = free_port(), Answering("only")
        async with listening(port, app) as (ingress,):
            asked = [asyncio.create_task(asyncio.to_thread(ask, port, "/held")) for _ in range(4)]
            await met(lambda: app.held == 4)
            going = asyncio.create_task(ingress.drain())
            await met(lambda: refused(port))
            # Longer than clients are given to use a connection once more.
            await asyncio.sleep(2.5)
            assert not going.done()
            assert ingress.alive
            app.go.set()
            assert await asyncio.gather(*asked) == [(200, "only", "close")] * 4
            await asyncio.wait_for(going, 3)
            assert not ingress.alive
            assert refused(port)

    asyncio.run(run())


def test_a_kept_connection_may_be_used_once_more_and_is_closed_then() -> None:
    async def run() -> None:
        port, app = free_port(), Answering("only")
        async with listening(port, app) as (ingress,):
            client, idle = Client(port), Client(port)
            for each in (client, idle):
                assert await asyncio.to_thread(each.ask) == (200, "only", None)
            going = asyncio.create_task(ingress.drain())
            await met(lambda: refused(port))
            await asyncio.sleep(0.5)
            assert await asyncio.to_thread(client.ask) == (200, "only", "close")
            begun = time.monotonic()
            await asyncio.wait_for(going, 4)
            assert time.monotonic() - begun > 0.5  # the idle one was waited for
            assert idle.connection.sock.recv(1) == b""
            idle.connection.close()

    asyncio.run(run())


def test_a_stream_under_way_comes_to_its_end() -> None:
    async def run() -> None:
        port, app = free_port(), Answering("end")
        async with listening(port, app) as (ingress,):
            asked = asyncio.create_task(asyncio.to_thread(ask, port, "/stream"))
            await met(lambda: app.held == 1)
            going = asyncio.create_task(ingress.drain())
            await asyncio.sleep(2.5)
            app.go.set()
            status, body, _ = await asked
            assert (status, body) == (200, "data: 1\n\nend")
            await asyncio.wait_for(going, 3)

    asyncio.run(run())


def test_no_request_is_lost_to_clients_that_keep_asking_while_one_of_two_goes() -> None:
    async def run() -> None:
        port, over = free_port(), threading.Event()
        async with listening(port, Answering("first"), Answering("second")) as (one, _):

            def keep_asking() -> list[str]:
                client, names = Client(port), []
                while not over.is_set():
                    status, name, _ = client.ask()
                    assert status == 200
                    names.append(name)
                client.connection.close()
                return names

            asking = [asyncio.create_task(asyncio.to_thread(keep_asking)) for _ in range(5)]
            await asyncio.sleep(0.3)
            await one.drain()
            await asyncio.sleep(0.1)
            over.set()
            for names in await asyncio.gather(*asking):
                assert names[-1] == "second"
                assert names == sorted(names)

    asyncio.run(run())


def test_connections_that_have_come_while_the_process_was_busy_are_answered_too() -> None:
    async def run() -> None:
        port = free_port()
        async with listening(port, Answering("only")) as (ingress,):
            with ThreadPoolExecutor(8) as threads:
                asked = [threads.submit(ask, port) for _ in range(8)]
                time.sleep(0.3)  # nothing is accepted meanwhile
                going = asyncio.create_task(ingress.drain())
                for each in asked:
                    assert await asyncio.wrap_future(each) == (200, "only", "close")
                await asyncio.wait_for(going, 4)

    asyncio.run(run())


@pytest.mark.parametrize("reuse", [False, True])
def test_a_port_that_is_someone_elses_is_an_os_error_and_leaks_nothing(
    reuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []

    class Noted(socket.socket):
        def __init__(self, *arguments: int) -> None:
            super().__init__(*arguments)
            made.append(self)

    async def run() -> None:
        with socket.socket() as theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            theirs.bind(("127.0.0.1", 0))
            theirs.listen()
            with monkeypatch.context() as patch:
                patch.setattr("serving.http.ingress.socket.socket", Noted)
                with pytest.raises(OSError, match="in use"):
                    Ingress(Answering("none"), "127.0.0.1", theirs.getsockname()[1], LIMITS)
        assert [each.fileno() for each in made] == [-1]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_one_that_drains_before_it_has_begun_ends_all_the_same() -> None:
    async def run() -> None:
        port = free_port()
        ingress = Ingress(Answering("none"), "127.0.0.1", port, LIMITS)
        await asyncio.wait_for(ingress.drain(), 5)
        assert not ingress.alive
        assert refused(port)

    asyncio.run(run())


def test_clients_that_do_not_end_their_request_or_take_no_answer_do_not_keep_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.http.connection.LINGER_SECONDS", 0.3)

    async def run() -> None:
        port = free_port()
        app = Echo()
        async with listening(port, app) as (ingress,):
            with wire(port) as unfinished, wire(port) as unread, wire(port) as headless:
                unfinished.send(post("/x", b"abc")[:-1])
                headless.send(b"POST /x HT")
                unread.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await asyncio.to_thread(unread.send, post("/big", b"x" * 20_000_000))
                await met(lambda: len(ingress._state.connections) == 3)
                await asyncio.wait_for(ingress.drain(), 10)
                assert (await asyncio.to_thread(unfinished.answer)).status == 408

    asyncio.run(run())
