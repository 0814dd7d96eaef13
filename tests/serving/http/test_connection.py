"""HTTP as strangers speak it, over real sockets."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import uvloop

from serving.http.ingress import Ingress
from serving.http.state import Limits
from tests.service import free_port
from tests.serving.conftest import LIMITS, listening, wait_until
from tests.serving.http.raw import Echo, get, post, wire


class Server:
    def __init__(self, app: Echo, port: int, ingress: Ingress) -> None:
        self.app, self.port, self.ingress = app, port, ingress

    @property
    def connections(self) -> int:
        return len(self.ingress._state.connections)

    @property
    def unsent(self) -> int:
        """Bytes that clients have not taken."""
        return sum(each._transport.get_write_buffer_size() for each in list(self.ingress._state.connections))

    @property
    def tasks(self) -> int:
        return len(self.ingress._state.tasks)


def serving(limits: Limits, new: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Server]:
    app, port = Echo(), free_port()
    with listening(app, port, limits, new) as ingress:
        server = Server(app, port, ingress)
        yield server
        app.go = True
        wait_until(lambda: not server.tasks)


LOOPS = [
    pytest.param(uvloop.new_event_loop, id="uvloop"),
    pytest.param(asyncio.new_event_loop, id="asyncio", marks=pytest.mark.slow),
]


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes an event loop of either kind."""
    return request.param


@pytest.fixture
def server(loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Server]:
    yield from serving(LIMITS, loop)


