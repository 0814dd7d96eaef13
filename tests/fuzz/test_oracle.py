"""Every fault of an answer is told, and of a right one none."""

import json

import pytest

from tests.fuzz.answers import NotHTTP, read
from tests.fuzz.attempt import Attempt, Outcome
from tests.fuzz.oracle import Limits, judge

LIMITS = Limits(timeout=3, hang=20)
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def answered(status: int, body: bytes = b"{}", kind: str = "application/json", *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def problem(status: int, *fields: str, told: dict[str, object] | None = None) -> bytes:
    members = {"type": "about:blank", "title": "t", "status": status, "detail": "d"} | (told or {})
    return answered(status, json.dumps(members).encode(), "application/problem+json", *fields)


def faults(received: bytes, attempt: Attempt | None = None, end: str = "open", seconds: float = 0.1) -> list[str]:
    attempt = attempt or Attempt("x", (GET,), methods=("GET",))
    answers, rest, malformed = (), b"", ""
    try:
        answers, rest = read(received, attempt.methods, end != "open", b"HEAD" in attempt.sent)
    except NotHTTP as error:
        malformed = str(error)
    return judge(attempt, Outcome(received, answers, end, seconds, malformed, rest), LIMITS)


def attempt(**members: object) -> Attempt:
    return Attempt(**({"kind": "x", "parts": (GET,), "methods": ("GET",)} | members))


NOISE = attempt(methods=None)
STREAM = b'event: delta\ndata: {"index": 0}\n\nevent: result\ndata: {}\n\n'


@pytest.mark.parametrize(
    ("received", "sent", "end"),
    [
        (HEALTHY, None, "open"),
        (problem(404), None, "open"),
        (problem(405, "Allow: GET"), None, "open"),
        (problem(429), attempt(statuses=frozenset({200})), "open"),
        (problem(400, "Connection: close"), attempt(methods=("GET", "GET")), "closed"),
        (HEALTHY + HEALTHY, attempt(methods=("GET", "GET")), "open"),
        (HEALTHY[:-2] + HEALTHY, attempt(methods=("HEAD", "GET")), "open"),
        (HEALTHY[:-2], attempt(parts=(b"HEAD / HTTP/1.1\r\n\r\n",), methods=None), "closed"),
        (answered(200, STREAM, "text/event-stream"), None, "open"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HEALTHY, attempt(parts=(b"Expect: 100-continue" + GET,)), "open"),
        (b"", NOISE, "closed"),
        (b"", attempt(end="half-close"), "closed"),
        (b"", attempt(parts=(b"",), methods=()), "open"),
    ],
)  # fmt: skip
def test_a_right_end_has_no_fault(received: bytes, sent: Attempt | None, end: str) -> None:
    assert faults(received, sent, end) == []


@pytest.mark.parametrize(
    ("received", "sent", "end", "said"),
    [
        (b"", None, "hung", "neither answered nor ended the connection within 20 s"),
        (b"", None, "refused", "took no connection"),
        (b"", None, "closed", "ended without an answer"),
        (b"", None, "reset", "ended without an answer"),
        (b"<html>\r\n\r\n", None, "open", "no HTTP"),
        (HEALTHY + b"more", None, "hung", "no whole answer"),
        (HEALTHY[:-1], None, "closed", "breaks off"),
        (HEALTHY, None, "hung", "neither answered nor ended"),
        (HEALTHY + HEALTHY, None, "open", "more answers than requests"),
        (HEALTHY * 3, NOISE, "open", "more answers than requests"),
        (HEALTHY, attempt(parts=(b"\r\n",), methods=()), "open", "more answers than requests"),
        (HEALTHY, attempt(methods=("GET", "GET")), "closed", "ended without an answer"),
        (HEALTHY, attempt(methods=("HEAD",)), "hung", "no whole answer"),
        (problem(500), None, "open", "status 500"),
        (problem(503), None, "open", "status 503"),
        (problem(502), NOISE, "open", "status 502"),
        (answered(307, b"", "text/plain"), None, "open", "status 307"),
        (problem(404), attempt(statuses=frozenset({200, 413})), "open", "status 404 where 200 or 413 is right"),
        (problem(408), None, "open", "before the time-out"),
        (problem(504), None, "open", "before the time-out"),
        (answered(400, b"Invalid", "text/plain"), None, "open", "text/plain, not application/problem+json"),
        (problem(400, told={"detail": None}), None, "open", "has no detail"),
        (problem(400, told={"status": 404}), None, "open", "status is not the answer's"),
        (answered(400, b"[]", "application/problem+json"), None, "open", "no object"),
        (answered(400, b"{", "application/problem+json"), None, "open", "no JSON"),
        (
            problem(404) + HEALTHY, attempt(methods=("GET", "GET"), turns=(frozenset({200}), frozenset({404}))), "open",
            "status 404 where 200 is right",
        ),
        (problem(404), attempt(names="/nothing/7"), "open", "does not name the path"),
        (problem(405), None, "open", "without Allow"),
        (problem(415), attempt(parts=(b"Content-Encoding: br" + GET,)), "open", "without Accept-Encoding"),
        (answered(200, b'{"a": NaN}'), None, "open", "no application/json"),
        (answered(200, b"<p>", "text/html"), None, "open", "status 200 is text/html"),
        (answered(200, STREAM[:-1], "text/event-stream"), None, "open", "last event has no end"),
        (answered(200, STREAM[: STREAM.index(b"event: result")], "text/event-stream"), None, "open", "its events are delta"),
        (answered(200, b"event: error\ndata: {}\n\n", "text/event-stream"), None, "open", "a problem has no type"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HEALTHY, None, "open", "status 100, and nobody asked"),
        (answered(200, b"{}", "application/json", "Connection: close") + HEALTHY, NOISE, "open", "connection closes"),
        (answered(404, b'{"detail": "smuggled"}'), attempt(hidden=True), "open", "hidden in a body was answered"),
        (HEALTHY, attempt(old=True), "open", "did not end with the answer"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            attempt(old=True), "closed", "has a Transfer-Encoding",
        ),
    ],
)  # fmt: skip
def test_a_fault_is_told(received: bytes, sent: Attempt | None, end: str, said: str) -> None:
    assert any(said in each for each in faults(received, sent, end)), faults(received, sent, end)


@pytest.mark.parametrize("status", [408, 504])
def test_a_time_out_in_time_is_no_fault(status: int) -> None:
    assert faults(problem(status), seconds=3.1) == []


def test_an_error_event_of_the_service_is_a_fault() -> None:
    told = {"type": "about:blank", "title": "t", "status": 500, "detail": "d"}
    body = f"event: error\ndata: {json.dumps(told)}\n\n".encode()
    assert "error event of status 500" in faults(answered(200, body, "text/event-stream"))[0]
