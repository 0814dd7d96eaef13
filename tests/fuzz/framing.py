"""Requests whose bodies are framed in other ways: lengths, chunks, both, one request hidden in another."""

import random

from tests.fuzz.attempt import MARKER, Attempt
from tests.fuzz.valid import Valid, post

__all__ = ["KINDS"]

HIDDEN = b"GET /" + MARKER + b" HTTP/1.1\r\nHost: x\r\n\r\n"
REFUSED = frozenset({400, 413, 431, 501})
FOLLOWING = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def _headed(request: Valid, *fields: tuple[str, str], version: str = "HTTP/1.1") -> bytes:
    """The head of ``request`` with ``fields`` in place of Content-Length."""
    head = tuple(each for each in request.head if each[0] != "Content-Length")
    return Valid(request.method, request.target).wire(version, (*head, *fields))


def _chunks(chance: random.Random, body: bytes, extension: bytes = b"") -> bytes:
    """``body`` in chunks, without the last."""
    found, begin = b"", 0
    while begin < len(body):
        part = body[begin : begin + chance.randint(1, 60)]
        size = f"{len(part):x}" if chance.random() < 0.5 else f"{len(part):04X}"
        found += size.encode() + extension + b"\r\n" + part + b"\r\n"
        begin += len(part)
    return found


def wrong_length(chance: random.Random) -> Attempt:
    """Too small, and what follows is another request then, or so large that the rest never arrives."""
    request = post(chance)
    length = max(0, len(request.body) + chance.choice([-10, -1, 1, 2, 100]))
    sent = _headed(request, ("Content-Length", str(length))) + request.body
    return Attempt("", (sent,), end=chance.choice(["wait", "half-close"]))


def bad_length(chance: random.Random) -> Attempt:
    request = post(chance)
    good = str(len(request.body))
    bad = [
        "-1",
        "+5",
        "0x10",
        "1e2",
        "5 5",
        f"{good}, {int(good) + 1}",
        "abc",
        "١٢".encode().decode("latin-1"),
        "9" * 30,
    ]
    sent = _headed(request, ("Content-Length", chance.choice(bad))) + request.body + HIDDEN
    return Attempt("", (sent,), methods=("POST",), statuses=REFUSED, hidden=True)


def two_lengths(chance: random.Random) -> Attempt:
    request = post(chance)
    lengths = [("Content-Length", "3"), ("Content-Length", str(len(request.body)))]
    chance.shuffle(lengths)
    sent = _headed(request, *lengths) + request.body + HIDDEN
    return Attempt("", (sent,), methods=("POST",), statuses=REFUSED, hidden=True)


def huge_length(chance: random.Random) -> Attempt:
    """Over the limit as it says, and it is not sent."""
    request = post(chance)
    sent = _headed(request, ("Content-Length", str(chance.randint(10**8, 10**15)))) + request.body
    return Attempt("", (sent,), methods=("POST",), statuses=frozenset({408, 413}))


def no_length(chance: random.Random) -> Attempt:
    """Then there is no body, and what follows is no request."""
    return Attempt("", (_headed(post(chance)),), methods=("POST",), statuses=frozenset({400, 411, 422}))


def length_and_chunks(chance: random.Random) -> Attempt:
    """The classic way to smuggle a request: RFC 9112, section 6.3, has it refused, or the connection closed after it."""
    request = post(chance)
    fields = [("Content-Length", str(len(request.body))), ("Transfer-Encoding", "chunked")]
    chance.shuffle(fields)
    sent = _headed(request, *fields) + b"0\r\n\r\n" + HIDDEN
    return Attempt("", (sent,), methods=("POST",), statuses=frozenset({400, 422}), hidden=True)


def odd_transfer_encoding(chance: random.Random) -> Attempt:
    """Where the body ends nobody can tell, so what follows is no request; but for the first, which ends as chunks do."""
    request = post(chance)
    odd = ["gzip, chunked", "identity", "xchunked", "chunked, gzip", "chunked, identity", '"chunked"', "\x0bchunked"]
    coding = chance.choice(odd)
    sent = _headed(request, ("Transfer-Encoding", coding)) + _chunks(chance, request.body) + b"0\r\n\r\n"
    following = b"" if coding == odd[0] else HIDDEN
    return Attempt("", (sent + following,), end="half-close", hidden=True)