@pytest.fixture(params=[pytest.param(each.values[0], id=each.id, marks=pytest.mark.slow) for each in LOOPS])
def hasty(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One that waits for half a second, and keeps connections for a second."""
    yield from serving(Limits(request_seconds=0.5, idle_seconds=1.0), request.param)


# Requests one after another.


def test_requests_over_one_connection_are_answered_in_order(server: Server) -> None:
    with wire(server.port) as client:
        for number in range(3):
            client.send(post(f"/{number}", b"body %d" % number))
            assert client.answer().body == b"POST /%d body %d" % (number, number)


def test_requests_that_do_not_wait_for_answers_are_answered_in_order(server: Server) -> None:
    with wire(server.port) as client:
        client.send(b"".join(post(f"/{number}", b"x" * number) for number in range(60)))
        assert [client.answer().body for _ in range(60)] == [b"POST /%d " % n + b"x" * n for n in range(60)]
        client.send(get("/on"))
        assert client.answer().body == b"GET /on "


def test_a_request_may_come_byte_by_byte(server: Server) -> None:
    with wire(server.port) as client:
        for byte in post("/slow", b"abc"):
            client.send(bytes([byte]))
        assert client.answer().body == b"POST /slow abc"


def test_a_body_in_chunks_with_extensions_and_trailers_is_read_and_its_trailers_are_nobodys(server: Server) -> None:
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with wire(server.port) as client:
        client.send(head + b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n" + get("/next"))
        assert [client.answer().body for _ in range(2)] == [b"POST /c abcde", b"GET /next "]


def test_connection_close_is_kept_and_what_follows_is_nobodys(server: Server) -> None:
    with wire(server.port) as client:
        client.send(get("/last", b"Connection: close") + get("/never"))
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"GET /last ", "close")
        assert client.closed()


def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(server: Server) -> None:
    with wire(server.port) as client:
        head, _, body = post("/e", b"abc", b"Expect: 100-continue").partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert client.answer().body == b"POST /e abc"


def test_a_client_that_has_sent_its_body_at_once_all_the_same_keeps_its_connection(server: Server) -> None:
    with wire(server.port) as client:
        client.send(post("/e", b"abc", b"Expect: 100-continue") + get("/on"))
        assert [client.answer().body for _ in range(2)] == [b"POST /e abc", b"GET /on "]


def test_no_leave_is_given_within_an_answer(server: Server) -> None:
    with wire(server.port) as client:
        client.send(post("/early", b"abc", b"Expect: 100-continue").removesuffix(b"abc"))
        assert client.answer().body == b"onetwo"
        assert client.closed()


def test_a_client_that_waits_for_leave_and_is_refused_gets_an_end_instead(server: Server) -> None:
    with wire(server.port) as client:
        client.send(post("/unread", b"abc", b"Expect: 100-continue").removesuffix(b"abc"))
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert client.closed()


def test_a_body_that_nobody_reads_is_thrown_away_and_the_connection_goes_on(server: Server) -> None:
    with wire(server.port) as client:
        client.send(post("/unread", b"x" * 3_000_000) + get("/on"))
        assert [client.answer().body for _ in range(2)] == [b"POST /unread ", b"GET /on "]


# 5: offers of another protocol.


@pytest.mark.parametrize(
    "offer",
    [
        [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"],
        [b"Upgrade: websocket", b"Connection: keep-alive, upgrade", b"Sec-WebSocket-Version: 13"],
        [b"Connection: upgrade", b"Upgrade: TLS/1.2"],
        [b"Upgrade: h2c"],
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_an_offer_of_another_protocol_is_passed_over_and_the_body_is_read(
    server: Server, offer: list[bytes], apart: bool
) -> None:
    with wire(server.port) as client:
        for request in (post("/up", b"body", *offer), get("/up", *offer), post("/next", b"b")):
            head, _, body = request.partition(b"\r\n\r\n")
            client.send(head + b"\r\n\r\n")
            time.sleep(0.02 * apart)
            client.send(body)
        assert [client.answer().body for _ in range(3)] == [b"POST /up body", b"GET /up ", b"POST /next b"]


def test_an_offer_with_a_body_in_chunks_is_passed_over_too(server: Server) -> None:
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    with wire(server.port) as client:
        client.send(head + b"3\r\nabc\r\n0\r\n\r\n" + get("/next"))
        assert [client.answer().body for _ in range(2)] == [b"POST /c abc", b"GET /next "]


# 6: idle connections.


def test_an_idle_connection_is_closed_after_its_time_whether_it_ever_asked_or_not(hasty: Server) -> None:
    with wire(hasty.port) as used, wire(hasty.port) as silent:
        used.send(get())
        used.answer()
        assert silent.closed()
        assert used.closed()
    wait_until(lambda: not hasty.connections)


def test_a_connection_that_is_used_is_not_idle(hasty: Server) -> None:
    with wire(hasty.port) as client:
        for _ in range(8):
            client.send(get())
            assert client.answer().status == 200
            time.sleep(0.2)


def test_blank_lines_are_no_use(hasty: Server) -> None:
    with wire(hasty.port) as client:
        for _ in range(30):
            time.sleep(0.1)
            with contextlib.suppress(OSError):  # at last
                client.send(b"\r\n")
        assert not hasty.connections


def test_a_request_under_way_is_not_idle(hasty: Server) -> None:
    with wire(hasty.port) as client:
        client.send(get("/wait"))
        time.sleep(1.6)
        hasty.app.go = True
        assert client.answer().body == b"GET /wait "


# 7: requests that do not come to their end.


@pytest.mark.parametrize("drip", [False, True])
@pytest.mark.parametrize(
    "begin", [b"POST /", b"POST /x HTTP/1.1\r\nHo", b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nabc"]
)
def test_what_does_not_come_to_its_end_is_408_counted_from_its_first_byte(
    hasty: Server, begin: bytes, drip: bool
) -> None:
    with wire(hasty.port) as client:
        time.sleep(0.3)
        begun = time.monotonic()
        client.send(begin)
        for _ in range(4 * drip):
            time.sleep(0.1)
            client.send(b"A")
        answer = client.answer()
        assert answer.status == 408
        assert answer.body == b"%b: not there within 0.5 s" % (b"body" if b"\r\n\r\n" in begin else b"headers")
        assert time.monotonic() - begun > 0.4
        assert answer.headers["connection"] == "close"
        assert client.closed()
    wait_until(lambda: not hasty.connections)


def test_a_body_that_nobody_waits_for_is_given_up_too(hasty: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.connection.LINGER_SECONDS", 0.3)
    with wire(hasty.port) as client:
        client.send(post("/unread", b"x" * 99)[:-50])
        assert client.answer().status == 200
        wait_until(lambda: not hasty.connections, 9)


def test_a_client_that_takes_nothing_of_its_answer_is_given_up(hasty: Server) -> None:
    with wire(hasty.port) as client:
        client.send(post("/big", b"x" * 20_000_000))
        wait_until(lambda: hasty.connections == 0, 10)


@pytest.mark.parametrize("headers", [[], [b"Connection: close"]])
def test_a_client_that_leaves_a_small_rest_of_its_answer_is_given_up_too(hasty: Server, headers: list[bytes]) -> None:
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect(("127.0.0.1", hasty.port))
        opened.sendall(get("/fill", *headers))
        wait_until(lambda: hasty.unsent > 0)
        hasty.app.go = True
        wait_until(lambda: hasty.connections == 0, 10)


def test_a_client_that_is_slow_but_goes_on_gets_all_of_its_answer(hasty: Server) -> None:
    size = 8_000_000
    with wire(hasty.port) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        client.send(post("/big", b"x" * size, b"Connection: close"))
        client.read_until(b"\r\n\r\n")
        left, begun = size + len(b"POST /big ") - len(client.received), time.monotonic()
        while left:
            part = client.socket.recv(60_000)
            assert part, f"{left} bytes are missing"
            left -= len(part)
            time.sleep(0.01)
        assert time.monotonic() - begun > 1, "longer than a client may do nothing"


def test_what_a_client_sends_after_its_last_request_does_not_break_its_answer(server: Server) -> None:
    size = 8_000_000
    for version, headers in ((b"1.1", [b"Connection: close"]), (b"1.0", [])):
        with wire(server.port) as client:
            client.send(post("/big", b"x" * size, *headers, version=version))
            client.read_until(b"\r\n\r\n")
            client.send(b"\r\n")
            left = size + len(b"POST /big ") - len(client.received)
            while left:
                part = client.socket.recv(60_000)
                assert part, f"{left} bytes are missing"
                left -= len(part)
            client.received = b""
            assert client.closed()


def test_a_request_that_could_not_be_read_on_has_all_its_time(hasty: Server) -> None:
    with wire(hasty.port) as client:
        client.send(get("/wait"))
        wait_until(lambda: hasty.app.waiting == 1)
        client.send(post("/next", b"x" * 500_000)[:-1])
        time.sleep(1)
        hasty.app.go = True
        assert client.answer().body == b"GET /wait "
        client.send(b"x")
        assert client.answer().status == 200


def test_an_upload_that_nobody_reads_may_take_its_time(hasty: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.connection.LINGER_SECONDS", 0.45)
    with wire(hasty.port) as client:
        client.send(post("/unread", b"x" * 8)[:-8])
        assert client.answer().status == 200
        for _ in range(4):
            time.sleep(0.1)
            client.send(b"x" * 2)
        client.send(get("/on"))
        assert client.answer().body == b"GET /on "


# 8: large heads.


@pytest.mark.parametrize(
    "request_",
    [
        get("/", b"X: " + b"x" * 40_000),
        get("/", *[b"X-%d: %b" % (number, b"x" * 100) for number in range(400)]),
        get("/" + "x" * 40_000),
        get("/", b"X: " + b"x" * 8_000_000),
    ],
)
@pytest.mark.parametrize("ends", [True, False])
def test_a_head_over_32_kib_is_refused_whether_it_ends_or_not(server: Server, request_: bytes, ends: bool) -> None:
    with wire(server.port) as client:
        client.send(request_ if ends else request_.removesuffix(b"\r\n\r\n"))
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert client.closed()


def test_a_head_of_nearly_32_kib_is_read_and_large_bodies_before_it_do_not_count(server: Server) -> None:
    headers = [b"X-%d: %b" % (number, b"x" * 100) for number in range(290)]
    with wire(server.port) as client:
        request = post("/b", b"x" * 300_000) + get("/h", *headers)
        for begin in range(0, len(request), 100_000):
            client.send(request[begin : begin + 100_000])
            time.sleep(0.02)
        assert [client.answer().body[:7] for _ in range(2)] == [b"POST /b", b"GET /h "]


def test_trailers_are_bounded_too(server: Server) -> None:
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    with wire(server.port) as client:
        client.send(head + b"".join(b"X-%d: %b\r\n" % (number, b"x" * 100) for number in range(400)))
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert client.closed()


@pytest.mark.parametrize("start", [b"0\r\nX: ", b"5;x="])
def test_a_trailer_or_a_chunks_extension_without_an_end_is_refused_before_it_costs_anything(
    server: Server, start: bytes
) -> None:
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with wire(server.port) as client:
        client.send(head + start)
        with contextlib.suppress(OSError):
            for _ in range(40):
                client.send(b"x" * 100_000)
                time.sleep(0.005)
        assert client.answer().status == 431


# 9: clients that send no more, and clients that have gone.


@pytest.mark.parametrize("path", ["/wait", "/stream"])
def test_a_client_that_sends_no_more_is_answered(server: Server, path: str) -> None:
    with wire(server.port) as client:
        client.send(post(path, b"abc"))
        client.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.app.waiting == 1)
        time.sleep(0.3)
        assert server.app.gone == 0
        server.app.go = True
        answer = client.answer()
        said = answer.body.replace(b":\n\n", b"")
        assert said == (b"data: 1\n\ndata: 2\n\n" if path == "/stream" else b"POST /wait abc")
        assert client.closed()


@pytest.mark.parametrize("path", ["/wait", "/stream"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_has_gone_ends_the_work_at_once(server: Server, path: str, reset: bool) -> None:
    with wire(server.port) as client:
        client.send(post(path, b"abc"))
        wait_until(lambda: server.app.waiting == 1)
        if path == "/stream":
            client.read_until(b"data: 1\n\n")
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wait_until(lambda: server.app.gone == 1, 10)
    wait_until(lambda: not server.connections)


def test_one_that_sends_no_more_and_then_goes_ends_the_work_too(server: Server) -> None:
    with wire(server.port) as client:
        client.send(post("/wait", b"abc"))
        client.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.app.waiting == 1)
        time.sleep(0.1)
        assert server.app.gone == 0
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wait_until(lambda: server.app.gone == 1)


@pytest.mark.parametrize(
    "following",
    [post("/next", b"abc")[:-1], b"POST /ne", get("/next") * 20, post("/next", b"x" * 100_000)],
    ids=["body", "head", "many", "large"],
)
def test_one_that_has_gone_within_its_next_request_ends_the_work_too(server: Server, following: bytes) -> None:
    with wire(server.port) as client:
        client.send(post("/wait", b"abc") + following)
        wait_until(lambda: server.app.waiting == 1)
    wait_until(lambda: server.app.gone == 1, 10)
    wait_until(lambda: not server.connections)


def test_one_that_takes_the_sign_of_life_and_then_goes_ends_the_work_too(server: Server) -> None:
    with wire(server.port) as client:
        client.send(post("/wait", b"abc"))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wait_until(lambda: server.app.gone == 1, 10)


@pytest.mark.parametrize("path", ["/wait", "/stream"])
def test_a_client_of_http_1_0_that_sends_no_more_counts_as_gone(server: Server, path: str) -> None:
    with wire(server.port) as client:
        client.send(post(path, b"abc", version=b"1.0"))
        wait_until(lambda: server.app.waiting == 1)
        client.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.app.gone == 1, 10)


def test_many_requests_and_no_more_are_all_answered(server: Server) -> None:
    with wire(server.port) as client:
        client.send(get("/1") + get("/2") + get("/3"))
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.answer().body for _ in range(3)] == [b"GET /1 ", b"GET /2 ", b"GET /3 "]
        assert client.closed()


@pytest.mark.parametrize("request_", [b"GET / HT", post("/x", b"abc")[:-1]])
def test_one_that_sends_no_more_amid_its_request_is_answered_or_closed(server: Server, request_: bytes) -> None:
    with wire(server.port) as client:
        client.send(request_)
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert client.closed()


# 10, 11: HTTP/1.0 and HEAD.


def test_a_stream_to_http_1_0_is_its_content_and_ends_with_the_connection(server: Server) -> None:
    server.app.go = True
    with wire(server.port) as client:
        client.send(post("/stream", b"", version=b"1.0"))
        head = client.read_until(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        assert client.read_until(b"data: 2\n\n") == b"data: 1\n\ndata: 2\n\n"
        assert client.closed()


def test_http_1_0_is_answered_and_closed_even_if_it_asks_to_keep(server: Server) -> None:
    with wire(server.port) as client:
        client.send(get("/old", b"Connection: keep-alive", version=b"1.0"))
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"GET /old ", "close")
        assert client.closed()


def test_head_has_the_headers_and_no_body(server: Server) -> None:
    with wire(server.port) as client:
        client.send(get("/h", method=b"HEAD") + get("/on"))
        answer = client.answer("HEAD")
        assert (answer.headers["content-length"], answer.body) == ("8", b"")
        assert client.answer().body == b"GET /on "


# What is no HTTP.


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        (400, b"GET / HTTP/1.1\nHost: x\n\n"),
        (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (405, b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"GET x HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nA: b\x00\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
    ],
)
def test_what_is_no_http_is_answered_once_and_closed(server: Server, status: int, sent: bytes) -> None:
    with wire(server.port) as client:
        client.send(sent + get("/smuggled") * 3)
        answer = client.answer()
        assert answer.status == status
        assert b"smuggled" not in answer.body
        assert client.closed()
    wait_until(lambda: not server.connections)


def test_a_head_request_that_is_refused_is_answered_without_a_body_too(server: Server) -> None:
    for refused in (b"HEAD / HTTP/1.1\r\n\r\n", get("/", b"X: " + b"x" * 40_000, method=b"HEAD")):
        with wire(server.port) as client:
            client.send(refused)
            answer = client.answer("HEAD")
            assert answer.status in (400, 431)
            assert int(answer.headers["content-length"]) > 0
            assert client.closed()
