"""Requests with odd bodies: encodings, compression, JSON at its edges, sizes."""

import codecs
import gzip
import json
import random
import zlib
from dataclasses import replace
from typing import Any

from tests.fuzz.attempt import Attempt
from tests.fuzz.valid import MAX_CHARACTERS, Valid, post, texts

__all__ = ["KINDS", "MAX_BODY"]

MAX_BODY = 300_000
"""Bytes, the service's limit while it is tried."""
REFUSED = frozenset({400, 413, 415, 422})


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the same bytes at any time


def byte_order_mark(chance: random.Random) -> Attempt:
    request = post(chance)
    return replace(request, body=codecs.BOM_UTF8 + request.body).attempt()


def other_encoding(chance: random.Random) -> Attempt:
    """JSON is in UTF-8: it is refused, or it is read if it happens to be the same."""
    request, encoding = post(chance), chance.choice(["utf-16", "utf-32", "utf-16-le", "utf-7", "utf-8-sig"])
    body = request.body.decode().encode(encoding)
    return replace(request, body=body).attempt(statuses=REFUSED | {200})


def bad_utf8(chance: random.Random) -> Attempt:
    bad = chance.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"])
    return Valid("POST", "/v1/translate", b'{"text": "a' + bad + b'"}').attempt(statuses=frozenset({400, 422}))


def gzipped(chance: random.Random) -> Attempt:
    """Inflated, or refused with what is taken instead."""
    request = post(chance)
    coding = chance.choice(["gzip", "GZIP", "x-gzip"])
    return (
        replace(request, body=_gzip(request.body))
        .with_headers(("Content-Encoding", coding))
        .attempt(statuses=frozenset({200, 415}))
    )


def bad_gzip(chance: random.Random) -> Attempt:
    request = post(chance)
    good = _gzip(request.body)
    bad = [request.body, good[:-5], good[: len(good) // 2], good + b"more", b"", b"\x1f\x8b", b"\x1f\x8b" + bytes(50)]
    bad.append(good[:-8] + bytes(8))
    body = chance.choice(bad)
    # What follows a whole stream may be ignored.
    statuses = frozenset({200, 400, 415} if body.endswith(b"more") else {400, 415})
    return replace(request, body=body).with_headers(("Content-Encoding", "gzip")).attempt(statuses=statuses)


def gzip_bomb(chance: random.Random) -> Attempt:
    """A thousand times as large when it is inflated, and past the limit of a body."""
    body = _gzip(b" " * chance.choice([MAX_BODY + 1, 30_000_000]))
    if chance.random() < 0.3:
        body = _gzip(body)
    return (
        Valid("POST", "/v1/translate", body)
        .with_headers(("Content-Encoding", "gzip"))
        .attempt(statuses=frozenset({400, 413, 415}))
    )


def other_coding(chance: random.Random) -> Attempt:
    request, coding = post(chance), chance.choice(["deflate", "br", "zstd", "gzip, gzip", "gzip, br", "x", "\xe4"])
    return (
        replace(request, body=zlib.compress(request.body))
        .with_headers(("Content-Encoding", coding))
        .attempt(statuses=frozenset({400, 415}))
    )


def no_coding(chance: random.Random) -> Attempt:
    return post(chance).with_headers(("Content-Encoding", "identity")).attempt(statuses=frozenset({200, 415}))


def other_type(chance: random.Random) -> Attempt:
    """The service reads JSON, whatever a body is said to be: curl says that it is a form."""
    request = post(chance)
    types = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
        "application/json; charset=utf-16",
        "x",
        "\xe4/\xe4",
    ]
    head = tuple(each for each in request.head if each[0] != "Content-Type")
    wire = request.wire(head=(*head, ("Content-Type", chance.choice(types))))
    return request.attempt(parts=(wire,), statuses=frozenset({200, 415}))


def odd_json(chance: random.Random) -> Attempt:
    odd = [
        "", " ", "null", "[]", '""', "0", "{", "{}}", "[" * 5000, "[" * 5000 + "]" * 5000, '{"a":' * 3000, "NaN",
        '{"text": NaN}', '{"text": "a", "length_penalty": Infinity}', '{"text": "a", "length_penalty": 1e400}',
        '{"text": "a", "text": 1}', '{"text": "\\ud800"}', '{"text": "\\ud800\\u0041"}', '{"text": "a\\u0000b"}',
        '{"text": "a", "beam_size": 1e0}', '{"text": "a", "beam_size": ' + "9" * 5000 + "}", '{"text": "a"} x', '{"text": \'a\'}',
        '{"text": "a", "max_tokens": -0}', '{"text": "a", "sampling": {"seed": 18446744073709551616}}', "\x00", '{"text": "a",}',
        '{"text": "a", "source": ""}', '{"text": "a", "source": "' + "x" * 10_000 + '"}', "{" + '"a": 1, ' * 9999 + '"b": 1}',
        '{"text": ["a", null]}', '{"text": [["a"]]}', '{"__proto__": {}, "text": "a"}', '{"text": "a", "prefix": [""]}', "//x",
        '{"text": "a", "model": "../../etc/passwd"}', '{"text": "a", "prefix": "\\ud800"}', '{"text": [], "stream": true}',
    ]  # fmt: skip
    path = chance.choice(["/v1/translate", "/v1/encode", "/v1/attention"])
    return Valid("POST", path, chance.choice(odd).encode()).attempt(statuses=REFUSED | {200, 404})


def odd_text(chance: random.Random) -> Attempt:
    """Any characters but white space alone are text; it is at most too long: rare ones are several tokens each."""
    odd = [
        "\0", "\u202e\u200b", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0301" * 100, "\ufeff", "\uffff", "\U0010ffff", "\r\n",
        " " * 100, "<unk> </s> ▁", "event: result\ndata: {}\n\n", ". " * 60, "!" * 120, "{0}%s\\", "ﷺ" * 40, "a\u0085b\u2028c",
    ]  # fmt: skip
    made = [
        chance.choice(odd),
        "".join(chr(chance.randrange(0xD800)) for _ in range(chance.randint(1, MAX_CHARACTERS))),
    ]
    text = chance.choice(made)
    body: dict[str, Any] = {"text": text, "max_tokens": 20}
    if chance.random() < 0.3:
        body["stream"] = True
    right = frozenset({200, 413} if text.strip() else {422})
    return Valid("POST", "/v1/translate", json.dumps(body).encode()).attempt(statuses=right)


def too_much(chance: random.Random) -> Attempt:
    """Past one of the service's limits: characters, texts, bytes."""
    text = chance.choice(texts())
    many = [
        json.dumps({"text": "x" * (MAX_CHARACTERS + 1)}),
        json.dumps({"text": [text] * 50}),
        json.dumps({"text": [""] * 5000}),
        json.dumps({"text": "x" * MAX_BODY}),
        json.dumps({"text": text, "beam_size": 1000}),
        json.dumps({"text": text, "max_tokens": 10**9}),
    ]
    return Valid("POST", "/v1/translate", chance.choice(many).encode()).attempt(statuses=frozenset({413, 422}))


KINDS = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        byte_order_mark, other_encoding, bad_utf8, gzipped, bad_gzip, gzip_bomb, other_coding, no_coding, other_type, odd_json,
        odd_text, too_much,
    )
}  # fmt: skip
"""What makes an attempt, by name."""
