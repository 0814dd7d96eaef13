"""Valid requests, made by chance."""

import functools
import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.fuzz.attempt import Attempt

__all__ = ["MAX_CHARACTERS", "ORDINARY", "Valid", "post", "texts", "valid"]

MAX_CHARACTERS = 120
"""The service's limit while it is tried: no text is much work."""
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Valid:
    """A request as it should be, and the statuses that may answer it."""

    method: str
    target: str
    body: bytes = b""
    headers: Headers = field(default=())
    """Beside Host, Content-Type and Content-Length."""
    statuses: frozenset[int] = frozenset({200})
    names: str = ""
    """What the detail of a problem must name."""

    @property
    def head(self) -> tuple[tuple[str, str], ...]:
        """All its header fields."""
        about = ()
        if self.method == "POST":
            about = (("Content-Type", "application/json"), ("Content-Length", str(len(self.body))))
        return (("Host", "127.0.0.1"), *about, *self.headers)

    def wire(self, version: str = "HTTP/1.1", head: Headers | None = None) -> bytes:
        """Its bytes, with other header fields if they are given."""
        fields = self.head if head is None else head
        lines = [f"{self.method} {self.target} {version}", *(f"{name}: {value}" for name, value in fields)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body

    def with_headers(self, *headers: tuple[str, str]) -> "Valid":
        return replace(self, headers=(*self.headers, *headers))

    def attempt(self, **more: Any) -> Attempt:
        """To send it once, as it is unless ``more`` says otherwise."""
        told = {"parts": (self.wire(),), "methods": (self.method,), "statuses": self.statuses, "names": self.names}
        return Attempt("valid", **(told | more))


ORDINARY = Valid("POST", "/v1/translate", b'{"text": "The file could not be opened."}')
"""What is asked again and again, to see whether the service is whole."""


@functools.cache
def texts() -> tuple[str, ...]:
    """Sentences that are within the limit."""
    file = Path(__file__).parents[2] / "loadtest" / "sentences.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if 0 < len(line) <= MAX_CHARACTERS)


def valid(chance: random.Random) -> Valid:
    """Any request that the service describes, paths and methods it has not among them."""
    draw = chance.random()
    if draw < 0.25:
        path = chance.choice(["/healthz", "/readyz", "/v1/models", "/metrics"])
        return Valid(chance.choice(["GET", "HEAD"]), path)
    if draw < 0.28:
        return Valid("GET", "/openapi.json")
    if draw < 0.34:
        path = chance.choice([f"/nothing/{chance.randrange(10**9)}", "/v1/translate/", "/v1", "/V1/translate"])
        body = b"{}" if chance.random() < 0.5 else b""
        return Valid("POST" if body else "GET", path, body, statuses=frozenset({404}), names=path)
    if draw < 0.38:
        method, path = chance.choice([("GET", "/v1/translate"), ("DELETE", "/v1/encode"), ("PUT", "/healthz")])
        return Valid(method, path, statuses=frozenset({405}))
    return Valid("POST", *_question(chance))


def post(chance: random.Random) -> Valid:
    """One with a body, which is answered with 200."""
    return Valid("POST", *_question(chance))


def _question(chance: random.Random) -> tuple[str, bytes]:
    path = chance.choices(["/v1/translate", "/v1/encode", "/v1/attention"], [6, 2, 1])[0]
    text: Any = chance.choice(texts())
    body: dict[str, Any] = {"text": text}
    if path == "/v1/encode":
        body["pooling"] = chance.choice(["mean", "none", None])
    if path != "/v1/attention" and chance.random() < 0.3:
        body["text"] = [chance.choice(texts()) for _ in range(chance.randint(1, 3))]
    if path != "/v1/encode" and chance.random() < 0.2:
        body["target"] = chance.choice(["de", "DE", "de-AT", "de_DE"])
    if chance.random() < 0.2:
        body["source"] = chance.choice(["en", "EN", "en-US", "en_GB"])
    if path == "/v1/translate":
        body |= _options(chance)
    return path, json.dumps(body, ensure_ascii=chance.random() < 0.5).encode()


def _options(chance: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {"max_tokens": chance.randint(1, 30)}
    draw = chance.random()
    if draw < 0.2:
        found |= {"beam_size": (beam := chance.randint(2, 4)), "alternatives": chance.randint(1, beam)}
    elif draw < 0.4:
        found["sampling"] = {"temperature": 0.8, "seed": chance.randrange(2**53)}
    if draw > 0.7:
        found["stream"] = True
    if chance.random() < 0.2:
        found["log_probabilities"] = True
    return found
