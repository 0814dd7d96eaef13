"""What holds for every request, whatever it asks: over the real server, with a pipeline behind it."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.app import DIALECTS, build
from serving.api.body import read
from serving.api.dialect import Dialect, Operation, Service
from serving.api.schemas import TranslateResponse
from serving.api.statuses import Refusal
from serving.http.state import Limits
from serving.metrics import Metrics
from tests.service import Answer, fetch, free_port
from tests.serving.conftest import Api, answering, listening
from tests.serving.http.raw import get, post, wire

TEXT = b'{"text": "Hello.", "max_tokens": 3}'
GETS = ("/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json")
POSTS = ("/v1/translate", "/v1/encode", "/v1/attention")


class Shout(BaseModel):
    words: list[str]


class Toy(Dialect):
    """Another way to ask for a translation: all of a dialect, in one place."""

    prefix = "/toy"

    def operations(self) -> Sequence[Operation]:
        return [Operation("POST", "/toy/shout", self.shout, Shout), Operation("GET", "/toy/fail", self.fail)]

    async def shout(self, request: Request) -> Response:
        """Translate, loudly."""
        body = await read(request, Shout)
        pipeline, source, target = self.service.registry.choose(None, None, None)
        translations, _ = await pipeline.translate(body.words, source, target)
        return PlainTextResponse("\n".join(each.text.upper() for each in translations))

    async def fail(self, request: Request) -> Response:
        """Fail in a way that nobody thought of."""
        raise RuntimeError("nobody thought of this")

    def refuse(self, refusal: Refusal) -> Response:
        return PlainTextResponse(f"OH NO: {refusal.error.detail}", 418, {"X-Kind": refusal.error.kind})


@pytest.fixture(scope="module")
def two(tiny_bundle: Path) -> Iterator[Api]:
    """A service of two dialects."""
    with answering(tiny_bundle, (*DIALECTS, Toy)) as api:
        yield api


def problem(answer: Answer, status: int) -> Any:
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.content
    assert answer.json["status"] == status
    assert answer.headers["X-Request-Id"]
    return answer.json


# Dialects.


def test_a_second_dialect_answers_on_its_routes_and_in_its_form(two: Api) -> None:
    answer = fetch(f"{two.url}/toy/shout", b'{"words": ["Hello.", "One."]}')
    plain = fetch(f"{two.url}/v1/translate", b'{"text": ["Hello.", "One."]}').json["translations"]
    assert answer.content.decode() == "\n".join(each["text"].upper() for each in plain)
    for path, body, said in (
        ("/toy/shout", b"{}", "words: Field required"),
        ("/toy/shout", b"[" * 3_000_000, "body has 3,000,000 bytes; the limit is 2,000,000"),
        ("/toy/nothing", None, "there is no /toy/nothing"),
        ("/toy/shout", None, "/toy/shout takes POST, not GET"),
        ("/toy/fail", None, "this is a bug of the service; its log says more"),
    ):
        answer = fetch(f"{two.url}{path}", body)
        assert (answer.status, answer.content.decode()) == (418, f"OH NO: {said}")
        assert answer.headers["X-Request-Id"]
    assert problem(fetch(f"{two.url}/nothing"), 404)["detail"] == "there is no /nothing"


def test_what_is_described_is_only_what_a_dialect_says_of_itself(two: Api) -> None:
    assert set(fetch(f"{two.url}/openapi.json").json["paths"]) == {*GETS, *POSTS}


# Middleware sees every request.


class RefuseAll:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", 403)(scope, receive, send)


class RaiseUnauthorized(RefuseAll):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Bearer"})


@pytest.fixture
def guarded(two: Api, tmp_path: Path) -> Iterator[Any]:
    """The address of the same service behind another middleware."""

    def start(middleware: type[RefuseAll], inside: bool) -> str:
        app, port = build(Service(two.registry, metrics)), free_port()
        if inside:
            app.user_middleware.append(Middleware(middleware))
        else:
            app.add_middleware(middleware)
        server = listening(app, port)
        server.__enter__()
        opened.append(server)
        return f"http://127.0.0.1:{port}"

    opened: list[Any] = []
    metrics = Metrics(tmp_path)
    yield start
    for server in opened:
        server.__exit__(None, None, None)
    metrics.close()


def test_a_middleware_that_refuses_everything_refuses_everything(guarded: Any) -> None:
    url = guarded(RefuseAll, inside=False)
    for path in (*GETS, *POSTS, "/nothing"):
        for method, body in (("GET", None), ("POST", TEXT), ("HEAD", None), ("DELETE", None), ("OPTIONS", None)):
            assert fetch(f"{url}{path}", body, method).status == 403
    with wire(int(url.rpartition(":")[2])) as client:
        client.send(b"\x16\x03\x01 not HTTP at all\r\n\r\n")
        assert client.answer().status == 403


def test_an_http_exception_keeps_its_own_status_and_headers(guarded: Any) -> None:
    url = guarded(RaiseUnauthorized, inside=True)
    for path, body in (("/v1/translate", TEXT), ("/v1/models", None), ("/nothing", None)):
        answer = fetch(f"{url}{path}", body)
        assert problem(answer, 401) == {
            "type": "about:blank",
            "title": "Unauthorized",
            "status": 401,
            "detail": "who are you?",
        }
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("given", ["abc-123", "x" * 128])
def test_a_request_keeps_the_id_that_it_has(two: Api, given: str) -> None:
    with wire(two.port) as client:
        for request in (post("/v1/translate", TEXT, b"X-Request-Id: " + given.encode()), get("/nothing")):
            client.send(request)
        assert client.answer().headers["x-request-id"] == given
        assert len(client.answer().headers["x-request-id"]) == 24


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"\xff"])
def test_an_id_that_is_none_is_replaced(two: Api, given: bytes) -> None:
    with wire(two.port) as client:
        client.send(get("/healthz", b"X-Request-Id: " + given))
        assert len(client.answer().headers["x-request-id"]) == 24


def counted(api: Api) -> dict[tuple[str, str, str], float]:
    """Requests by route, method and status."""
    families = text_string_to_metric_families(fetch(f"{api.url}/metrics").content.decode())
    samples = [each for family in families for each in family.samples if each.name == "dragoman_requests_total"]
    return {(each.labels["route"], each.labels["method"], each.labels["status"]): each.value for each in samples}


def test_every_request_is_counted_and_strangers_make_no_series(two: Api) -> None:
    before = counted(two)
    fetch(f"{two.url}/v1/translate", TEXT)
    fetch(f"{two.url}/v1/translate", b"{")
    fetch(f"{two.url}/v1/translate", None)
    fetch(f"{two.url}/toy/fail")
    for number in range(5):
        fetch(f"{two.url}/nothing/{number}")
    with wire(two.port) as client:
        client.send(b"nonsense\r\n\r\n")
        client.answer()
    after = counted(two)
    risen = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    assert risen.pop(("/metrics", "GET", "200")) == 1
    assert risen == {
        ("/v1/translate", "POST", "200"): 1,
        ("/v1/translate", "POST", "400"): 1,
        ("/v1/translate", "GET", "405"): 1,
        ("/toy/fail", "GET", "418"): 1,
        ("none", "GET", "404"): 5,
        ("none", "other", "400"): 1,
    }


# What Starlette and the server answer.


@pytest.mark.parametrize("path", ["/v1/translate/", "/v1//translate", "/V1/translate", "/healthz/", "//evil.example/x"])
def test_nothing_is_redirected(two: Api, path: str) -> None:
    for body in (TEXT, None):
        with wire(two.port) as client:
            client.send(post(path, TEXT) if body else get(path))
            answer = client.answer()
        assert answer.status == 404
        assert json.loads(answer.body)["detail"] == f"there is no {path}"
        assert "location" not in answer.headers


def test_another_method_is_named_with_what_is_allowed(two: Api) -> None:
    answer = fetch(f"{two.url}/v1/translate", None)
    assert problem(answer, 405)["detail"] == "/v1/translate takes POST, not GET"
    assert answer.headers["Allow"] == "POST"
    answer = fetch(f"{two.url}/healthz", b"")
    assert problem(answer, 405)["detail"] == "/healthz takes GET, HEAD, not POST"
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_the_body(two: Api, path: str) -> None:
    answer, whole = fetch(f"{two.url}{path}", method="HEAD"), fetch(f"{two.url}{path}")
    assert (answer.status, answer.content) == (200, b"")
    assert answer.headers["Content-Type"] == whole.headers["Content-Type"]
    assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"\x16\x03\x01 not HTTP at all\r\n\r\n", 400, "the request is not HTTP/1.1"),
        (get("/", b"X: " + b"x" * 40_000), 431, "the limit is 32,768"),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "x:443 takes GET, HEAD, POST, not CONNECT"),
        (
            b"POST /v1/translate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
            "the request is not HTTP/1.1",
        ),
    ],
)
def test_what_the_server_refuses_is_a_problem_too(two: Api, sent: bytes, status: int, said: str) -> None:
    with wire(two.port) as client:
        client.send(sent)
        answer = client.answer()
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
        assert said in json.loads(answer.body)["detail"]
        assert answer.headers["x-request-id"]
        assert client.closed()


@pytest.mark.parametrize("whole_head", [False, True])
def test_a_request_that_never_ends_is_a_problem_too(two: Api, guarded: Any, whole_head: bool, tmp_path: Path) -> None:
    port = free_port()
    metrics = Metrics(tmp_path / "own")
    with (
        listening(build(Service(two.registry, metrics)), port, Limits(request_seconds=0.3, idle_seconds=100)),
        wire(port) as client,
    ):
        client.send(post("/v1/translate", TEXT)[: -1 if whole_head else 30])
        answer = client.answer()
        assert (answer.status, answer.headers["content-type"]) == (408, "application/problem+json")
        part = "body" if whole_head else "headers"
        assert json.loads(answer.body) == {
            "type": "about:blank",
            "title": "Request timeout",
            "status": 408,
            "detail": f"{part}: not there within 0.3 s",
            "field": part,
            "limit": 0.3,
            "unit": "seconds",
        }
    metrics.close()


# Bodies.


def test_a_body_in_gzip_is_inflated(two: Api) -> None:
    with wire(two.port) as client:
        for encoding in (b"gzip", b"GZIP", b"x-gzip"):
            client.send(post("/v1/translate", gzip.compress(TEXT), b"Content-Encoding: " + encoding))
            assert client.answer().status == 200
        for two_members in (gzip.compress(TEXT[:5]) + gzip.compress(TEXT[5:]), gzip.compress(TEXT) + b"\0" * 9):
            client.send(post("/v1/translate", two_members, b"Content-Encoding: gzip"))
            assert client.answer().status == 200
        client.send(post("/v1/translate", TEXT, b"Content-Encoding: identity"))
        assert client.answer().status == 200


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip"])
def test_other_encodings_are_refused_and_those_that_are_read_are_named(two: Api, encoding: str) -> None:
    with wire(two.port) as client:
        client.send(post("/v1/translate", zlib.compress(TEXT), b"Content-Encoding: " + encoding.encode()))
        answer = client.answer()
        assert (answer.status, answer.headers["accept-encoding"]) == (415, "gzip, identity")
        assert f"Content-Encoding: {encoding!r}" in json.loads(answer.body)["detail"]
        client.send(get("/healthz"))
        assert client.answer().status == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (
            gzip.compress(b"0" * 50_000_000),
            413,
            "body has 2,000,001 bytes or more when inflated; the limit is 2,000,000",
        ),
        (gzip.compress(TEXT)[:-1], 400, "body: not gzip: it ends too early"),
        (b"", 400, "body: not gzip: it ends too early"),
        (gzip.compress(TEXT) + b"more", 400, "body: not gzip: "),
        (gzip.compress(TEXT) + gzip.compress(TEXT)[:-1], 400, "body: not gzip: it ends too early"),
        (gzip.compress(b"") + gzip.compress(b"0" * 2_000_001), 413, "body has 2,000,001 bytes or more when inflated"),
        (TEXT, 400, "body: not gzip: "),
    ],
    ids=["bomb", "cut", "empty", "followed", "second cut", "second too large", "plain"],
)
def test_bad_gzip_is_named(two: Api, body: bytes, status: int, said: str) -> None:
    with wire(two.port) as client:
        client.send(post("/v1/translate", body, b"Content-Encoding: gzip"))
        answer = client.answer()
        assert answer.status == status
        assert said in json.loads(answer.body)["detail"]


def test_a_body_of_just_the_limit_is_read_and_one_more_byte_is_too_much(two: Api) -> None:
    for more in (0, 1):
        content = TEXT + b" " * (2_000_000 - len(TEXT) + more)
        for body, headers in ((content, []), (gzip.compress(content), [b"Content-Encoding: gzip"])):
            with wire(two.port) as client:
                client.send(post("/v1/translate", body, *headers))
                assert client.answer().status == (413 if more else 200)


# The native dialect.


@pytest.mark.parametrize(
    "bug", [KeyError("nobody"), RuntimeError("nobody"), LookupError("no"), FileNotFoundError("no")]
)
def test_whatever_nobody_thought_of_is_500_and_a_problem(
    two: Api, monkeypatch: pytest.MonkeyPatch, bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def choose(*_: object) -> None:
        raise bug

    monkeypatch.setattr(two.registry, "choose", choose)
    answer = fetch(f"{two.url}/v1/translate", TEXT)
    assert problem(answer, 500)["detail"] == "this is a bug of the service; its log says more"
    assert f"request {answer.headers['X-Request-Id']} failed" in caplog.text


def test_a_stream_is_described_with_its_events(two: Api) -> None:
    document = fetch(f"{two.url}/openapi.json").json
    content = document["paths"]["/v1/translate"]["post"]["responses"]["200"]["content"]
    assert "`delta` (with a StreamedDelta)" in content["text/event-stream"]["schema"]["description"]
    assert {"StreamedDelta", "StreamedResult", "Problem"} <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 3, "alternatives": 2, "log_probabilities": True},
        {"sampling": {"seed": 5}, "max_tokens": 3, "log_probabilities": True},
    ],
)
def test_a_translation_is_written_as_it_is_described(two: Api, options: dict[str, Any]) -> None:
    answer = fetch(f"{two.url}/v1/translate", json.dumps({"text": ["Hello.", "One. Two."]} | options).encode())
    body = TranslateResponse.model_validate_json(answer.content)
    assert json.loads(body.model_dump_json(exclude_none=True)) == answer.json
    assert body.seed == options.get("sampling", {}).get("seed")
    for translation in body.translations:
        assert (translation.alternatives is not None) == ("alternatives" in options)
        assert (translation.log_probabilities is not None) == ("log_probabilities" in options)


@pytest.mark.parametrize("route", POSTS)
def test_a_model_is_asked_by_its_name(two: Api, route: str) -> None:
    assert fetch(f"{two.url}{route}", b'{"text": "Hello.", "model": "tiny"}').status == 200
    answer = fetch(f"{two.url}{route}", b'{"text": "Hello.", "model": "huge"}')
    assert problem(answer, 422)["detail"] == "model: 'huge' is not a model of this service; it has tiny"


def test_the_document_describes_every_route_and_all_its_references_lead_somewhere(two: Api) -> None:
    document = fetch(f"{two.url}/openapi.json").json
    schemas = document["components"]["schemas"]

    def check(part: Any) -> None:
        if isinstance(part, dict):
            if "$ref" in part:
                assert part["$ref"].removeprefix("#/components/schemas/") in schemas
            for value in part.values():
                check(value)
        elif isinstance(part, list):
            for value in part:
                check(value)

    check(document)
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"].endswith(".")
            assert set(operation["responses"]) == {"200", "default"}
