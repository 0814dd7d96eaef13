"""Requests with odd heads: methods, targets, versions, header fields, sizes, protocols to change to."""

import random
from dataclasses import replace

from tests.fuzz.attempt import Attempt
from tests.fuzz.valid import Valid, post, valid

__all__ = ["KINDS"]

TOO_LARGE = frozenset({400, 414, 431})
LIMIT = 32 * 1024
"""Bytes of header fields that are read."""


def huge_head(chance: random.Random) -> Attempt:
    """More header fields than are read."""
    request, size = post(chance), chance.randint(LIMIT + 2000, 3 * LIMIT)
    if chance.random() < 0.5:
        more = [("X-Large", "x" * size)]
    else:
        more = [(f"X-{number}", "y" * 20) for number in range(size // 28)]
    return request.with_headers(*more).attempt(statuses=frozenset({431}))


def large_head(chance: random.Random) -> Attempt:
    """Nearly as many as are read."""
    return post(chance).with_headers(("X-Large", "x" * chance.randint(1000, LIMIT - 2000))).attempt()


def many_headers(chance: random.Random) -> Attempt:
    """Within the limit, if one lets so many of them pass."""
    more = [
        (chance.choice(["X-A", "Cookie", "Accept", f"X-{number}"]), "v") for number in range(chance.randint(50, 500))
    ]
    return post(chance).with_headers(*more).attempt(statuses=frozenset({200, 431}))


def long_target(chance: random.Random) -> Attempt:
    target = "/healthz?" + "q" * chance.choice([1000, 20_000, 40_000, 100_000])
    allowed = frozenset({200}) if len(target) < 2000 else TOO_LARGE | {200}
    return Valid("GET", target, statuses=allowed).attempt()


def head_that_never_ends(chance: random.Random) -> Attempt:
    """It is answered with 408."""
    wire = post(chance).wire().split(b"\r\n\r\n")[0] + b"\r\nX-More: "
    return Attempt("", (wire,), methods=("POST",), statuses=frozenset({408}))


def unknown_method(chance: random.Random) -> Attempt:
    known = ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]
    if chance.random() < 0.5:
        request = Valid(chance.choice(known), "/v1/translate", statuses=frozenset({405, 501}))
        return request.attempt()
    odd = ["CONNECT", "PROPFIND", "FOO", "get", "P\xd6ST", "G" * 500, "M-SEARCH", "", "GET\t"]
    return Attempt("", (Valid(chance.choice(odd), "/v1/translate").wire(),), end="half-close")


def odd_target(chance: random.Random) -> Attempt:
    targets = [
        "http://127.0.0.1/healthz", "http://elsewhere.example/healthz", "https://[::1]/x", "*", "//healthz", "/../etc",
        "/%2e%2e/%2e%2e/x", "/healthz%00", "/%zz", "/%", "/healthz?", "/healthz?a=b&a=b#f", "/healthz#f", "?x", "x", "",
        "/\xfcber", "/a b", "/healthz;v=1", "/%c3%28", "http://", "127.0.0.1:80", "/v1//translate", "/healthz/.", "\\",
        "/%f0%28%8c%28", "/\x7f", "/'\"><script>", "http:///healthz", "/v1/translate?" + "a=1&" * 500,
    ]  # fmt: skip
    method = chance.choice(["GET", "GET", "HEAD", "OPTIONS"])
    return Attempt("", (Valid(method, chance.choice(targets)).wire(),))


def odd_version(chance: random.Random) -> Attempt:
    odd = [
        "HTTP/1.2",
        "HTTP/2.0",
        "HTTP/3",
        "HTTP/0.9",
        "HTTP/9.9",
        "HTP/1.1",
        "http/1.1",
        "HTTP/1.10",
        "HTTP/",
        "ICY/1.0",
    ]
    return Attempt("", (valid(chance).wire(chance.choice(odd)),), end=chance.choice(["wait", "half-close"]))


def version_1_0(chance: random.Random) -> Attempt:
    """A stream has no chunk sizes then; the connection ends with the answer."""
    request = valid(chance)
    return request.attempt(parts=(request.wire("HTTP/1.0"),), old=True)


def change_to_h2c(chance: random.Random) -> Attempt:
    """As stock Java clients ask: it is answered as HTTP/1.1."""
    settings = "AAMAAABkAARAAAAAAAIAAAAA"
    fields = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", settings)]
    return valid(chance).with_headers(*fields).attempt()


def change_to_websocket(chance: random.Random) -> Attempt:
    fields = [("Connection", "Upgrade"), ("Upgrade", chance.choice(["websocket", "TLS/1.3", "x", "h2c, websocket"]))]
    fields += [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("Sec-WebSocket-Version", "13")]
    request = valid(chance).with_headers(*fields)
    return request.attempt(statuses=request.statuses | {400, 426})


def expectation(chance: random.Random) -> Attempt:
    request = post(chance).with_headers(("Expect", chance.choice(["100-continue", "100-Continue"])))
    wire = request.wire()
    place = len(wire) - len(request.body)
    parts = (wire[:place], wire[place:]) if chance.random() < 0.5 else (wire,)
    return request.attempt(parts=parts, pause=0.05)


def expectation_of_nothing(chance: random.Random) -> Attempt:
    """The body never comes, though it is asked for: 408."""
    request = post(chance).with_headers(("Expect", "100-continue"))
    wire = request.wire()
    return request.attempt(parts=(wire[: len(wire) - len(request.body)],), statuses=frozenset({408}))


def unknown_expectation(chance: random.Random) -> Attempt:
    return post(chance).with_headers(("Expect", "miracles")).attempt(statuses=frozenset({200, 417}))


def odd_host(chance: random.Random) -> Attempt:
    """None, two, or one that is no name: it is answered or refused, and never repeated."""
    request = valid(chance)
    others = tuple(each for each in request.head if each[0] != "Host")
    hosts = [(), (("Host", "a"), ("Host", "b")), (("Host", ""),), (("Host", "a b/@?#"),), (("Host", "evil.example"),)]
    wire = request.wire(head=(*chance.choice(hosts), *others))
    return request.attempt(parts=(wire,), statuses=request.statuses | {400}, names="")


def odd_field(chance: random.Random) -> Attempt:
    odd = [
        b"X-Space : 1", b": empty", b"no colon", b" X: folded", b"\tX: folded", b"X: a\r\n b", b"X: \x00", b"X: \xff\xfe",
        b"X\x80: 1", b"X: a\rb", b"X: \x7f", b"(X): 1", b"X: " + bytes(range(1, 32)), b"Connection: keep-alive, close, x",
        b"Connection: \x00", b"Transfer-Encoding : chunked", b"X:", b"X: \xef\xbb\xbf",
    ]  # fmt: skip
    head, end, body = valid(chance).wire().partition(b"\r\n\r\n")
    return Attempt("", (head + b"\r\n" + chance.choice(odd) + end + body,), end=chance.choice(["wait", "half-close"]))


def harmless_fields(chance: random.Random) -> Attempt:
    """What proxies and clients add: it changes no answer."""
    known = [
        ("X-Request-ID", "a" * chance.randint(1, 200)), ("X-Request-ID", "\xe4 <b>"), ("traceparent", "00-x-y-01"),
        ("X-Forwarded-For", "1.2.3.4, x"), ("X-Forwarded-Proto", "gopher"), ("Forwarded", "for=;;"), ("Cookie", "a=b; c"),
        ("Accept", "text/html;q=0.1"), ("Accept", "x/\xff"), ("Accept-Encoding", "gzip;q=x, *;q=0"), ("Range", "bytes=0-1"),
        ("If-None-Match", "*"), ("If-Modified-Since", "Thu, 01 Jan 2099 00:00:00 GMT"), ("Authorization", "Bearer \xe4"),
        ("Authorization", "Basic !!!"), ("Origin", "null"), ("TE", "trailers"), ("Via", "1.1 x"), ("Max-Forwards", "0"),
        ("X-HTTP-Method-Override", "DELETE"), ("Content-Language", "de"), ("Connection", "keep-alive"),
        ("Keep-Alive", "timeout=-1"), ("Accept-Language", "x" * 300), ("Date", "yesterday"),
    ]  # fmt: skip
    return valid(chance).with_headers(*chance.sample(known, chance.randint(1, 6))).attempt()


def closing(chance: random.Random) -> Attempt:
    return valid(chance).with_headers(("Connection", chance.choice(["close", "Close", "close, te"]))).attempt()


def query(chance: random.Random) -> Attempt:
    """A query that nobody asked for changes nothing."""
    request = valid(chance)
    odd = ["?", "?a=1", "?a=%00&b=%ff", "?" + "x=y&" * 200, "?text=%F0%9F%98%80", "?&&==&", "?a[]=1&a[0]=2"]
    return replace(request, target=request.target + chance.choice(odd)).attempt()


KINDS = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        huge_head, large_head, many_headers, long_target, head_that_never_ends, unknown_method, odd_target, odd_version,
        version_1_0, change_to_h2c, change_to_websocket, expectation, expectation_of_nothing, unknown_expectation, odd_host, odd_field,
        harmless_fields, closing, query,
    )
}  # fmt: skip
"""What makes an attempt, by name."""