def chunked(chance: random.Random) -> Attempt:
    """As it should be, with extensions and trailers or without."""
    request = post(chance)
    extension = chance.choice([b"", b";a=b", b";q", b';s="x"'])
    trailer = chance.choice([b"", b"", b"X-Sum: 1\r\n", b"Content-Length: 3\r\n"])
    sent = _headed(request, ("Transfer-Encoding", chance.choice(["chunked", "Chunked"])))
    sent += _chunks(chance, request.body, extension) + b"0\r\n" + trailer + b"\r\n"
    if b"Content-Length" in trailer:
        return Attempt("", (sent,), methods=("POST",), statuses=frozenset({200, 400}))
    return Attempt("", (sent,), methods=("POST",), statuses=frozenset({200}))


def chunked_with_hidden(chance: random.Random) -> Attempt:
    """A chunk that is a request: it is a part of the body."""
    request = post(chance)
    sent = _headed(request, ("Transfer-Encoding", "chunked")) + _chunks(chance, HIDDEN) + b"0\r\n\r\n"
    return Attempt("", (sent,), methods=("POST",), statuses=frozenset({400, 422}), hidden=True)


def hidden_in_body(chance: random.Random) -> Attempt:
    request = Valid("POST", chance.choice(["/v1/translate", "/v1/nothing", "/healthz"]), HIDDEN * chance.randint(1, 3))
    sent = request.wire() + FOLLOWING
    return Attempt("", (sent,), methods=("POST", "GET"), hidden=True)


def bad_chunks(chance: random.Random) -> Attempt:
    request = post(chance)
    good = _chunks(chance, request.body)
    bad = [
        b"xyz\r\n" + request.body,
        b"-1\r\n" + request.body,
        b"F" * 17 + b"\r\n" + request.body,
        b"FFFFFFFFFFFFFFFF\r\n" + request.body,
        b"7FFFFFFFFFFFFFFF\r\n" + request.body,
        b"\r\n" + good,
        b"5\r\nabcdefgh\r\n0\r\n\r\n",
        b"5;" + b"e" * 40_000 + b"\r\nabcde\r\n0\r\n\r\n",
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b" 5\r\nabcde\r\n0\r\n\r\n",
        good + b"0\r\n" + b"X-Trailer: " + b"t" * 70_000 + b"\r\n\r\n",
        good + b"0\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        good.replace(b"\r\n", b"\n") + b"0\n\n",
        good,
        good + b"0\r\n",
        good[: len(good) // 2],
    ]
    sent = _headed(request, ("Transfer-Encoding", "chunked")) + chance.choice(bad)
    return Attempt("", (sent,), end=chance.choice(["wait", "half-close"]))


def many_small_chunks(chance: random.Random) -> Attempt:
    request = post(chance)
    body = b" " * 3000 + request.body
    chunks = b"".join(b"1\r\n%c\r\n" % each for each in body)
    sent = _headed(request, ("Transfer-Encoding", "chunked")) + chunks + b"0\r\n\r\n"
    return Attempt("", (sent,), methods=("POST",), statuses=frozenset({200}))


def old_chunks(chance: random.Random) -> Attempt:
    """HTTP/1.0 knows no chunks: the framing is faulty (RFC 9112, section 6.1)."""
    request = post(chance)
    sent = _headed(request, ("Transfer-Encoding", "chunked"), version="HTTP/1.0") + _chunks(chance, request.body)
    return Attempt("", (sent + b"0\r\n\r\n" + HIDDEN,), old=True, methods=("POST",), hidden=True)


def body_with_get(chance: random.Random) -> Attempt:
    """It has no meaning, and it is no request."""
    method = chance.choice(["GET", "HEAD", "DELETE", "OPTIONS"])
    request = Valid(method, chance.choice(["/healthz", "/v1/models"]), HIDDEN)
    sent = request.wire(head=(*request.head, ("Content-Length", str(len(HIDDEN))))) + FOLLOWING
    return Attempt("", (sent,), methods=(method, "GET"), hidden=True)


KINDS = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        wrong_length, bad_length, two_lengths, huge_length, no_length, length_and_chunks, odd_transfer_encoding, chunked,
        chunked_with_hidden, hidden_in_body, bad_chunks, many_small_chunks, old_chunks, body_with_get,
    )
}  # fmt: skip
"""What makes an attempt, by name."""
